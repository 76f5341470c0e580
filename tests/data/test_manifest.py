"""Manifests: rows with absolute paths, or everything that is wrong at once."""

import numpy as np
import pandas as pd
import pytest

from cyto_dl.data.manifest import collect_rows, read_column, read_manifest
from cyto_dl.errors import ManifestError

COLUMNS = {"raw": "image", "seg": "mask"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abcdef":
        (tmp_path / "images" / f"{name}.tif").write_bytes(b"")
    return tmp_path


def write(path, text):
    path.write_text(text)
    return path


def test_paths_start_at_the_manifests_folder_and_rows_say_their_line(folder, monkeypatch):
    lines = "image,mask,split", "images/a.tif,images/b.tif,train", "images/c.tif,images/d.tif,test"
    manifest = write(folder / "m.csv", "\n".join(lines))
    monkeypatch.chdir("/")
    rows = read_manifest(manifest, columns=COLUMNS, split_column="split")
    assert rows == {
        "train": [{"raw": f"{folder}/images/a.tif", "seg": f"{folder}/images/b.tif", "row": "m.csv:2"}],
        "test": [{"raw": f"{folder}/images/c.tif", "seg": f"{folder}/images/d.tif", "row": "m.csv:3"}],
    }
    monkeypatch.chdir(folder)
    assert read_manifest("m.csv", columns=COLUMNS, split_column="split") == rows


def test_a_folder_of_split_files_and_a_parquet_say_the_same(folder):
    table = pd.DataFrame({"image": ["images/a.tif", "images/c.tif"], "mask": ["images/b.tif", "images/d.tif"]})
    table.iloc[:1].to_csv(folder / "train.csv", index=False)
    table.iloc[1:].to_parquet(folder / "valid.parquet")
    table.assign(set=["train", "valid"]).to_parquet(folder / "all.parquet")
    split = read_manifest(folder, columns=COLUMNS, split_column=None)
    single = read_manifest(folder / "all.parquet", columns=COLUMNS, split_column="set")
    for rows in split, single:
        for row in (row for found in rows.values() for row in found):
            del row["row"]  # says where it stands, which differs
    assert split == single


def test_only_predict_does_without_targets(folder):
    write(folder / "predict.csv", "image\nimages/a.tif\n")
    assert read_manifest(folder, columns=COLUMNS, split_column=None)["predict"][0].keys() == {"raw", "row"}
    write(folder / "test.csv", "image\nimages/b.tif\n")
    with pytest.raises(ManifestError, match=r"test\.csv has no column 'mask' \(data\.columns\.seg\).* are image"):
        read_manifest(folder, columns=COLUMNS, split_column=None)


def test_targets_may_be_left_empty_in_rows_to_predict(folder):
    manifest = write(folder / "m.csv", "image,mask,split\nimages/a.tif,images/b.tif,train\nimages/c.tif,,predict\n")
    assert read_manifest(manifest, columns=COLUMNS, split_column="split")["predict"][0].keys() == {"raw", "row"}


def test_without_a_split_column_one_file_is_to_be_predicted(folder):
    manifest = write(folder / "m.csv", "image\nimages/a.tif\n")
    assert list(read_manifest(manifest, columns={"raw": "image"}, split_column=None)) == ["predict"]
    assert read_column(manifest, "image") == [f"{folder}/images/a.tif"]


def test_one_column_is_read_whether_its_files_exist_or_not(folder):
    manifest = write(folder / "m.csv", "image,mask\nimages/a.tif,\nimages/gone.tif,\n,\n")
    assert read_column(manifest, "image") == [f"{folder}/images/a.tif", f"{folder}/images/gone.tif"]
    with pytest.raises(ManifestError, match=r"m\.csv has no column 'picture'.* are image, mask"):
        read_column(manifest, "picture")
    with pytest.raises(ManifestError, match="no path in the column 'mask'"):
        read_column(manifest, "mask")


def test_everything_that_is_wrong_is_said_at_once(folder):
    manifest = write(
        folder / "m.csv",
        "image,split\nimages/a.tif,Train\nimages/x.tif,train\nimages/y.tif,train\n,valid\nimages/b.tif,\n",
    )
    with pytest.raises(ManifestError) as caught:
        read_manifest(manifest, columns=COLUMNS, split_column="split")
    message = str(caught.value)
    assert "'Train' is unknown in m.csv:2. Splits are train, valid, test, predict, spelled exactly so." in message
    assert "the split is missing in m.csv:6" in message
    assert "no column 'mask' (data.columns.seg); the columns are image, split" in message
    assert f"2 of 5 files in column 'image' do not exist, e.g. {folder}/images/x.tif (m.csv:3, m.csv:4)" in message
    assert f"Relative paths start at {folder}" in message
    assert "column 'image' has no value in m.csv:5" in message


@pytest.mark.parametrize("text", ["image,mask,split\n", "image,mask,split"])
def test_an_empty_manifest_is_refused(folder, text):
    with pytest.raises(ManifestError, match=r"m\.csv.*\n.*the manifest is empty"):
        read_manifest(write(folder / "m.csv", text), columns=COLUMNS, split_column="split")


def test_a_file_of_no_bytes_and_one_that_is_no_table_are_refused_by_name(folder):
    for name, content in ("m.csv", ""), ("m.parquet", "no parquet"):
        with pytest.raises(ManifestError, match=rf"{name}.*cannot be read"):
            read_manifest(write(folder / name, content), columns=COLUMNS, split_column="split")


def test_a_missing_split_column_is_named_with_the_columns_that_there_are(folder):
    manifest = write(folder / "m.csv", "image,mask\nimages/a.tif,images/b.tif\n")
    with pytest.raises(ManifestError, match=r"no column 'set' .*data\.split_column.*columns are image, mask"):
        read_manifest(manifest, columns=COLUMNS, split_column="set")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing.csv", "does not exist. Check data.path"),
        ("images", "holds none of train.csv"),
        ("m.xlsx", r"a .csv or a .parquet file.*Save the table as \.csv or \.parquet"),
    ],
)
def test_what_is_no_manifest_is_refused_by_name(folder, path, message):
    write(folder / "m.xlsx", "")
    with pytest.raises(ManifestError, match=f"{path}.*{message}"):
        read_manifest(folder / path, columns=COLUMNS, split_column="split")


