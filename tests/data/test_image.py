"""Reading and writing images: what the user asked for, or one sentence that helps."""

import re
import subprocess
import sys
import uuid

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from cyto_dl.data.image import describe_array, describe_image, read_image, select_array, write_image
from cyto_dl.errors import ImageError

SHAPES = {2: (2, 8, 10), 3: (2, 3, 8, 10)}


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "float64"])
def test_what_is_written_is_read_back_with_its_pixel_size(tmp_path, spatial_dims, dtype):
    array = np.random.default_rng(0).integers(0, 200, SHAPES[spatial_dims]).astype(dtype)
    spacing_um = (0.5, 0.108, 0.2)[-spatial_dims:]
    write_image(tmp_path / "image.ome.tif", array, spacing_um=spacing_um, channel_names=["DAPI", "a & b <µm>"])
    image = read_image(tmp_path / "image.ome.tif", spatial_dims=spatial_dims)
    np.testing.assert_array_equal(image.array, array)
    assert image.array.dtype == array.dtype
    assert image.spacing_um == spacing_um
    assert image.path == str(tmp_path / "image.ome.tif")


def test_an_image_beyond_4_gb_is_a_big_tiff(tmp_path, monkeypatch):
    monkeypatch.setattr("cyto_dl.data.image.CLASSIC_TIFF_BYTES", 1000)
    for size, is_big in [(10, False), (40, True)]:
        write_image(tmp_path / "image.ome.tif", np.zeros((1, size, size), np.uint8))
        with tifffile.TiffFile(tmp_path / "image.ome.tif") as tif:
            assert tif.is_bigtiff == is_big


def test_a_written_image_tells_nothing_of_the_machine(tmp_path):
    paths = [tmp_path / name for name in ("one.ome.tif", "two.ome.tif")]
    for path in paths:
        write_image(path, np.zeros((1, 4, 4), np.uint8))
    found = [uuid.UUID(re.search(r'UUID="([^"]+)"', tifffile.TiffFile(path).ome_metadata)[1]) for path in paths]
    assert found[0] != found[1]
    assert [each.version for each in found] == [4, 4]  # random: version 1 holds the network address and the time


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_description_is_that_of_the_image_without_reading_it(tmp_path, spatial_dims):
    path = tmp_path / "image.ome.tif"
    write_image(path, np.zeros(SHAPES[spatial_dims], np.uint16), spacing_um=[0.5] * spatial_dims)
    image = read_image(path, spatial_dims=spatial_dims, channels=1)
    info = describe_image(path, spatial_dims=spatial_dims, channels=1)
    assert (info.shape, info.dtype, info.spacing_um) == (image.array.shape, "uint16", image.spacing_um)
    assert info.num_channels_in_file == 2


def test_labels_of_64_bits_are_written_if_they_fit_and_masks_as_bytes(tmp_path):
    labels = np.array([[[0, 2**32 - 1]]], np.int64)
    write_image(tmp_path / "labels.ome.tif", labels)
    write_image(tmp_path / "mask.ome.tif", labels > 0)
    np.testing.assert_array_equal(read_image(tmp_path / "labels.ome.tif", spatial_dims=2).array, labels)
    assert read_image(tmp_path / "mask.ome.tif", spatial_dims=2).array.dtype == np.uint8
    with pytest.raises(ImageError, match="32 bits"):
        write_image(tmp_path / "large.ome.tif", labels + 1)
    assert not (tmp_path / "large.ome.tif").exists()


