"""Random mirroring: all images of a patch alike, along the axes that are named, as MONAI's flips do to pixels."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.transforms import Flip

from cyto_dl.data import RandFlipsd
from cyto_dl.data.patches import seeded

NUM_DRAWS = 400


def drawn(flips: RandFlipsd, item: dict[str, Any], seed: int) -> dict[str, Any]:
    with seeded([flips], seed):
        return flips(item)


def mirrored(before: torch.Tensor, after: torch.Tensor, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Along which of the axes an image of different pixels was mirrored, as MONAI mirrors."""
    for chosen in range(2 ** len(axes)):
        subset = tuple(axis for bit, axis in enumerate(axes) if chosen >> bit & 1)
        if torch.equal(torch.as_tensor(Flip(spatial_axis=subset)(before)) if subset else before, after):
            return subset
    raise AssertionError("not a mirror image")


@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(5, 4), (3, 5, 4)]))
def test_all_images_of_an_item_are_mirrored_along_the_same_axes(seed: int, shape: tuple[int, ...]) -> None:
    source = torch.arange(float(np.prod(shape))).reshape(1, *shape)
    finer = torch.from_numpy(np.kron(source.numpy(), np.ones((1, *(2 for _ in shape)), np.float32)))
    finer += torch.rand(finer.shape, generator=torch.Generator().manual_seed(0)) / 2
    axes = tuple(range(-len(shape), 0))
    after = drawn(RandFlipsd(["raw", "fine"], spatial_axes=axes), {"raw": source, "fine": finer}, seed)
    assert mirrored(source, after["raw"], axes) == mirrored(finer, after["fine"], axes)


def test_every_named_axis_is_mirrored_as_often_as_asked_and_no_other() -> None:
    flips = RandFlipsd("raw", spatial_axes=[-1, -3], prob=0.25)
    source = torch.arange(24.0).reshape(1, 2, 3, 4)
    found = [mirrored(source, drawn(flips, {"raw": source}, seed)["raw"], (-3, -2, -1)) for seed in range(NUM_DRAWS)]
    assert not any(-2 in axes for axes in found)
    for axis in (-1, -3):
        # 0.25 of 400 draws are 100 with a standard deviation of 8.7; five of them are one failure in a million
        assert abs(sum(axis in axes for axes in found) - 0.25 * NUM_DRAWS) < 44


def test_a_seed_repeats_itself_and_the_item_that_came_in_stays_as_it_is() -> None:
    flips, source = RandFlipsd("raw", prob=1.0), torch.arange(12.0).reshape(1, 3, 4)
    before = source.clone()
    first, second = (drawn(flips, {"raw": source, "path": "a.tif"}, 7) for _ in range(2))
    assert torch.equal(first["raw"], second["raw"]) and not torch.equal(first["raw"], source)
    assert torch.equal(source, before) and first["path"] == "a.tif"


def test_a_missing_image_is_left_out_only_where_that_is_allowed() -> None:
    item = {"raw": torch.zeros(1, 2, 2)}
    assert drawn(RandFlipsd(["raw", "seg"], allow_missing_keys=True), item, 0).keys() == {"raw"}
    with pytest.raises(KeyError, match="seg"):
        RandFlipsd(["raw", "seg"])(item)
