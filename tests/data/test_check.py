"""Checks of a manifest's images: each problem is one sentence that names row, file and key."""

import os
import shutil

import numpy as np
import pytest

from cyto_dl.data.check import (
    check_channels,
    check_depths,
    check_dtypes,
    check_leakage,
    check_patch_shape,
    check_sizes,
    describe_rows,
)
from cyto_dl.data.image import write_image

READS = {"raw": {"spatial_dims": 2, "num_channels": 1}, "seg": {"spatial_dims": 2}}


@pytest.fixture
def write(tmp_path):
    def image(name, shape=(1, 8, 10), dtype=np.uint8):
        write_image(tmp_path / f"{name}.ome.tif", np.zeros(shape, dtype))
        return str(tmp_path / f"{name}.ome.tif")

    return image


def row(number, **values):
    return {**values, "row": f"m.csv:{number}"}


def test_good_images_have_no_problems(write):
    rows = [row(2, raw=write("a"), seg=write("b")), row(3, raw=np.zeros((8, 10)), seg=np.zeros((1, 8, 10)))]
    described, problems = describe_rows(rows, READS)
    assert problems + check_channels(described) + check_sizes(described, "raw") == []
    assert [image.info.shape for image in described[1]] == [(1, 8, 10), (1, 8, 10)]


def test_every_image_that_cannot_be_used_is_named_and_the_others_are_described(write, tmp_path):
    (tmp_path / "text.tif").write_text("no image")
    rows = [
        row(2, raw=write("a"), seg=str(tmp_path / "text.tif")),
        row(3, raw=write("two", (2, 8, 10)), seg=3.5),
        row(4, raw=write("b")),  # to predict: no target
    ]
    described, problems = describe_rows(rows, READS)
    assert [[image.key for image in images] for images in described] == [["raw"], ["raw"], ["raw"]]
    assert len(problems) == 3
    assert problems[0].startswith("m.csv:2: ")
    assert "text.tif: the file cannot be read" in problems[0]
    assert "two.ome.tif: 'raw' has 2 channels, but the configuration expects 1" in problems[1]
    assert "m.csv:3 'seg': an image is a path or an array, but this is a float" in problems[2]


def test_images_with_other_channels_or_dtypes_are_named(write):
    rows = [
        row(2, raw=write("a"), seg=write("sa")),
        row(3, raw=write("b", (2, 8, 10), np.uint16), seg=write("sb", dtype=np.uint16)),
    ]
    described, _ = describe_rows(rows, {"raw": {"spatial_dims": 2}, "seg": {"spatial_dims": 2}})
    (channels,) = check_channels(described)
    assert "'raw' differ in their number of channels: 1: 1 images" in channels
    assert "b.ome.tif (m.csv:3)" in channels
    (dtypes,) = check_dtypes(described, "raw")  # labels of other dtypes are usual
    assert "'raw' differ in their dtype: uint8: 1 images" in dtypes


def test_targets_of_another_size_are_named_and_projections_are_not(write):
    reads = {"raw": {"spatial_dims": 3}, "seg": {"spatial_dims": 2}}
    stack = write("stack", (1, 5, 8, 10))
    described, _ = describe_rows(
        [row(2, raw=stack, seg=write("a")), row(3, raw=stack, seg=write("b", (1, 8, 9)))], reads
    )
    (problem,) = check_sizes(described, "raw")
    assert problem.startswith("m.csv:3: 'raw'")
    assert "has the size (5, 8, 10), but 'seg'" in problem
    assert "b.ome.tif) has (8, 9)" in problem


def test_a_target_with_more_axes_than_its_source_is_named(write):
    reads = {"raw": {"spatial_dims": 2}, "seg": {"spatial_dims": 3}}
    described, _ = describe_rows([row(2, raw=write("a"), seg=write("stack", (1, 5, 8, 10)))], reads)
    assert len(check_sizes(described, "raw")) == 1


def test_images_that_a_patch_does_not_fit_into_are_named(write):
    described, _ = describe_rows([row(2, raw=write("a")), row(3, raw=write("b", (1, 16, 16)))], READS)
    (problem,) = check_patch_shape(described, "raw", [16, 10])
    assert "m.csv:2: " in problem
    assert "size is (8, 10), but data.patch_shape is (16, 10)" in problem
    assert len(check_patch_shape(described, "raw", [4, 4, 4])) == 2


