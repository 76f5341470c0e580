import json

import numpy as np
import pytest
import zarr

from cyto_dl.data.image import describe_image, read_image
from cyto_dl.data.ome_zarr import write_ome_zarr
from cyto_dl.errors import ImageError
from cyto_dl.inference.batch import image_files, unique_stems

SPACING = (0.5, 0.25, 0.2)


@pytest.fixture(params=[2, 3])
def dims(request):
    return request.param


@pytest.fixture
def numbers():
    return lambda shape: np.random.default_rng(0).integers(0, 60000, shape, np.uint16)


def multiscales(axes, scale, *, unit="micrometer", **others):
    named = [{"name": axis, "type": "space", "unit": unit} if axis in "zyx" else {"name": axis} for axis in axes]
    level = {"path": "full", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    return {"multiscales": [{"axes": named, "datasets": [level], **others}]}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "float32", "bool"])
def test_a_written_image_is_read_again_with_its_pixel_size(tmp_path, numbers, dims, dtype):
    array = numbers((2, 5, 33, 600)[-dims - 1 :] if dims == 3 else (2, 33, 600)).astype(dtype)
    write_ome_zarr(tmp_path / "a.ome.zarr", array, spacing_um=SPACING[-dims:])
    image = read_image(tmp_path / "a.ome.zarr", spatial_dims=dims)
    np.testing.assert_array_equal(image.array, array)
    assert image.array.dtype == array.dtype
    assert image.spacing_um == SPACING[-dims:]
    assert [path.name for path in tmp_path.iterdir()] == ["a.ome.zarr"]


@pytest.mark.parametrize("version", [2, 3])
def test_channel_plane_and_time_are_picked_in_both_versions_of_the_format(tmp_path, numbers, version):
    array = numbers((3, 2, 4, 20, 30))
    document = multiscales("tczyx", [1.0, 1.0, 500.0, 250.0, 250.0], unit="nanometer")
    attributes = {"ome": document | {"version": "0.5"}} if version == 3 else document
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=version, attributes=attributes)
    group.create_array("full", data=array, chunks=(1, 1, 1, 16, 16))
    image = read_image(tmp_path / "a.zarr", spatial_dims=2, channels=1, z=2, timepoint=0)
    np.testing.assert_array_equal(image.array, array[0, 1:2, 2])
    assert image.spacing_um == (0.25, 0.25)
    stack = read_image(tmp_path / "a.zarr", spatial_dims=3, timepoint=2)
    np.testing.assert_array_equal(stack.array, array[2])
    assert stack.spacing_um == (0.5, 0.25, 0.25)


def test_only_the_chunks_that_are_wanted_are_read(tmp_path, numbers):
    array = numbers((2, 20, 30))
    write_ome_zarr(tmp_path / "a.ome.zarr", array, spacing_um=None)
    (tmp_path / "a.ome.zarr/0/1/0/0").write_bytes(b"damaged")  # the second channel
    image = read_image(tmp_path / "a.ome.zarr", spatial_dims=2, channels=0)
    np.testing.assert_array_equal(image.array, array[:1])
    assert image.spacing_um is None
    assert describe_image(tmp_path / "a.ome.zarr", spatial_dims=2).shape == (2, 20, 30)
    with pytest.raises(ImageError, match=r"a\.ome\.zarr"):
        read_image(tmp_path / "a.ome.zarr", spatial_dims=2)


def test_a_codec_that_runs_the_code_in_a_file_is_refused(tmp_path, numbers):
    write_ome_zarr(tmp_path / "a.ome.zarr", numbers((1, 20, 30)), spacing_um=None)
    record = tmp_path / "a.ome.zarr/0/.zarray"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"compressor": {"id": "pickle"}}))
    (tmp_path / "a.ome.zarr/0/0/0/0").write_bytes(b"cos\nabort\n(tR.")
    with pytest.raises(ImageError, match="pickle"):
        read_image(tmp_path / "a.ome.zarr", spatial_dims=2)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "multiscales"),
        ({"plate": {}}, "multiscales"),
        (multiscales("wyx", [1, 1, 1]), "readable are"),
        ({"multiscales": [{"axes": ["y", "x"], "datasets": [{"path": "absent"}]}]}, "cannot be read"),
        ({"multiscales": [{"axes": ["y", "x"], "datasets": [{"path": "../secret"}]}]}, "cannot be read"),
    ],
)
def test_what_is_no_ome_zarr_is_refused_with_its_name(tmp_path, numbers, attributes, message):
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2, attributes=attributes)
    group.create_array("full", data=numbers((1, 4, 4)))
    with pytest.raises(ImageError, match=message) as refused:
        read_image(tmp_path / "a.zarr", spatial_dims=2)
    assert "a.zarr" in str(refused.value)


def test_a_folder_that_is_no_zarr_and_a_file_are_refused(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "b.zarr").touch()
    with pytest.raises(ImageError, match="no OME-Zarr"):
        read_image(tmp_path / "a.zarr", spatial_dims=2)
    with pytest.raises(ImageError, match="folder"):
        read_image(tmp_path / "b.zarr", spatial_dims=2)
    with pytest.raises(ImageError, match="does not exist"):
        read_image(tmp_path / "c.zarr", spatial_dims=2)


def test_batch_prediction_takes_it_as_an_image_rather_than_a_folder(tmp_path, numbers):
    write_ome_zarr(tmp_path / "plate/a.ome.zarr", numbers((1, 4, 4)), spacing_um=None)
    path = str(tmp_path / "plate/a.ome.zarr")
    assert image_files([path]) == image_files([str(tmp_path / "plate")]) == [path]
    assert unique_stems([path]) == ["a"]
