"""`ReadImaged` and running transforms: tensors that know their pixel size, errors that name their file."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Lambdad, Spacingd, SpatialCropd, ToTensord

from cyto_dl.data.image import write_image
from cyto_dl.data.transforms import ReadImaged, run_transforms
from cyto_dl.errors import ImageError


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_read_image_is_a_float_tensor_that_knows_its_pixel_size_and_file(tmp_path, spatial_dims):
    array = np.random.default_rng(0).integers(0, 2**16, (2, 4, 8, 10)[-spatial_dims - 1 :], dtype=np.uint16)
    spacing_um = (0.5, 0.2, 0.1)[-spatial_dims:]
    path = tmp_path / "image.ome.tif"
    write_image(path, array, spacing_um=spacing_um)
    raw = ReadImaged("raw", spatial_dims)({"raw": str(path), "row": "m.csv:2"})["raw"]
    assert isinstance(raw, MetaTensor)
    assert raw.dtype == torch.float32
    np.testing.assert_array_equal(raw.numpy(), array)
    assert raw.pixdim[:spatial_dims].tolist() == list(spacing_um)
    assert raw.meta["spacing_um"] == spacing_um
    assert raw.meta["path"] == str(path)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_resampling_to_another_pixel_size_works_on_what_was_read(tmp_path, spatial_dims):
    path = tmp_path / "image.ome.tif"
    write_image(path, np.ones((1, *[8] * spatial_dims), np.uint8), spacing_um=[0.2] * spatial_dims)
    item = ReadImaged("raw", spatial_dims)({"raw": path})
    resampled = Spacingd("raw", pixdim=[0.1] * spatial_dims)(item)["raw"]
    assert resampled.shape[1:] == torch.Size([15] * spatial_dims)  # MONAI keeps the centres of the corner voxels
    assert resampled.pixdim[:spatial_dims].tolist() == pytest.approx([0.1] * spatial_dims)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_arrays_in_memory_gain_a_channel_and_are_not_changed(kind):
    array = kind(np.arange(80, dtype=np.float32).reshape(8, 10))
    raw = ReadImaged("raw", 2)({"raw": array})["raw"]
    assert raw.shape == (1, 8, 10)
    raw += 1
    assert array[0, 0] == 0


def test_keys_that_are_not_there_are_skipped_only_on_request():
    row = {"raw": np.zeros((8, 10))}
    assert set(ReadImaged(["raw", "seg"], 2, allow_missing_keys=True)(row)) == {"raw"}
    with pytest.raises(KeyError):
        ReadImaged(["raw", "seg"], 2)(row)


def test_another_number_of_channels_than_expected_names_the_file_and_the_key(tmp_path):
    write_image(tmp_path / "image.ome.tif", np.zeros((3, 8, 10), np.uint8))
    reader = ReadImaged("raw", 2, channels=[0, 2], num_channels=1)
    with pytest.raises(ImageError, match=r"image\.ome\.tif: 'raw' has 2 channels, but .* expects 1.*raw_im"):
        reader({"raw": str(tmp_path / "image.ome.tif")})


def test_a_value_that_is_no_image_is_named():
    with pytest.raises(ImageError, match=r"m\.csv:4 'raw': an image is a path or an array, but this is a float"):
        ReadImaged("raw", 2)({"raw": 1.5, "row": "m.csv:4"})


def fail(_):
    raise ValueError("no such thing")


@pytest.mark.parametrize("nested", [False, True])
def test_a_failing_transform_is_named_with_the_file(nested):
    transform = Lambdad("raw", fail)
    transforms = [Compose([ToTensord("raw"), transform])] if nested else [transform]
    with pytest.raises(ImageError, match=r"image\.tif: the transform \w+ failed \(ValueError: no such thing\)"):
        run_transforms(transforms, {"raw": torch.zeros(1, 8, 8)}, path="image.tif")


def test_an_error_of_ours_comes_through_monais_wrappers(tmp_path):
    transforms = [Compose([Compose([ReadImaged("raw", 2)])])]
    with pytest.raises(ImageError, match=r"^[^ ]*nothing\.tif: the file does not exist"):
        run_transforms(transforms, {"raw": tmp_path / "nothing.tif"}, path="row")


def test_a_transform_that_makes_several_items_is_followed_by_the_next_on_each():
    def twice(item):
        return [item, item]

    crop = SpatialCropd("raw", roi_start=[0, 0], roi_end=[2, 2])
    items = run_transforms([twice, crop], {"raw": torch.zeros(1, 8, 8)}, path="image.tif")
    assert [tuple(item["raw"].shape) for item in items] == [(1, 2, 2), (1, 2, 2)]
