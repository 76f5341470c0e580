"""SSIM is scikit-image's, and does not fail on small images."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from cyto_dl.metrics import SSIM


def images(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator)
    return target + 0.2 * torch.rand(shape, generator=generator), target


@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(7, 16), min_size=2, max_size=3))
def test_values_are_those_of_scikit_image(seed, sizes):
    prediction, target = images(1, 1, *sizes, seed=seed)
    x, y = prediction[0, 0].double().numpy(), target[0, 0].double().numpy()
    expected = structural_similarity(y, x, data_range=np.ptp(y))
    # double precision; windows are summed in another order
    assert SSIM().per_image(prediction, target).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("space", [(12, 13), (8, 9, 10)])
def test_images_and_channels_are_taken_one_by_one(space):
    prediction, target = images(3, 2, *space)
    target[:, :, ..., 0], target[:, :, ..., 1] = 0, 1  # one range for all channels
    target = target.clamp(0, 1)
    values = SSIM().per_image(prediction, target)
    each = [
        [SSIM().per_image(prediction[b : b + 1, c : c + 1], target[b : b + 1, c : c + 1]) for c in range(2)]
        for b in range(3)
    ]
    assert torch.allclose(values, torch.tensor(each, dtype=torch.float64).mean(1))


@pytest.mark.parametrize("space", [(3, 40), (5, 30, 30), (1, 30, 30), (2, 3, 4)])
def test_images_smaller_than_the_window_have_a_value(space):
    prediction, target = images(1, 1, *space)
    assert -1 <= SSIM().per_image(prediction, target).item() <= 1


def test_an_image_in_which_a_window_holds_one_pixel_is_undefined():
    assert torch.isnan(SSIM().per_image(*images(1, 1, 2, 2))).all()


def test_a_stack_of_one_plane_is_that_plane():
    prediction, target = images(1, 1, 1, 20, 20)
    assert SSIM().per_image(prediction, target).item() == pytest.approx(
        SSIM().per_image(prediction[:, :, 0], target[:, :, 0]).item()
    )


def test_an_image_is_like_itself_and_a_constant_target_is_undefined():
    _, target = images(2, 1, 20, 20)
    target[1] = 0.1
    values = SSIM().per_image(target, target)
    assert values[0].item() == pytest.approx(1)
    assert torch.isnan(values[1])


def test_a_large_offset_costs_no_digits():
    prediction, target = (torch.round(values * 100) + 60000 for values in images(1, 1, 20, 20))  # as 16-bit cameras
    expected = structural_similarity(
        target[0, 0].double().numpy(), prediction[0, 0].double().numpy(), data_range=np.ptp(target.numpy())
    )
    assert SSIM().per_image(prediction, target).item() == pytest.approx(expected, abs=1e-6)
