"""Only known pixels count."""

import torch
from torch import nn

from cyto_dl.model.losses import MaskedMSELoss

loss = MaskedMSELoss()


def with_holes(target):
    holes = torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    return target.masked_fill(holes, float("nan"))


def test_with_all_pixels_known_it_is_the_mean_squared_error(pair):
    torch.testing.assert_close(loss(*pair), nn.MSELoss()(*pair))


def test_the_mean_is_over_known_pixels_alone(pair):
    prediction, target = pair
    holed = with_holes(target)
    known = ~holed.isnan()
    torch.testing.assert_close(loss(prediction, holed), (prediction - target)[known].square().mean())


def test_the_gradient_is_right_and_zero_where_nothing_is_known(pair):
    prediction, target = pair
    holed = with_holes(target)
    assert torch.autograd.gradcheck(lambda prediction: loss(prediction, holed), prediction)
    loss(prediction, holed).backward()
    assert (prediction.grad[holed.isnan()] == 0).all()
    assert (prediction.grad[~holed.isnan()] != 0).all()


def test_a_target_without_a_known_pixel_has_the_loss_and_the_gradient_zero(pair):
    prediction, target = pair
    value = loss(prediction, torch.full_like(target, float("nan")))
    value.backward()
    assert value.item() == 0
    assert (prediction.grad == 0).all()


def test_a_network_that_gives_nan_has_the_loss_nan(pair):
    prediction, target = pair
    assert loss(prediction * float("nan"), with_holes(target)).isnan()