@pytest.mark.parametrize("scale", [2, [2, 2]])
def test_a_target_of_another_scale_than_was_said_is_named_with_its_source(write, scale):
    rows = [row(2, raw=write("a"), seg=write("fine", (1, 16, 20))), row(3, raw=write("b"), seg=write("c", (1, 24, 30)))]
    described, _ = describe_rows(rows, READS)
    (problem,) = check_sizes(described, "raw", {"seg": scale})
    assert problem.startswith("m.csv:3: 'raw' (")
    assert "b.ome.tif) has the size (8, 10), so with scale" in problem
    assert "(data.scales.seg) 'seg' (" in problem
    assert "c.ome.tif) must have (16, 20), but it has (24, 30). Correct scale" in problem


def test_a_scale_of_too_few_axes_is_said(write):
    described, _ = describe_rows([row(2, raw=write("a"), seg=write("b"))], READS)
    (problem,) = check_sizes(described, "raw", {"seg": [1, 2, 2]})
    assert "scale (data.scales.seg) is [1, 2, 2], but 'raw'" in problem
    assert "has 2 axes" in problem


@pytest.mark.parametrize("num_planes", [4, 6])
def test_stacks_of_another_number_of_planes_than_their_patches_are_named_where_targets_are_projections(
    write, num_planes
):
    reads = {"raw": {"spatial_dims": 3}, "seg": {"spatial_dims": 2}}
    described, _ = describe_rows([row(2, raw=write("stack", (1, 5, 8, 10)), seg=write("a"))], reads)
    assert check_patch_shape(described, "raw", [5, 4, 4]) == []
    (problem,) = check_patch_shape(described, "raw", [num_planes, 4, 4])
    assert problem.startswith("m.csv:2: ")
    assert "stack.ome.tif: the stack has 5 planes, but num_planes" in problem
    assert f"data.patch_shape) is {num_planes}. 'seg' (" in problem
    assert "a.ome.tif) is a projection" in problem


def test_stacks_that_are_deeper_than_a_window_are_counted_where_targets_are_projections(write):
    reads = {"raw": {"spatial_dims": 3}, "seg": {"spatial_dims": 2}}
    deep, flat = write("deep", (1, 7, 8, 10)), write("flat", (1, 5, 8, 10))
    rows = [row(2, raw=flat, seg=write("a")), row(3, raw=deep, seg=write("b")), row(4, raw=deep)]
    described, _ = describe_rows(rows, reads)
    assert check_depths(described, "raw", 7) == []
    (warning,) = check_depths(described, "raw", 5)
    assert warning.startswith("1 of 2 stacks have more planes than num_planes")
    assert "deep.ome.tif (m.csv:3) has 7. A projection needs all planes in one window" in warning


def test_one_image_in_two_splits_is_leakage_and_predicting_it_is_not(write, tmp_path):
    image = write("a")
    os.symlink(image, tmp_path / "link.ome.tif")
    rows = {
        "train": [row(2, raw=image), row(3, raw=image)],
        "test": [row(4, raw=str(tmp_path / "link.ome.tif"))],
        "predict": [row(5, raw=image)],
    }
    (problem,) = check_leakage(rows, source_key="raw")
    assert "several splits: train (m.csv:2: " in problem
    assert "test (m.csv:4: " in problem
    assert check_leakage({"train": rows["train"], "predict": rows["predict"]}, source_key="raw") == []


def test_copies_are_found_when_images_are_compared_by_content(write, tmp_path):
    image = write("a")
    copy = str(shutil.copy(image, tmp_path / "copy.ome.tif"))
    rows = {"train": [row(2, raw=image)], "valid": [row(3, raw=copy)]}

    def content(path):
        with open(path, "rb") as file:
            return file.read()

    assert check_leakage(rows, source_key="raw") == []
    assert len(check_leakage(rows, source_key="raw", identity=content)) == 1


def test_one_array_in_two_splits_is_leakage():
    image = np.zeros((8, 10))
    rows = {"train": [row(0, raw=image)], "valid": [row(1, raw=image)]}
    assert len(check_leakage(rows, source_key="raw")) == 1