def test_two_files_for_one_split_are_refused(folder):
    write(folder / "train.csv", "image,mask\n")
    write(folder / "train.parquet", "")
    with pytest.raises(ManifestError, match=r"both a \.csv and a \.parquet for train"):
        read_manifest(folder, columns=COLUMNS, split_column=None)


def test_other_files_of_a_folder_are_left_alone(folder):
    write(folder / "predict.csv", "image\nimages/a.tif\n")
    write(folder / "train_backup.csv", "image\nimages/b.tif\n")
    assert list(read_manifest(folder, columns={"raw": "image"}, split_column=None)) == ["predict"]


def test_addresses_in_a_bucket_stay_as_they_are(folder):
    manifest = write(folder / "m.csv", "image\ns3://bucket/a.tif\n")
    rows = read_manifest(manifest, columns={"raw": "image"}, split_column=None)
    assert rows["predict"][0]["raw"] == "s3://bucket/a.tif"


def test_rows_in_memory_may_hold_arrays():
    image = np.zeros((8, 8))
    by_split = collect_rows({"train": [{"image": image, "mask": image}]}, columns=COLUMNS, split_column=None)
    listed = collect_rows([{"image": image, "mask": image, "split": "train"}], columns=COLUMNS, split_column=None)
    assert by_split["train"][0]["raw"] is image
    assert listed["train"][0]["seg"] is image
    assert (by_split["train"][0]["row"], listed["train"][0]["row"]) == ("train[0]", "data.path[0]")


def test_a_table_in_memory_is_read_like_a_file(folder, monkeypatch):
    monkeypatch.chdir(folder)
    table = pd.DataFrame({"image": ["images/a.tif"], "mask": ["images/b.tif"], "set": ["valid"]}, index=[7])
    rows = collect_rows(table, columns=COLUMNS, split_column="set")
    assert rows["valid"][0] == {"raw": f"{folder}/images/a.tif", "seg": f"{folder}/images/b.tif", "row": "data.path[0]"}


def test_rows_in_memory_are_checked_like_a_file():
    with pytest.raises(ManifestError, match=r"'Train' is unknown in Train\[0\]"):
        collect_rows({"Train": [{"image": np.zeros((8, 8))}]}, columns={"raw": "image"}, split_column=None)
    with pytest.raises(
        ManifestError, match=r"column 'mask' has no value in data\.path\[1\]. Every row needs its target"
    ):
        collect_rows(
            [{"image": np.zeros(2), "mask": np.zeros(2), "split": "train"}, {"image": np.zeros(2), "split": "train"}],
            columns=COLUMNS,
            split_column=None,
        )


THREE = {"raw": "image", "seg": "mask", "edge": "border"}


def test_a_row_needs_one_of_its_targets_and_a_split_that_is_trained_on_needs_each(folder):
    lines = ["images/a.tif,images/b.tif,,train", "images/c.tif,,images/b.tif,train", "images/d.tif,,images/b.tif,test"]
    header = "image,mask,border,split\n"
    rows = read_manifest(write(folder / "m.csv", header + "\n".join(lines)), columns=THREE, split_column="split")
    assert [set(row) for row in rows["train"]] == [{"raw", "seg", "row"}, {"raw", "edge", "row"}]
    lines[1] = "images/c.tif, ,,train"
    with pytest.raises(ManifestError) as caught:
        read_manifest(write(folder / "m.csv", header + "\n".join(lines)), columns=THREE, split_column="split")
    assert "columns 'mask', 'border' have no value in m.csv:3. Every row needs at least one target." in str(
        caught.value
    )
    assert "column 'border' of m.csv has no value in any row of the split 'train'" in str(caught.value)


def test_a_target_whose_file_is_gone_is_not_called_empty_too(folder):
    manifest = write(folder / "m.csv", "image,mask,split\nimages/a.tif,images/gone.tif,train\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest(manifest, columns=COLUMNS, split_column="split")
    assert str(caught.value).count("\n  - ") == 1


def test_a_key_that_only_another_split_in_memory_has_is_an_empty_cell():
    image = np.zeros((8, 8))
    rows = {
        "train": [{"image": image, "mask": image, "border": image}],
        "valid": [{"image": image.copy(), "mask": image}],
        "test": [],
    }
    found = collect_rows(rows, columns=THREE, split_column=None)
    assert found["valid"][0].keys() == {"raw", "seg", "row"}
    with pytest.raises(ManifestError, match=r"valid has no column 'border' \(data\.columns\.edge\)"):
        collect_rows({"valid": rows["valid"]}, columns=THREE, split_column=None)