def test_writing_an_array_without_channel_axis_says_what_is_needed(tmp_path):
    with pytest.raises(ImageError, match=r"\(8, 10\).*CYX or CZYX"):
        write_image(tmp_path / "image.ome.tif", np.zeros((8, 10)))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"spatial_dims": 2, "channels": 4},
            r"channel 4 was asked for, but .* channels 0 to 1.*data\.transforms",
        ),
        ({"spatial_dims": 2, "channels": [0, -1]}, "channel -1"),
        ({"spatial_dims": 3}, r"spatial_dims is 3, but the file holds the axes CYX.*a 2-D image"),
        ({"spatial_dims": 2, "z": 1}, "`z` is 1, but the file has 0 to 0"),
        ({"spatial_dims": 2, "timepoint": 3}, "`timepoint` is 3, but the file has 0 to 0"),
    ],
)
def test_asking_for_what_a_file_does_not_hold_names_the_file_and_the_choices(tmp_path, asked, message):
    path = tmp_path / "image.ome.tif"
    write_image(path, np.zeros((2, 8, 10), np.uint8))
    for function in read_image, describe_image:
        with pytest.raises(ImageError, match=r"image\.ome\.tif: .*" + message):
            function(path, **asked)


def test_a_stack_read_as_a_plane_asks_which_one(tmp_path):
    write_image(tmp_path / "stack.ome.tif", np.zeros((1, 5, 8, 10), np.uint8))
    with pytest.raises(ImageError, match=r"has 5 planes.*`z`: 0 to 4"):
        read_image(tmp_path / "stack.ome.tif", spatial_dims=2)
    with pytest.raises(ImageError, match="Remove `z`"):
        read_image(tmp_path / "stack.ome.tif", spatial_dims=3, z=1)


def test_an_axis_that_has_no_place_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "many.tif", np.zeros((2, 3, 4, 8, 10), np.uint8), photometric="minisblack")
    with pytest.raises(ImageError, match=r"many\.tif.*shape \(2, 3, 4, 8, 10\)"):
        read_image(tmp_path / "many.tif", spatial_dims=2)


def test_formats_without_a_reader_and_files_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(ImageError, match=r"image\.czi: there is no reader for '\.czi'.*\.tif"):
        read_image(tmp_path / "image.czi", spatial_dims=2)
    with pytest.raises(ImageError, match=r"image\.tif: the file does not exist"):
        read_image(tmp_path / "image.tif", spatial_dims=2)


def test_a_text_file_with_the_suffix_of_an_image_is_refused_by_name(tmp_path):
    for suffix in ".tif", ".png", ".npy":
        (tmp_path / f"text{suffix}").write_text("no image")
        with pytest.raises(ImageError, match=f"text{suffix}.*cannot be read"):
            read_image(tmp_path / f"text{suffix}", spatial_dims=2)


@given(spatial_dims=st.sampled_from([2, 3]), has_channels=st.booleans(), data=st.data())
def test_arrays_in_memory_are_selected_like_files(spatial_dims, has_channels, data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=spatial_dims, max_size=spatial_dims)))
    num_channels = data.draw(st.integers(1, 3)) if has_channels else 1
    array = np.arange(num_channels * np.prod(shape)).reshape((num_channels, *shape) if has_channels else shape)
    channels = data.draw(st.none() | st.lists(st.integers(0, num_channels - 1), min_size=1))
    asked = {"name": "array", "spatial_dims": spatial_dims, "channels": channels}
    image = select_array(array, **asked)
    expected = array.reshape(num_channels, *shape)
    np.testing.assert_array_equal(image.array, expected if channels is None else expected[channels])
    assert describe_array(array, **asked).shape == image.array.shape


def test_an_empty_array_and_one_with_too_few_axes_are_refused_by_name():
    with pytest.raises(ImageError, match=r"train\[0\]: the image is empty"):
        select_array(np.zeros((0, 8)), name="train[0]", spatial_dims=2)
    with pytest.raises(ImageError, match=r"train\[0\]: the file holds"):
        select_array(np.zeros(8), name="train[0]", spatial_dims=2)


@pytest.mark.parametrize("module", ["image", "manifest", "check", "fingerprint", "prepare"])
def test_modules_that_only_look_at_files_do_not_import_torch(module):
    code = f"import sys, cyto_dl.data.{module}; print('torch' in sys.modules, 'monai' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "False"]
