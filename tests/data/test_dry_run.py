"""Transforms that need their target are refused before the training, by name."""

import pytest
from monai.transforms import (
    CenterSpatialCropd,
    CropForegroundd,
    DivisiblePadd,
    MaskIntensityd,
    NormalizeIntensityd,
    Resized,
    ScaleIntensityd,
)

from cyto_dl.data.dry_run import check_without_targets
from cyto_dl.data.stages import Stages
from cyto_dl.data.transforms import ReadImaged
from cyto_dl.errors import ConfigError


def check(*preprocess, spatial_dims=2):
    return check_without_targets(Stages((ReadImaged(["raw", "seg"], spatial_dims),), preprocess, ()), "raw")


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (CropForegroundd(["raw", "seg"], source_key="seg"), "CropForegroundd"),
        (MaskIntensityd("raw", mask_key="seg"), "MaskIntensityd"),
    ],
)
def test_a_transform_that_fails_without_its_target_is_refused_by_name(transform, name, spatial_dims):
    with pytest.raises(ConfigError, match=f"{name} needs a target, but at predict time there are none.*seg"):
        check(ScaleIntensityd("raw"), transform, spatial_dims=spatial_dims)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_transforms_that_do_without_a_target_are_accepted_and_their_geometry_is_known(spatial_dims):
    assert check(NormalizeIntensityd(["raw"]), ScaleIntensityd("seg"), spatial_dims=spatial_dims)
    assert not check(Resized(["raw", "seg"], [8] * spatial_dims), spatial_dims=spatial_dims)
    check(CropForegroundd(["raw", "seg"], source_key="raw"), spatial_dims=spatial_dims)


def test_a_transform_that_fails_on_a_tiny_image_with_target_too_is_left_to_the_real_images():
    assert not check(NormalizeIntensityd("raw", subtrahend=[1, 2, 3], channel_wise=True), DivisiblePadd("raw", 32))


def test_what_changes_the_size_only_of_large_images_is_said_to_keep_it():
    assert check(CenterSpatialCropd(["raw", "seg"], [64, 64]))  # why patches are checked again when they are cut
