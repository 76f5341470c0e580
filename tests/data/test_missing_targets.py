"""Rows that lack some of their targets: read, preprocessed, cached and augmented with what they have."""

import numpy as np
import pandas as pd
import pytest
import torch
from monai.transforms import (
    CopyItemsd,
    DeleteItemsd,
    MapTransform,
    NormalizeIntensityd,
    RandFlipd,
    ScaleIntensityRanged,
    SpatialPadd,
)

from cyto_dl.data import DataframeDatamodule, ReadImaged
from cyto_dl.data.image import write_image
from cyto_dl.errors import ConfigError, ManifestError
from tests.test_train import run

KEYS = ["raw", "seg", "edge"]
HAVE = {"train": [("seg", "edge"), ("seg",), ("edge",)], "valid": [("seg",), ("seg", "edge")], "predict": [()]}


def rows_of(spatial_dims, have=HAVE):
    """Images whose voxels all hold the number of their row; a target holds 10 times as much."""
    shape, number, rows = [12] * spatial_dims, 0, {}
    for split, found in have.items():
        rows[split] = []
        for targets in found:
            images = {"raw": np.full(shape, number, np.float32)}
            rows[split].append(images | {key: np.full(shape, 10.0 * number, np.float32) for key in targets})
            number += 1
    return rows


def transforms(spatial_dims, *, preprocess=(), augment=()):
    return {
        "load": [ReadImaged("raw", spatial_dims), ReadImaged(["seg", "edge"], spatial_dims)],
        "preprocess": [
            SpatialPadd(KEYS, [16] * spatial_dims, mode="edge"),
            ScaleIntensityRanged("edge", a_min=0, a_max=10, b_min=0, b_max=1),
            *preprocess,
        ],
        "augment": [RandFlipd(KEYS, prob=0.5, spatial_axis=-1), *augment],
    }


def datamodule(spatial_dims=2, *, rows=None, steps=None, **arguments):
    return DataframeDatamodule(
        path=rows or rows_of(spatial_dims),
        columns={key: key for key in KEYS},
        transforms=steps or transforms(spatial_dims),
        **({"patch_shape": [8] * spatial_dims, "batch_size": 6, "patches_per_image": 2} | arguments),
    )


def check(batch, factors):
    """Every target of a batch is that of the items that `present` says."""
    number = batch["raw"].flatten(1)[:, 0]
    assert batch["raw"].flatten(1).eq(number[:, None]).all()
    for key, factor in factors.items():
        present = batch["present"][key]
        assert len(batch[key]) == len(present) > 0
        assert torch.equal(batch[key].flatten(1)[:, 0], factor * number[present])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_holds_the_targets_that_there_are(spatial_dims, num_workers, tmp_path):
    data = datamodule(spatial_dims, num_workers=num_workers, cache_dir=str(tmp_path))
    data.setup("fit")
    for _ in range(2):  # computed, and from the cache
        (batch,) = list(data.train_dataloader())
        check(batch, {"seg": 10, "edge": 1})
        assert len(batch["present"]["seg"]) == len(batch["present"]["edge"]) == 4
        without, whole = list(data.val_dataloader())
        assert without["present"]["edge"].tolist() == []
        assert "edge" not in without
        assert "present" not in whole
        assert without["seg"].shape == (1, 1, *[16] * spatial_dims)


def test_prediction_has_no_targets_and_says_nothing_about_them():
    (batch,) = list(datamodule().predict_dataloader())
    assert batch.keys() == {"raw", "path", "spacing_um"}


def test_a_target_that_is_filled_in_later_is_not_missing_in_the_cache(tmp_path):
    have = {"train": [("seg", "edge"), ("seg",)]}
    rows = rows_of(2, have)
    first = datamodule(rows=rows, cache_dir=str(tmp_path), patches_per_image=1)
    assert len(next(iter(first.train_dataloader()))["edge"]) == 1
    rows["train"][1]["edge"] = np.full((12, 12), 10.0)
    second = datamodule(rows=rows, cache_dir=str(tmp_path), patches_per_image=1)
    assert len(next(iter(second.train_dataloader()))["edge"]) == 2


def test_rows_without_the_foreground_key_give_patches_from_anywhere():
    rows = {"train": [{"raw": np.arange(400.0).reshape(20, 20), "seg": np.zeros((20, 20))} for _ in range(2)]}
    rows["train"][1]["edge"] = np.zeros((20, 20))
    rows["train"][1]["edge"][3, 3] = 1
    steps = {"load": [ReadImaged(KEYS, 2)]}
    data = datamodule(rows=rows, steps=steps, foreground_key="edge", foreground_fraction=1.0, patches_per_image=30)
    patches = data.train_dataloader().dataset
    without, having = ([patches[0, row, number] for number in range(30)] for row in (0, 1))
    assert len({float(item["raw"].flatten()[0]) for item in without}) > 10
    assert all(item["edge"].sum() == 1 for item in having)


