"""Flips and rotations of a stack and its projection."""

import numpy as np
import pytest
from monai.transforms import Compose, RandAxisFlipd, RandFlipd, RandGaussianNoised, RandRotate90d

from cyto_dl.data import DataframeDatamodule, ReadImaged
from cyto_dl.data.axes import check_axes
from cyto_dl.errors import ConfigError

BOTH = ["raw", "seg"]
PROJECTION = {"raw": 3, "seg": 2}


@pytest.mark.parametrize(
    "transform",
    [
        RandFlipd(BOTH, prob=1, spatial_axis=0),
        RandFlipd(BOTH, prob=1, spatial_axis=[-1, 1]),
        RandRotate90d(BOTH, prob=1),  # in the plane of the first two axes
        RandAxisFlipd(BOTH, prob=1),
        Compose([RandFlipd(BOTH, prob=1, spatial_axis=0)]),
    ],
)
def test_axes_counted_from_the_front_are_refused_only_where_they_mean_different_things(transform):
    with pytest.raises(ConfigError, match=r"counts axes from the front.*\('raw' 3, 'seg' 2\).*-1 is X"):
        check_axes([transform], PROJECTION)
    check_axes([transform], {"raw": 3, "seg": 3})


@pytest.mark.parametrize(
    "transform",
    [
        RandFlipd(BOTH, prob=1, spatial_axis=-1),
        RandFlipd(BOTH, prob=1),  # all axes
        RandRotate90d(BOTH, prob=1, spatial_axes=(-2, -1)),
        RandFlipd("raw", prob=1, spatial_axis=0),
        RandGaussianNoised("raw", prob=1),
        lambda item: item,
    ],
)
def test_axes_counted_from_the_end_mean_the_same_for_both_and_nothing_is_raised(transform):
    check_axes([transform], PROJECTION)  # an error would fail the test


def test_the_data_module_says_it_when_it_is_built():
    transforms = {
        "load": [ReadImaged("raw", 3), ReadImaged("seg", 2)],
        "augment": [RandFlipd(BOTH, prob=1, spatial_axis=0)],
    }
    rows = {"train": [{"raw": np.zeros((4, 8, 8)), "seg": np.zeros((8, 8))}]}
    with pytest.raises(ConfigError, match="RandFlipd counts axes from the front"):
        DataframeDatamodule(path=rows, columns={"raw": "raw", "seg": "seg"}, transforms=transforms)
