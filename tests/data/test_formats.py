"""Readers of file formats: axes, selections and damage."""

import numpy as np
import pytest
import tifffile
from PIL import Image as Picture

from cyto_dl.data.image import describe_image, read_image, write_image
from cyto_dl.errors import ImageError

STACK_TZCYX = np.arange(2 * 3 * 4 * 8 * 10, dtype=np.uint16).reshape(2, 3, 4, 8, 10)


@pytest.fixture
def stack(tmp_path):
    path = tmp_path / "stack.ome.tif"
    tifffile.imwrite(path, STACK_TZCYX, ome=True, metadata={"axes": "TZCYX"}, photometric="minisblack")
    return path


def test_channels_timepoint_and_plane_are_those_of_the_file(stack):
    image = read_image(stack, spatial_dims=2, channels=[3, 1], z=2, timepoint=1)
    np.testing.assert_array_equal(image.array, STACK_TZCYX[1, 2, [3, 1]])


def test_a_stack_is_read_with_its_channels_first(stack):
    image = read_image(stack, spatial_dims=3, timepoint=0)
    np.testing.assert_array_equal(image.array, STACK_TZCYX[0].swapaxes(0, 1))
    assert image.array.dtype == np.uint16


def test_only_the_pages_that_are_asked_for_are_read(tmp_path):
    path = tmp_path / "stack.ome.tif"
    write_image(path, np.random.default_rng(0).integers(0, 255, (1, 3, 32, 32), dtype=np.uint8))
    with tifffile.TiffFile(path) as tif:
        begin, length = tif.pages[2].dataoffsets[0], tif.pages[2].databytecounts[0]
    content = bytearray(path.read_bytes())
    content[begin : begin + length] = bytes(length)  # no valid compressed data any more
    path.write_bytes(content)
    assert read_image(path, spatial_dims=2, z=1).array.any()
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(path, spatial_dims=2, z=2)


def test_scenes_are_chosen_by_number_or_name(tmp_path):
    path = tmp_path / "scenes.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        for number, name in enumerate(["left", "right"]):
            writer.write(np.full((8, 8), number, np.uint8), metadata={"axes": "YX", "Name": name})
    assert read_image(path, spatial_dims=2, scene=1).array.max() == 1
    assert read_image(path, spatial_dims=2, scene="left").array.max() == 0
    with pytest.raises(ImageError, match=r"scenes\.ome\.tif.*several scenes.*0 \(left\), 1 \(right\)"):
        read_image(path, spatial_dims=2)
    with pytest.raises(ImageError, match="no scene 'middle'"):
        read_image(path, spatial_dims=2, scene="middle")


def test_a_tiff_of_which_only_the_first_bytes_are_there_holds_no_image(tmp_path):
    path = tmp_path / "begun.tif"
    path.write_bytes(b"II*\0\x08")  # the header's first bytes: a copy that was broken off
    with pytest.raises(ImageError, match=r"begun\.tif.*damaged"):
        read_image(path, spatial_dims=2)
    path.write_bytes(b"II*\0broken")  # it says that its first page begins beyond its end
    with pytest.raises(ImageError, match=r"begun\.tif: the file holds no image\. Is it damaged"):
        read_image(path, spatial_dims=2)


def test_pixel_size_of_an_imagej_stack_is_in_micrometres_and_zyx(tmp_path):
    path = tmp_path / "imagej.tif"
    metadata = {"axes": "ZYX", "spacing": 500, "unit": "nm"}
    tifffile.imwrite(path, np.zeros((3, 8, 10), np.uint8), imagej=True, resolution=(0.01, 0.005), metadata=metadata)
    assert read_image(path, spatial_dims=3).spacing_um == pytest.approx((0.5, 0.2, 0.1))


def test_pixel_size_in_another_unit_of_ome_is_converted(tmp_path):
    path = tmp_path / "nanometres.ome.tif"
    metadata = {"axes": "YX", "PhysicalSizeX": 100, "PhysicalSizeXUnit": "nm"}
    metadata |= {"PhysicalSizeY": 0.2, "PhysicalSizeYUnit": "µm"}
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8), ome=True, metadata=metadata)
    assert read_image(path, spatial_dims=2).spacing_um == pytest.approx((0.2, 0.1))


def test_an_image_with_broken_metadata_is_read_without_a_pixel_size(tmp_path):
    path = tmp_path / "broken.ome.tif"
    write_image(path, np.ones((1, 8, 10), np.uint8), spacing_um=(0.2, 0.1))
    path.write_bytes(path.read_bytes().replace(b'PhysicalSizeX="0.1"', b'PhysicalSizeX=<0.1"'))
    image = read_image(path, spatial_dims=2)
    assert (image.array.shape, image.spacing_um) == ((1, 8, 10), None)


