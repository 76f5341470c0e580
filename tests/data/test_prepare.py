"""Preparing a manifest: everything that is wrong at once, or a manifest and a fingerprint."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from cyto_dl.data.image import write_image
from cyto_dl.data.manifest import read_manifest
from cyto_dl.data.prepare import prepare_data
from cyto_dl.errors import ManifestError
from cyto_dl.storage import sha256

COLUMNS = {"source_col": "raw", "target_cols": ["seg"]}


@pytest.fixture
def table(tmp_path):
    """Writes different images, 2-D or 3-D, and returns their table with relative paths."""

    def make(spatial_dims=2, num_images=6):
        rng = np.random.default_rng(0)
        rows = []
        for number in range(num_images):
            shape = (1, *[8] * spatial_dims)
            write_image(tmp_path / f"raw_{number}.ome.tif", rng.integers(0, 255, shape, dtype=np.uint8))
            write_image(tmp_path / f"seg_{number}.ome.tif", rng.integers(0, 2, shape, dtype=np.uint8))
            rows.append({"raw": f"raw_{number}.ome.tif", "seg": f"seg_{number}.ome.tif", "well": f"W{number // 2}"})
        return pd.DataFrame(rows)

    return make


def prepare(table, tmp_path, **arguments):
    table.to_csv(tmp_path / "m.csv", index=False)
    return prepare_data(tmp_path / "m.csv", tmp_path / "out", **(COLUMNS | arguments))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_splits_are_made_and_the_result_can_be_trained_on_from_anywhere(table, tmp_path, spatial_dims, monkeypatch):
    fingerprint = prepare(table(spatial_dims), tmp_path, spatial_dims=spatial_dims, num_channels=1)
    written = tmp_path / "out" / "manifest.csv"
    monkeypatch.chdir("/")
    rows = read_manifest(written, columns={"raw": "raw", "seg": "seg"}, split_column="split")
    assert {split: len(found) for split, found in rows.items()} == fingerprint["splits"]
    assert set(rows) == {"train", "valid", "test"}
    assert fingerprint["num_images"] == 6
    assert fingerprint["manifest_sha256"] == sha256(written)
    assert json.loads((tmp_path / "out" / "fingerprint.json").read_text()) == fingerprint
    assert list(pd.read_csv(written)["well"]) == ["W0", "W0", "W1", "W1", "W2", "W2"]  # other columns are kept


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_channels_may_be_chosen_out_of_one_file_for_source_and_target(tmp_path, spatial_dims):
    for number in range(6):
        image = np.full((3, *[8] * spatial_dims), number, np.uint8) + np.arange(0, 300, 100, dtype=np.uint8).reshape(
            3, *[1] * spatial_dims
        )
        write_image(tmp_path / f"{number}.ome.tif", image)
    table = pd.DataFrame({"raw": [f"{number}.ome.tif" for number in range(6)]}).assign(seg=lambda rows: rows["raw"])
    chosen = {"spatial_dims": spatial_dims, "source_channel": [2], "target_channel": [1, 0], "num_channels": 1}
    columns = prepare(table, tmp_path, **chosen)["columns"]
    assert (columns["raw"]["num_channels"], columns["seg"]["num_channels"]) == ([1], [2])
    assert (columns["raw"]["intensity"]["mean"], columns["seg"]["intensity"]["mean"]) == (202.5, 52.5)

    with pytest.raises(ManifestError, match="channel 3"):
        prepare(table, tmp_path, **chosen | {"source_channel": [3]})


def test_made_splits_keep_groups_together_and_depend_on_the_seed_alone(table, tmp_path):
    prepare(table(), tmp_path, group_column="well")
    first = pd.read_csv(tmp_path / "out" / "manifest.csv")
    assert (first.groupby("well")["split"].nunique() == 1).all()
    prepare(table(), tmp_path, group_column="well")
    assert pd.read_csv(tmp_path / "out" / "manifest.csv").equals(first)


def test_splits_that_are_there_are_kept(table, tmp_path):
    splits = ["train", "train", "train", "valid", "test", "predict"]
    fingerprint = prepare(table().assign(subset=splits), tmp_path, split_column="subset")
    assert fingerprint["splits"] == {"train": 3, "valid": 1, "test": 1, "predict": 1}
    assert list(pd.read_csv(tmp_path / "out" / "manifest.csv")["split"]) == splits


def test_a_folder_of_split_files_becomes_one_manifest(table, tmp_path):
    rows = table()
    folder = tmp_path / "splits"
    folder.mkdir()
    rows[["raw", "seg"]] = str(tmp_path) + "/" + rows[["raw", "seg"]]
    for split, part in ("train", rows[:4]), ("valid", rows[4:5]), ("predict", rows[5:][["raw"]]):
        part.to_csv(folder / f"{split}.csv", index=False)
    fingerprint = prepare_data(folder, tmp_path / "out", **COLUMNS)
    assert fingerprint["splits"] == {"train": 4, "valid": 1, "predict": 1}


def test_targets_may_be_projections_of_a_stack(table, tmp_path):
    rows = table(3)
    for number in range(6):
        write_image(tmp_path / f"seg_{number}.ome.tif", np.zeros((1, 8, 8), np.uint8))
    assert prepare(rows, tmp_path, spatial_dims=3)["columns"]["seg"]["size"]["max"] == [8, 8]


def test_everything_that_is_wrong_is_said_at_once_and_nothing_is_written(table, tmp_path):
    rows = table().assign(split=["train", "Train", "train", "valid", "test", "test"])
    (tmp_path / "raw_2.ome.tif").write_bytes((tmp_path / "raw_2.ome.tif").read_bytes()[:-100])
    write_image(tmp_path / "raw_3.ome.tif", np.zeros((2, 8, 8), np.uint8))
    write_image(tmp_path / "seg_4.ome.tif", np.zeros((1, 8, 9), np.uint8))
    shutil.copy(tmp_path / "raw_0.ome.tif", tmp_path / "raw_5.ome.tif")
    rows.loc[1, "seg"] = "nothing.tif"
    with pytest.raises(ManifestError) as caught:
        prepare(rows, tmp_path, num_channels=1)
    message = str(caught.value)
    for sentence in (
        "the split 'Train' is unknown in m.csv:3",
        "1 of 6 files in column 'seg' do not exist, e.g. " + str(tmp_path / "nothing.tif"),
        f"m.csv:4: {tmp_path}/raw_2.ome.tif: the file is damaged or cut off",
        f"m.csv:5: {tmp_path}/raw_3.ome.tif: 'raw' has 2 channels, but the configuration expects 1",
        "the images of 'raw' differ in their number of channels",
        "m.csv:6: 'raw' (" + str(tmp_path / "raw_4.ome.tif") + ") has the size (8, 8), but 'seg'",
        "the same image is in several splits: train (m.csv:2",
    ):
        assert sentence in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda rows: rows[:0], {}, "the manifest is empty"),
        (lambda rows: rows[:2], {}, "2 images or groups cannot be split"),
        (lambda rows: rows.drop(columns="seg"), {}, "no column 'seg'.*columns are raw, well"),
        (lambda rows: rows.assign(split="train"), {}, "no rows of the split 'valid'"),
        (lambda rows: rows, {"group_column": "plate"}, r"no column 'plate' \(group_column\)"),
        (lambda rows: rows.assign(well=None), {"group_column": "well"}, "'well' .* has no value in 6 of 6 rows"),
        (
            lambda rows: rows.assign(split=["train", "valid"] * 3),
            {"group_column": "well"},
            "group 'W0' .* train, valid",
        ),
        (lambda rows: rows, {"spatial_dims": 3}, "a 2-D image"),
    ],
)
def test_what_cannot_be_prepared_is_said(table, tmp_path, change, arguments, message):
    with pytest.raises(ManifestError, match=message):
        prepare(change(table()), tmp_path, **arguments)
