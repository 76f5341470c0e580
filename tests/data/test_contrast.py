"""Images without contrast are named once, and MONAI's warning without a name is not shown."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.transforms import NormalizeIntensityd, ScaleIntensityRangePercentilesd

from cyto_dl.data.transforms import run_transforms

SHAPE = {2: (300, 300), 3: (20, 100, 100)}  # more pixels than are looked at first
SCALE = ScaleIntensityRangePercentilesd("raw", lower=1, upper=99.8, b_min=0, b_max=1, clip=True, channel_wise=True)


def warnings_about(caplog, *images, transform=SCALE, path):
    caplog.set_level(logging.WARNING)
    for image in images:
        run_transforms([transform], {"raw": torch.as_tensor(image)}, path=path)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("num_bright", [0, 5])
def test_an_image_that_is_flat_but_for_a_few_pixels_is_named_once(caplog, spatial_dims, num_bright):
    image = np.full((1, *SHAPE[spatial_dims]), 7, np.float32)
    image.flat[:num_bright] = 5000
    path = f"flat_{spatial_dims}_{num_bright}.tif"
    (said,) = warnings_about(caplog, image, image, path=path)
    assert said.startswith(f"{path}: nearly all pixels of 'raw' have the value 7")


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_every_channel_is_looked_at_by_itself_where_it_is_scaled_by_itself(caplog, spatial_dims):
    image = np.random.default_rng(0).random((2, *SHAPE[spatial_dims]), np.float32)
    assert warnings_about(caplog, image, path=f"good_{spatial_dims}.tif") == []
    image[1] = 3
    (said,) = warnings_about(caplog, image, path=f"channel_{spatial_dims}.tif")
    assert "have the value 3" in said


def test_contrast_between_the_pixels_that_are_looked_at_first_counts(caplog):
    image = np.zeros((1, 512, 512), np.float32)
    image[..., 1::2] = np.arange(256)  # of four pixels in a row the first is looked at
    assert warnings_about(caplog, image, path="stripes.tif") == []


def test_nothing_is_said_where_no_percentiles_are_used(caplog):
    image = np.ones((1, 8, 8), np.float32)
    assert warnings_about(caplog, image, transform=NormalizeIntensityd("raw"), path="constant.tif") == []
    run_transforms([SCALE], {"seg": torch.as_tensor(image)} | {"raw": torch.rand(1, 8, 8)}, path="other.tif")
    assert caplog.records == []


def test_monais_warning_is_not_shown():
    code = (
        "import torch, tests.data.test_contrast as here\n"
        "here.run_transforms([here.SCALE], {'raw': torch.ones(1, 8, 8)}, path='flat.tif')"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    assert "Divide by zero" not in done.stderr
    assert "flat.tif: nearly all pixels" in done.stderr  # python shows warnings of loggers that nobody set up