def test_resolution_without_a_unit_of_length_is_no_pixel_size(tmp_path):
    path = tmp_path / "inches.tif"
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8), resolution=(72, 72), resolutionunit="INCH")
    assert read_image(path, spatial_dims=2).spacing_um is None


def test_rgb_samples_are_channels(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (8, 10, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "rgb.tif", colours, photometric="rgb")
    Picture.fromarray(colours).save(tmp_path / "rgb.png")
    for name in "rgb.tif", "rgb.png":
        np.testing.assert_array_equal(read_image(tmp_path / name, spatial_dims=2).array, colours.transpose(2, 0, 1))
        green = read_image(tmp_path / name, spatial_dims=2, channels=1)
        np.testing.assert_array_equal(green.array, colours[None, :, :, 1])


def test_a_palette_picture_gives_its_indices(tmp_path):
    labels = np.array([[0, 1], [2, 3]], np.uint8)
    picture = Picture.fromarray(labels)
    picture.putpalette([255, 0, 0] * 4)
    picture.save(tmp_path / "labels.png")
    np.testing.assert_array_equal(read_image(tmp_path / "labels.png", spatial_dims=2).array, labels[None])


@pytest.mark.parametrize(("mode", "dtype"), [("1", np.uint8), ("L", np.uint8), ("I;16", np.uint16)])
def test_pictures_say_the_dtype_that_they_are_read_with(tmp_path, mode, dtype):
    path = tmp_path / "picture.png"
    Picture.new(mode, (10, 8), 1).save(path)
    assert describe_image(path, spatial_dims=2).dtype == np.dtype(dtype)
    assert read_image(path, spatial_dims=2).array.dtype == dtype
    assert read_image(path, spatial_dims=2).array.shape == (1, 8, 10)


@pytest.mark.parametrize(
    ("shape", "spatial_dims", "expected"),
    [
        ((8, 10), 2, (1, 8, 10)),
        ((3, 8, 10), 2, (3, 8, 10)),
        ((3, 8, 10), 3, (1, 3, 8, 10)),
        ((2, 3, 8, 10), 3, (2, 3, 8, 10)),
    ],
)
def test_axes_without_a_name_are_z_before_channels_for_volumes_and_channels_for_planes(
    tmp_path, shape, spatial_dims, expected
):
    array = np.random.default_rng(0).random(shape).astype(np.float32)
    np.save(tmp_path / "array.npy", array)
    tifffile.imwrite(tmp_path / "array.tif", array, photometric="minisblack")
    for name in "array.npy", "array.tif":
        image = read_image(tmp_path / name, spatial_dims=spatial_dims)
        np.testing.assert_array_equal(image.array, array.reshape(expected))


def test_a_plane_of_an_unnamed_stack_can_be_picked(tmp_path):
    array = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    np.save(tmp_path / "stack.npy", array)
    np.testing.assert_array_equal(read_image(tmp_path / "stack.npy", spatial_dims=2, z=1).array, array[None, 1])


def test_npy_files_with_python_objects_are_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match=r"objects\.npy"):
        read_image(tmp_path / "objects.npy", spatial_dims=2)


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".png", ".jpg", ".npy"])
@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.9])
def test_a_file_that_was_cut_off_is_refused_by_name(tmp_path, suffix, share):
    path = tmp_path / f"image{suffix}"
    array = np.random.default_rng(0).integers(0, 255, (2, 32, 32), dtype=np.uint8)
    match suffix:
        case ".ome.tif":
            write_image(path, array)
        case ".tif":
            tifffile.imwrite(path, array, photometric="minisblack")
        case ".npy":
            np.save(path, array)
        case _:
            Picture.fromarray(array[0]).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ImageError, match=f"image{suffix}"):
        read_image(path, spatial_dims=2)


def test_an_ome_tiff_without_its_last_bytes_is_refused_when_it_is_described(tmp_path):
    path = tmp_path / "image.ome.tif"
    write_image(path, np.random.default_rng(0).integers(0, 255, (2, 5, 32, 32), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-20])  # the names of the axes stand at the end
    with pytest.raises(ImageError, match="damaged or cut off"):
        describe_image(path, spatial_dims=3)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate"])
def test_lossless_compressions_of_other_programs_are_read(tmp_path, compression):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 10), dtype=np.uint8)
    Picture.fromarray(pixels).save(tmp_path / "image.tif", compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "image.tif", spatial_dims=2).array, pixels[None])
