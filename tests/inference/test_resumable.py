"""Predictions that an attempt left behind: kept where they are whole and of the same image and model."""

import json
import os

import pytest

from cyto_dl.data.image import read_image
from cyto_dl.errors import ConfigError
from cyto_dl.inference.resumable import OutputFolder, predict_resumably
from tests.bundle.tiny import experiment, predictor_of, write_images

HEADS = ("seg", "dist")
MAKER = {"bundle": "a" * 64, "engine": "torch"}


@pytest.fixture
def attempt(tmp_path):
    """Predicts three images of two heads into a folder; returns the table."""
    write_images(tmp_path)
    jobs = [(str(tmp_path / f"raw_{number}.ome.tif"), f"raw_{number}") for number in range(2)]
    jobs.append((str(tmp_path / "missing.tif"), "missing"))

    def run(made_by=MAKER, load=lambda: predictor_of(experiment("m.csv"))):
        return predict_resumably(jobs, OutputFolder(str(tmp_path / "out")), heads=HEADS, made_by=made_by, load=load)

    return run


def test_a_bad_image_is_a_failed_row_and_the_others_are_predicted(attempt, tmp_path):
    table = attempt()
    assert list(table.columns) == ["path", "status", "seconds", "seg", "dist", "error", "kept"]
    assert list(table["status"]) == ["ok", "ok", "failed"]
    assert not table["kept"].any()
    assert "missing.tif: the file does not exist" in table["error"][2]
    assert (
        read_image(table["seg"][0], spatial_dims=2).array.shape[-2:]
        == (read_image(table["path"][0], spatial_dims=2).array.shape[-2:])
    )


def test_what_is_done_is_kept_without_loading_the_model(attempt, tmp_path):
    first = attempt()
    before = (tmp_path / "out/seg/raw_0.ome.tif").stat().st_mtime_ns
    loaded = []

    def load():
        loaded.append(1)
        return predictor_of(experiment("m.csv"))

    second = attempt(load=load)
    assert list(second["kept"]) == [True, True, False]
    assert loaded == [1]  # for the image that failed
    assert (tmp_path / "out/seg/raw_0.ome.tif").stat().st_mtime_ns == before
    assert first.drop(columns=["kept", "seconds"]).equals(second.drop(columns=["kept", "seconds"]))


def _cut(folder):
    path = folder / "out/dist/raw_0.ome.tif"
    path.write_bytes(path.read_bytes()[:-1])


def _touch(folder):
    os.utime(folder / "raw_0.ome.tif", (1, 1))


@pytest.mark.parametrize(
    "change",
    [
        _cut,
        _touch,
        lambda folder: (folder / "out/seg/raw_0.ome.tif").unlink(),
        lambda folder: (folder / "out/.records/raw_0.json").unlink(),
    ],
    ids=["cut off", "another image", "removed", "killed before the record"],
)
def test_what_is_not_whole_or_of_another_image_is_predicted_again(attempt, tmp_path, change):
    attempt()
    change(tmp_path)
    assert list(attempt()["kept"]) == [False, True, False]
    assert list(attempt()["kept"]) == [True, True, False]


@pytest.mark.parametrize("other", [{"bundle": "b" * 64}, {"engine": "onnxruntime"}])
def test_another_bundle_or_engine_predicts_everything_again(attempt, other):
    attempt()
    assert not attempt(made_by=MAKER | other)["kept"].any()


def test_an_attempt_killed_while_it_replaces_predictions_leaves_no_record_of_the_old_ones(attempt, tmp_path):
    """Else the old bundle's record would vouch for what the new one wrote."""
    attempt()
    record = tmp_path / "out/.records/raw_0.json"

    def load():
        predictor = predictor_of(experiment("m.csv"))
        object.__setattr__(predictor, "predict", lambda image: (_ for _ in ()).throw(KeyboardInterrupt))
        return predictor

    with pytest.raises(KeyboardInterrupt):
        attempt(made_by=MAKER | {"bundle": "b" * 64}, load=load)
    assert not record.exists()
    assert list(attempt()["kept"]) == [False, True, False]


def test_a_record_says_of_what_and_by_what(attempt, tmp_path):
    attempt()
    record = json.loads((tmp_path / "out/.records/raw_1.json").read_text())
    assert record["path"] == str(tmp_path / "raw_1.ome.tif") and record["bundle"] == "a" * 64
    assert set(record["outputs"]) == {"seg/raw_1.ome.tif", "dist/raw_1.ome.tif"}


def test_a_folder_with_files_of_others_is_not_claimed(tmp_path):
    (tmp_path / "seg").mkdir()
    (tmp_path / "seg/a.ome.tif").write_bytes(b"precious")
    with pytest.raises(ConfigError, match="no folder of earlier predictions"):
        OutputFolder(str(tmp_path)).claim(["seg/a.ome.tif"])
