"""The foreground counts more."""

import pytest
import torch
from torch import nn

from cyto_dl.model.losses import ForegroundMSELoss


def test_with_the_weight_one_it_is_the_mean_squared_error(pair):
    torch.testing.assert_close(ForegroundMSELoss(0.5, weight=1)(*pair), nn.MSELoss()(*pair))


def test_it_is_the_weighted_mean_of_the_squared_errors(pair):
    prediction, target = pair
    squares, foreground = (prediction - target) ** 2, target > 0.5
    expected = (7 * squares[foreground].sum() + squares[~foreground].sum()) / (
        7 * foreground.sum() + (~foreground).sum()
    )
    torch.testing.assert_close(ForegroundMSELoss(0.5, weight=7)(prediction, target), expected)


@pytest.mark.parametrize("target", [torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)], ids=["background", "foreground"])
def test_an_image_of_one_kind_has_the_mean_squared_error(target):
    prediction = target + 0.5
    assert ForegroundMSELoss(0.5, weight=7)(prediction, target).item() == 0.25


def test_the_gradient_is_right(pair):
    prediction, target = pair
    loss = ForegroundMSELoss(0.5, weight=7)
    assert torch.autograd.gradcheck(lambda prediction: loss(prediction, target), prediction)


def test_a_weight_of_zero_is_refused():
    with pytest.raises(ValueError, match="must be above 0"):
        ForegroundMSELoss(0.5, weight=0)
