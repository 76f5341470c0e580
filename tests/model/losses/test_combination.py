"""Several losses as one."""

import pytest
import torch
from monai.losses import DiceLoss, SSIMLoss
from torch import nn

from cyto_dl.model.losses import GradientLoss, WeightedSum
from cyto_dl.model.tasks import activation_of_loss


def test_it_is_the_sum_of_the_losses_times_their_weights(pair):
    both = WeightedSum([nn.L1Loss(), GradientLoss()], [0.5, 2])
    torch.testing.assert_close(both(*pair), 0.5 * nn.L1Loss()(*pair) + 2 * GradientLoss()(*pair))


def test_the_gradient_is_right(pair):
    prediction, target = pair
    both = WeightedSum([nn.MSELoss(), GradientLoss()], [0.5, 2])
    assert torch.autograd.gradcheck(lambda prediction: both(prediction, target), prediction)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_mix_of_the_docstring_is_least_for_the_target_itself(spatial_dims):
    target = torch.randn(2, 1, *[16] * spatial_dims, generator=torch.Generator().manual_seed(0))
    mix = WeightedSum([nn.L1Loss(), SSIMLoss(spatial_dims=spatial_dims, data_range=4)], [0.16, 0.84])
    assert mix(target, target).item() == pytest.approx(0, abs=1e-5)  # 1 - SSIM of single precision
    assert mix(target + 0.5, target) > 0.05


def test_the_activation_is_that_of_its_losses():
    assert activation_of_loss(WeightedSum([nn.L1Loss(), GradientLoss()], [1, 1])) == "identity"
    assert activation_of_loss(WeightedSum([DiceLoss(sigmoid=True), nn.BCEWithLogitsLoss()], [1, 1])) == "sigmoid"


@pytest.mark.parametrize(("losses", "weights"), [([], []), ([nn.L1Loss()], [1, 2])])
def test_every_loss_needs_a_weight(losses, weights):
    with pytest.raises(ValueError, match="one weight per loss"):
        WeightedSum(losses, weights)
