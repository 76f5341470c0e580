"""Edges count, offsets do not."""

import pytest
import torch

from cyto_dl.model.losses import GradientLoss

loss = GradientLoss()


def test_a_step_costs_its_height_at_its_place_alone():
    target = torch.zeros(1, 1, 3, 5)
    prediction = target.clone()
    prediction[..., 2:] = 4.0
    # along X one of the four differences in each line is 4; along Y all are 0; mean of the two axes
    assert loss(prediction, target).item() == (4 / 4 + 0) / 2


def test_an_offset_of_the_whole_image_costs_nothing(pair):
    _, target = pair
    assert loss(target + 3, target).item() == pytest.approx(0, abs=1e-12)  # rounding of double precision


def test_an_edge_of_the_wrong_sign_costs_twice_the_missing_one(pair):
    _, target = pair
    torch.testing.assert_close(loss(-target, target), 2 * loss(torch.zeros_like(target), target))


def test_the_gradient_is_right(pair):
    prediction, target = pair
    assert torch.autograd.gradcheck(lambda prediction: loss(prediction, target), prediction)


def test_an_axis_of_one_pixel_is_left_out():
    plane, other = torch.rand(2, 1, 1, 4, 4)
    stack = loss(plane[:, :, None], other[:, :, None])
    torch.testing.assert_close(stack, loss(plane, other))
    assert loss(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)).item() == 0
