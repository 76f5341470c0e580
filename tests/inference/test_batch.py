"""Many images: each into its own files, a bad one into a row of the table."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyto_dl.data.image import read_image
from cyto_dl.errors import ConfigError, ImageError
from cyto_dl.inference import predict_images
from cyto_dl.inference.batch import TABLE, check_all_predicted, image_files, unique_stems
from tests.bundle.tiny import SPACING_UM, experiment, predictor_of, write_images


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_every_head_is_written_with_the_pixel_size_of_its_image(tmp_path, spatial_dims):
    write_images(tmp_path, spatial_dims)
    predictor = predictor_of(experiment("m.csv", spatial_dims))
    sources = sorted(tmp_path.glob("raw_*.tif"))
    table = predict_images(predictor, sources, tmp_path / "out", progress=False)
    assert list(table["status"]) == ["ok"] * 3
    for source, row in zip(sources, table.to_dict("records"), strict=True):
        expected = predictor.predict(read_image(source, spatial_dims=spatial_dims))
        for head in ("seg", "dist"):
            written = read_image(row[head], spatial_dims=spatial_dims)
            assert row[head] == str(tmp_path / "out" / head / f"{source.name.split('.')[0]}.ome.tif")
            assert written.spacing_um == pytest.approx(SPACING_UM[spatial_dims])  # decimal in the file's XML
            np.testing.assert_array_equal(written.array, expected[head])


def test_a_bad_image_is_a_failed_row_and_the_others_go_on(tmp_path):
    write_images(tmp_path)
    (tmp_path / "broken.tif").write_bytes(b"no tiff")
    np.save(tmp_path / "rgb.npy", np.zeros((3, 40, 40), np.uint8))
    paths = [tmp_path / name for name in ("raw_0.ome.tif", "broken.tif", "missing.tif", "rgb.npy", "raw_1.ome.tif")]
    table = predict_images(predictor_of(experiment("m.csv")), paths, tmp_path / "out", progress=False)
    assert list(table["status"]) == ["ok", "failed", "failed", "failed", "ok"]
    for number, part in [(1, "broken.tif"), (2, "does not exist"), (3, "3 channels")]:
        assert part in table["error"][number]
    assert sorted(path.name for path in (tmp_path / "out/seg").iterdir()) == ["raw_0.ome.tif", "raw_1.ome.tif"]
    with pytest.raises(ImageError) as failure:
        check_all_predicted(table, tmp_path / "out")
    said = str(failure.value)
    assert "3 of 5 images" in said and str(tmp_path / "out/predictions.csv") in said
    assert all(error in said for error in table["error"][1:4])
    check_all_predicted(table[table["status"] == "ok"], tmp_path / "out")


def test_of_many_failed_images_the_first_are_named(tmp_path):
    paths = [tmp_path / f"missing_{number}.tif" for number in range(7)]
    table = predict_images(predictor_of(experiment("m.csv")), paths, tmp_path, progress=False)
    with pytest.raises(ImageError, match=r"7 of 7 .*\n.*missing_0.*(\n.*){4}missing_4.*\n.*2 more"):
        check_all_predicted(table, tmp_path)


def test_earlier_predictions_are_replaced_also_those_of_a_run_that_was_killed(tmp_path, monkeypatch):
    write_images(tmp_path)
    predictor, image = predictor_of(experiment("m.csv")), tmp_path / "raw_0.ome.tif"
    predict_images(predictor, [image], tmp_path / "out", progress=False)
    predict_images(predictor, [tmp_path / "raw_1.ome.tif"], tmp_path / "out", progress=False)
    predict_images(predictor, [image], tmp_path / "out", progress=False)
    assert list(pd.read_csv(tmp_path / "out/predictions.csv")["path"]) == [str(image)]
    seen = []
    monkeypatch.setattr(
        type(predictor), "predict", lambda *_: seen.append((tmp_path / "new" / TABLE).read_text()) or {}
    )
    predict_images(predictor, [image], tmp_path / "new", progress=False)
    assert seen == ["path,status,seconds\n"]  # what is left when nothing can be written at the end


@pytest.mark.parametrize("name", ["predictions.csv", "seg/raw_0.ome.tif"])
def test_a_file_that_is_no_prediction_is_not_replaced(tmp_path, name):
    write_images(tmp_path)
    own = tmp_path / "own" / name
    own.parent.mkdir(parents=True)
    own.write_text("name,age\n")
    with pytest.raises(ConfigError, match=rf"no folder of earlier predictions.*{name}.*another output folder"):
        predict_images(predictor_of(experiment("m.csv")), [tmp_path / "raw_0.ome.tif"], tmp_path / "own")
    assert own.read_text() == "name,age\n"
    assert [path for path in (tmp_path / "own").rglob("*") if path.is_file()] == [own]


def test_predictions_may_lie_beside_files_that_they_do_not_replace(tmp_path):
    write_images(tmp_path)
    predict_images(predictor_of(experiment("m.csv")), [tmp_path / "raw_0.ome.tif"], tmp_path, progress=False)
    assert (tmp_path / "seg/raw_0.ome.tif").is_file()


def test_a_folder_stands_for_its_image_files(tmp_path):
    write_images(tmp_path)
    for name in ("._raw_0.ome.tif", "notes.txt", "deeper/raw_9.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = image_files(["s3://bucket/a.tif", str(tmp_path), "missing.tif"])
    assert [path.rsplit("/", 1)[-1] for path in files] == [
        "a.tif",
        *(f"{key}_{number}.ome.tif" for key in ("raw", "seg") for number in range(3)),
        "missing.tif",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: the folder has no image file \(\.tif, .*subfolders"):
        image_files([str(tmp_path / "empty")])


def test_the_table_has_one_row_an_image_and_is_saved(tmp_path):
    write_images(tmp_path)
    predictor = predictor_of(experiment("m.csv"))
    table = predict_images(predictor, [tmp_path / "raw_0.ome.tif"], tmp_path / "out", progress=False)
    saved = pd.read_csv(tmp_path / "out/predictions.csv", keep_default_na=False)
    assert list(saved.columns) == list(table.columns) == ["path", "status", "seconds", "seg", "dist", "error"]
    assert saved.to_dict("records") == table.to_dict("records")


def test_no_image_is_an_empty_table(tmp_path):
    table = predict_images(predictor_of(experiment("m.csv")), [], tmp_path, progress=False)
    assert len(table) == 0
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 0


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        write_images(folder)
    paths = [folder / "raw_0.ome.tif" for folder in folders]
    table = predict_images(predictor_of(experiment("m.csv")), paths, tmp_path / "out", progress=False)
    assert [path.rsplit("/", 1)[1] for path in table["seg"]] == ["raw_0.ome.tif", "raw_0_2.ome.tif"]


def test_the_table_is_there_when_the_work_is_interrupted(tmp_path, monkeypatch):
    write_images(tmp_path)
    predictor = predictor_of(experiment("m.csv"))
    calls = []

    def interrupted(image):
        calls.append(image)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(type(predictor), "predict", lambda self, image: interrupted(image))
    with pytest.raises(KeyboardInterrupt):
        predict_images(predictor, sorted(tmp_path.glob("raw_*")), tmp_path / "out", progress=False)
    assert len(pd.read_csv(tmp_path / "out/predictions.csv")) == 1


def test_progress_is_shown_on_stderr(tmp_path, capfd):
    write_images(tmp_path)
    predict_images(predictor_of(experiment("m.csv")), [tmp_path / "raw_0.ome.tif"], tmp_path / "out")
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "predicting" in shown.err


@given(st.lists(st.sampled_from(["a.tif", "x/a.png", "A.tif", "a_2.tif", "a.b.tif", "c.ome.tif", "c.tif", ".tif"])))
def test_stems_never_collide(paths):
    stems = unique_stems(paths)
    assert len({stem.lower() for stem in stems}) == len(paths)
    assert all(stems)


def test_stems_keep_all_of_a_name_but_its_suffix():
    assert unique_stems(["s3://b/well.A01.tif", "c.ome.tiff", "d.tif"]) == ["well.A01", "c", "d"]