def test_only_targets_that_are_there_are_encoded():
    data = datamodule(steps={"load": [ReadImaged(KEYS, 2)]})
    data.encoders = {"edge": lambda target, spacing_um: torch.cat([target, -target])}
    (batch,) = list(data.train_dataloader())
    assert batch["edge"].shape[1] == 2
    assert torch.equal(batch["edge"][:, 0], -batch["edge"][:, 1])
    assert batch["seg"].shape[1] == 1


@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_table_may_leave_cells_of_targets_empty(tmp_path, num_rows):
    for name in "raw", "seg":
        write_image(tmp_path / f"{name}.ome.tif", np.zeros((1, 12, 12), np.uint8))
    cells = [{"raw": "raw.ome.tif", "seg": "seg.ome.tif", "edge": "seg.ome.tif"}]
    cells += [{"raw": "raw.ome.tif", "seg": None, "edge": "seg.ome.tif"}] * num_rows
    pd.DataFrame(cells).to_csv(tmp_path / "train.csv", index=False)
    data = datamodule(rows=tmp_path, batch_size=1 + num_rows, patches_per_image=1)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert (len(batch["raw"]), len(batch["edge"]), len(batch["seg"])) == (1 + num_rows, 1 + num_rows, 1)


def test_a_row_without_any_target_is_refused_before_training():
    with pytest.raises(
        ManifestError, match=r"columns 'seg', 'edge' have no value in train\[1\]\. Every row needs at le"
    ):
        datamodule(rows=rows_of(2, {"train": [("seg", "edge"), (), ("seg",)]})).setup("fit")


def test_a_target_that_no_row_has_is_refused_before_training():
    rows = rows_of(2, {"train": [("seg",), ("seg",)], "valid": [("seg", "edge")]})
    with pytest.raises(ManifestError, match=r"column 'edge' of train has no value in any row of the split 'train'"):
        datamodule(rows=rows).setup("fit")


class Strict(MapTransform):
    """Cannot be told to skip keys."""

    def __init__(self, keys):
        super().__init__(keys)
        del self.allow_missing_keys

    def __call__(self, data):
        return data


@pytest.mark.parametrize("stage", ["preprocess", "augment"])
def test_a_transform_that_cannot_leave_a_missing_target_out_is_named_before_the_first_batch(stage):
    data = datamodule(steps=transforms(2, **{stage: [Strict(["seg", "edge"])]}))
    with pytest.raises(ConfigError, match=r"Strict with the keys \['seg', 'edge'\] cannot leave a key out"):
        data.train_dataloader()


def test_what_is_made_of_a_missing_target_is_missing_too():
    steps = transforms(2, preprocess=[CopyItemsd("edge", names=["border"]), NormalizeIntensityd("raw")])
    (batch,) = list(datamodule(steps=steps).train_dataloader())
    assert torch.equal(batch["border"], batch["edge"])
    assert torch.equal(batch["present"]["border"], batch["present"]["edge"])


def test_a_column_that_all_rows_have_and_a_transform_removes_is_not_said_to_be_missing():
    rows = rows_of(2, {"train": [("seg", "edge")] * 2})
    (batch,) = list(datamodule(rows=rows, steps=transforms(2, augment=[DeleteItemsd("edge")])).train_dataloader())
    assert batch.keys() == {"raw", "seg", "path", "spacing_um"}


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_an_image_without_one_of_the_stains_trains_and_measures_the_others(manifest_folder, tmp_path, spatial_dims):
    folder = manifest_folder(spatial_dims)
    table = pd.read_csv(folder / "manifest.csv")  # two rows to train, one to validate, one to test
    table = table.assign(dapi=table["seg"], map2=[None, *table["seg"][1:]], nfh=[*table["seg"][:2], None, None])
    table.drop(columns="seg").to_csv(folder / "manifest.csv", index=False)
    columns = [f"data.columns.{stain}={stain}" for stain in ("dapi", "map2", "nfh")]
    metrics = run(folder, tmp_path / "run", *columns, experiment="im2im/labelfree_stains", spatial_dims=spatial_dims)
    assert all(np.isfinite(metrics[f"train/{stain}/loss"]) for stain in ("dapi", "map2", "nfh"))
    for split in ("valid", "test"):
        assert {f"{split}/dapi/pearson", f"{split}/map2/pearson"} < set(metrics)
    assert "test/nfh/pearson" not in metrics
    previews = {path.name for path in (tmp_path / "run").rglob("*.png")}
    assert {"raw_2_dapi_target.png", "raw_2_nfh.png"} < previews
    assert "raw_2_nfh_target.png" not in previews
