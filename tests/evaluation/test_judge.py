"""One image is compared with the targets that it has: objects, masks of any scale, and Otsu's threshold beside them."""

import pandas as pd
import pytest

from cyto_dl.data.image import read_image
from cyto_dl.errors import ImageError, ManifestError
from cyto_dl.evaluation import evaluate
from tests.bundle.tiny import experiment, predictor_of, write_images
from tests.evaluation.objects import of_cells, write_cells


def arrays(manifest, number, predictor):
    """A row of the manifest in memory."""
    folder = manifest.parent
    images = {
        key: read_image(str(folder / f"{key}_{number}.ome.tif"), **predictor.input.load) for key in ("raw", "cells")
    }
    return {key: image.array for key, image in images.items()} | {"split": "test"}


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def cells(request, tmp_path):
    """Makes images of six objects, with what is wrong in each; returns manifest, experiment and predictor."""

    def make(*changes):
        manifest = write_cells(tmp_path, request.param, changes=changes)
        return manifest, *of_cells(manifest, request.param)

    return make


def test_objects_have_the_scores_that_follow_from_what_is_wrong(cells):
    manifest, config, predictor = cells("", "miss", "split")
    evaluation = evaluate(predictor, config, manifest=manifest)
    # six true objects an image: all found; one missed; one found as two halves of IoU below 0.5
    assert evaluation.images["cells/ap50"].tolist() == pytest.approx([1, 5 / 6, 5 / 8])
    assert evaluation.images["cells/f1"].tolist() == pytest.approx([1, 10 / 11, 10 / 13])
    summary = evaluation.summary
    assert summary["test/cells/ap50"] == pytest.approx((1 + 5 / 6 + 5 / 8) / 3)
    assert summary["test/cells/ap50_pooled"] == pytest.approx(16 / (16 + 2 + 2))
    assert summary["test/cells/otsu_ap50_pooled"] < 0.5  # touching objects are one component
    names = ("ap50", "ap75", "ap90", "ap", "f1", "pq", "otsu_ap50")
    assert set(summary) == {f"test/cells/{name}{pooled}" for name in names for pooled in ("", "_pooled")}
    assert set(evaluation.intervals) == set(summary)


def test_an_image_without_objects_is_no_failure(cells):
    manifest, config, predictor = cells("", "empty")
    evaluation = evaluate(predictor, config, manifest=manifest)
    assert evaluation.images["cells/ap50"].isna().tolist() == [False, True]
    assert evaluation.summary["test/cells/ap50"] == evaluation.summary["test/cells/ap50_pooled"] == 1
    assert [figure.rank for figure in evaluation.figures["cells"]] == ["best"]
    nothing = evaluate(predictor, config, manifest=[arrays(manifest, 1, predictor)])
    assert (nothing.summary, nothing.figures) == ({}, {"cells": []})


def test_a_target_that_is_no_label_image_is_named(cells):
    manifest, config, predictor = cells("", "")
    rows = [arrays(manifest, number, predictor) for number in range(2)]
    rows[1]["cells"] = rows[1]["cells"] / 2
    with pytest.raises(ImageError, match=r"data.path\[1\]: the target 'cells': the target has a pixel of value 0\.5"):
        evaluate(predictor, config, manifest=rows)


def test_a_row_is_measured_on_the_heads_that_it_has_a_target_of(tmp_path):
    config = experiment(write_images(tmp_path, splits=("test",) * 3))
    config["data"]["columns"]["dist"] = "dist"
    table = pd.read_csv(tmp_path / "manifest.csv")
    table["dist"] = table["raw"].where(table.index > 0)
    table["seg"] = table["seg"].where(table.index != 1)
    table.to_csv(tmp_path / "manifest.csv", index=False)
    evaluation = evaluate(predictor_of(config), config, manifest=tmp_path / "manifest.csv")
    assert evaluation.images["seg/dice"].isna().tolist() == [False, True, False]
    assert evaluation.images["dist/pearson"].isna().tolist() == [True, False, False]
    assert evaluation.summary["test/seg/dice"] == pytest.approx(evaluation.images["seg/dice"].mean())
    assert {figure.path.rpartition("/")[2] for figure in evaluation.figures["seg"]} == {
        "raw_0.ome.tif",
        "raw_2.ome.tif",
    }


def test_images_without_any_target_are_not_measured(tmp_path):
    config = experiment(write_images(tmp_path, splits=("test", "predict", "predict")))
    config["data"]["columns"]["dist"] = "dist"
    table = pd.read_csv(tmp_path / "manifest.csv")
    table["dist"] = ""
    table.loc[1, "seg"] = ""
    table.to_csv(tmp_path / "manifest.csv", index=False)
    predictor = predictor_of(config)
    images = evaluate(predictor, config, manifest=tmp_path / "manifest.csv", split="predict").images
    assert [path.rpartition("/")[2] for path in images["path"]] == ["raw_2.ome.tif"]
    table.loc[2, "seg"] = ""
    table.to_csv(tmp_path / "manifest.csv", index=False)
    with pytest.raises(ManifestError, match="no image of the split 'predict' has a target"):
        evaluate(predictor, config, manifest=tmp_path / "manifest.csv", split="predict")


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_target_of_another_scale_is_compared_and_drawn_on_its_own_pixels(tmp_path, spatial_dims):
    config = experiment(write_images(tmp_path, spatial_dims, splits=("test",) * 2), spatial_dims)
    config["model"]["task_heads"]["seg"]["head"] = {
        "_target_": "cyto_dl.model.heads.UpsamplingHead",
        **{"in_channels": 4, "out_channels": 1, "spatial_dims": spatial_dims, "scale": 2},
    }
    rows = []
    for number in range(2):
        source = read_image(str(tmp_path / f"raw_{number}.ome.tif"), spatial_dims=spatial_dims).array
        mask = read_image(str(tmp_path / f"seg_{number}.ome.tif"), spatial_dims=spatial_dims).array
        for axis in range(1, mask.ndim):
            mask = mask.repeat(2, axis)
        rows.append({"raw": source, "seg": mask, "split": "test"})
    evaluation = evaluate(predictor_of(config), config, manifest=rows)
    assert evaluation.images["seg/dice"].notna().all()
    assert "test/seg/otsu_dice" not in evaluation.summary  # the threshold's mask has the source's pixels
    assert [len(figure.pictures) for figure in evaluation.figures["seg"]] == [4, 4]


def test_otsu_stands_in_for_masks_and_objects_alone(tmp_path):
    config = experiment(write_images(tmp_path, splits=("test",) * 2))
    config["data"]["transforms"]["preprocess"].pop()  # the target stays a mask
    evaluation = evaluate(predictor_of(config), config, manifest=tmp_path / "manifest.csv")
    assert evaluation.summary["test/seg/otsu_dice_pooled"] == pytest.approx(1)
    assert not any(name.startswith("test/dist/otsu") for name in evaluation.summary)
