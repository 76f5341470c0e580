"""Preparing a manifest: everything that is wrong at once, or a manifest and a fingerprint."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from cyto_dl.data.image import read_image, write_image
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
    assert fingerprint["num_images"] == len(rows["train"])  # what a model learns from; the others judge it
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
    written = pd.read_csv(tmp_path / "out" / "manifest.csv")
    trained = written.index[written["split"] == "train"].to_numpy().mean()  # an image's number is added to its pixels
    means = [columns[name]["intensity"]["mean"] for name in ("raw", "seg")]
    assert means == pytest.approx([200 + trained, 50 + trained])

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


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_groups_and_copies_are_found_across_the_files_of_a_folder(table, tmp_path, suffix):
    rows = table()
    folder = tmp_path / "splits"
    folder.mkdir()
    shutil.copy(tmp_path / "raw_0.ome.tif", tmp_path / "raw_5.ome.tif")
    rows[["raw", "seg"]] = str(tmp_path) + "/" + rows[["raw", "seg"]]
    for split, part in ("train", rows[:3]), ("valid", rows[3:4]), ("test", rows[4:]):
        part.to_csv(folder / f"{split}.csv", index=False) if suffix == "csv" else part.to_parquet(
            folder / f"{split}.parquet"
        )
    row = 2 if suffix == "csv" else 0  # the header is the first line of a .csv
    with pytest.raises(ManifestError) as caught:
        prepare_data(folder, tmp_path / "out", **COLUMNS, group_column="well")
    message = str(caught.value)
    assert (
        f"the group 'W1' of column 'well' is in train (train.{suffix}:{row + 2}), valid (valid.{suffix}:{row})"
        in message
    )
    assert f"train (train.{suffix}:{row}: {tmp_path}/raw_0.ome.tif), test (test.{suffix}:{row + 1}: " in message
    assert message.count("\n  - ") == 2


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_images_to_predict_and_equal_targets_are_no_leak_and_are_not_measured(table, tmp_path, spatial_dims):
    rows = table(spatial_dims).assign(split=["train", "train", "valid", "test", "predict", "predict"])
    empty = np.zeros((1, *[8] * spatial_dims), np.uint8)
    for number in range(6):
        write_image(tmp_path / f"seg_{number}.ome.tif", empty)  # many a mask is empty
    shutil.copy(tmp_path / "raw_0.ome.tif", tmp_path / "raw_4.ome.tif")
    measured = prepare(rows, tmp_path, spatial_dims=spatial_dims)
    assert measured["splits"] == {"train": 2, "valid": 1, "test": 1, "predict": 2}
    pixels = [read_image(tmp_path / f"raw_{number}.ome.tif", spatial_dims=spatial_dims).array for number in (0, 1)]
    assert measured["columns"]["raw"]["intensity"]["mean"] == pytest.approx(np.mean(pixels))


def test_a_damaged_image_is_said_with_what_is_wrong_elsewhere(table, tmp_path):
    rows = table().assign(split=["train", "train", "train", "valid", "test", "test"])
    bad = np.ones((1, 8, 8), np.float32)
    bad[0, 0, 0] = np.nan
    write_image(tmp_path / "seg_1.ome.tif", bad)
    rows.loc[5, "seg"] = "nothing.tif"
    with pytest.raises(ManifestError, match=r"(?s)nothing\.tif.*m\.csv:3: .*1 of 64 pixels of 'seg' are NaN"):
        prepare(rows, tmp_path)


def test_a_mistake_that_all_rows_share_hides_no_other(table, tmp_path):
    rows = table(num_images=30).assign(split=["train"] * 28 + ["valid", "test"])
    shutil.copy(tmp_path / "raw_0.ome.tif", tmp_path / "raw_29.ome.tif")
    with pytest.raises(ManifestError, match=r"(?s)\.\.\. and 10 more.*the same image is in several splits"):
        prepare(rows, tmp_path, num_channels=2)


def test_made_splits_share_out_every_class_and_keep_groups_together(table, tmp_path, caplog):
    rows = table(num_images=24)  # two images a well
    rows["treatment"] = ["control"] * 12 + ["drug"] * 10 + ["rare"] * 2
    arguments = {"group_column": "well", "stratify_column": "treatment", "fractions": (0.5, 0.25, 0.25)}
    prepare(rows, tmp_path, **arguments)
    first = pd.read_csv(tmp_path / "out" / "manifest.csv")
    assert (first.groupby("well")["split"].nunique() == 1).all()
    counts = pd.crosstab(first["treatment"], first["split"])
    wanted = np.outer([12, 10, 2], [0.5, 0.25, 0.25])
    assert (counts[["train", "valid", "test"]] - wanted).abs().to_numpy().max() <= 2  # one well
    assert "has no row of 1 of the 3 values of 'treatment' (stratify_column), e.g. 'rare'" in caplog.text

    prepare(rows.sample(frac=1, random_state=0), tmp_path, **arguments)
    again = pd.read_csv(tmp_path / "out" / "manifest.csv")
    assert dict(zip(again["raw"], again["split"], strict=True)) == dict(zip(first["raw"], first["split"], strict=True))


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
    rows["plate"] = [None, "P0", "P1", "P1", "P2", "P2"]
    with pytest.raises(ManifestError) as caught:
        prepare(rows, tmp_path, num_channels=1, group_column="plate", stratify_column="dose")
    message = str(caught.value)
    for sentence in (
        "the split 'Train' is unknown in m.csv:3",
        "1 of 6 files in column 'seg' do not exist, e.g. " + str(tmp_path / "nothing.tif"),
        f"m.csv:4: {tmp_path}/raw_2.ome.tif: the file is damaged or cut off",
        f"m.csv:5: {tmp_path}/raw_3.ome.tif: 'raw' has 2 channels, but the configuration expects 1",
        "the images of 'raw' differ in their number of channels",
        "m.csv:6: 'raw' (" + str(tmp_path / "raw_4.ome.tif") + ") has the size (8, 8), but 'seg'",
        "the same image is in several splits: train (m.csv:2",
        "column 'plate' (group_column) has no value in m.csv:2.",
        "the group 'P1' of column 'plate' is in train (m.csv:4), valid (m.csv:5). Keep it in one split.",
        "m.csv has no column 'dose' (stratify_column); the columns are raw, seg, well, plate.",
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
        (
            lambda rows: rows.assign(split=["train", "valid"] * 3),
            {"evaluation_split": "test"},
            r"no rows of the split 'test' \(evaluation_split\); there are train, valid",
        ),
        (lambda rows: rows, {"evaluation_split": "tset"}, r"no rows of the split 'tset' \(evaluation_split\)"),
        (lambda rows: rows, {"group_column": "plate"}, r"no column 'plate' \(group_column\)"),
        (
            lambda rows: rows.assign(well=None),
            {"group_column": "well"},
            "'well' .* no value in m.csv:2, .*:6 and 1 more",
        ),
        (
            lambda rows: rows.assign(split=["train", "valid"] * 3),
            {"group_column": "well"},
            "group 'W0' .* train .m.csv:2., valid .m.csv:3.",
        ),
        (lambda rows: rows.assign(well=" "), {"stratify_column": "well"}, r"'well' \(stratify_column\) has no value"),
        (lambda rows: rows, {"stratify_column": "dose"}, r"no column 'dose' \(stratify_column\)"),
        (lambda rows: rows, {"spatial_dims": 3}, "a 2-D image"),
    ],
)
def test_what_cannot_be_prepared_is_said(table, tmp_path, change, arguments, message):
    with pytest.raises(ManifestError, match=message):
        prepare(change(table()), tmp_path, **arguments)
