"""Charbonnier's loss against its closed form."""

import pytest
import torch
from torch import nn

from cyto_dl.model.losses import CharbonnierLoss


def test_it_is_the_published_formula_less_epsilon(pair):
    prediction, target = pair
    expected = torch.sqrt((prediction - target) ** 2 + 0.3**2).mean() - 0.3
    torch.testing.assert_close(CharbonnierLoss(0.3)(prediction, target), expected)


def test_far_above_epsilon_it_is_the_absolute_error(pair):
    torch.testing.assert_close(CharbonnierLoss(1e-9)(*pair), nn.L1Loss()(*pair))


def test_a_small_error_in_single_precision_keeps_its_digits():
    error = torch.tensor([[[1e-6]]])
    value = CharbonnierLoss(1e-3)(error, torch.zeros_like(error))
    # error^2 / (2 epsilon) but for a part in 10^6; sqrt(error^2 + epsilon^2) - epsilon would be 0 or 1e-10
    assert value.item() == pytest.approx(5e-10, rel=1e-5)


def test_the_gradient_is_right_also_at_a_perfect_prediction(pair):
    prediction, target = pair
    loss = CharbonnierLoss(0.1)
    assert torch.autograd.gradcheck(lambda prediction: loss(prediction, target), prediction)
    perfect = target.clone().requires_grad_()
    loss(perfect, target).backward()
    assert loss(perfect, target).item() == 0
    assert (perfect.grad == 0).all()


def test_an_epsilon_of_zero_is_refused():
    with pytest.raises(ValueError, match="must be above 0"):
        CharbonnierLoss(0)
