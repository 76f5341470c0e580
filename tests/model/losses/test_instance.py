"""The loss for objects: foreground and border distance."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

from cyto_dl.model.losses import InstanceLoss
from cyto_dl.model.tasks import activation_of_loss


@pytest.fixture(params=[2, 3])
def batch(request):
    """Logits and an encoded target, B 2 (Z) Y X, double for gradcheck."""
    generator = torch.Generator().manual_seed(request.param)
    shape = (2, 1, *(4, 5, 6)[: request.param])
    foreground = (torch.rand(shape, generator=generator) > 0.5).double()
    distance = foreground * torch.rand(shape, generator=generator, dtype=torch.double)
    logits = torch.randn(2, 2, *shape[2:], generator=generator, dtype=torch.double)
    return logits.requires_grad_(), torch.cat([foreground, distance], dim=1)


def test_it_is_dice_and_cross_entropy_of_the_foreground_and_cross_entropy_of_the_distance(batch):
    logits, target = batch
    foreground = logits[:, 0].sigmoid()
    dice = 1 - 2 * (foreground * target[:, 0]).sum() / (foreground.sum() + target[:, 0].sum())
    expected = (
        dice
        + binary_cross_entropy_with_logits(logits[:, 0], target[:, 0])
        + 3 * binary_cross_entropy_with_logits(logits[:, 1], target[:, 1])
    )
    # MONAI smooths Dice by 1e-5 in numerator and denominator
    torch.testing.assert_close(InstanceLoss(distance_weight=3)(logits, target), expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_is_right(batch):
    logits, target = batch
    assert torch.autograd.gradcheck(lambda logits: InstanceLoss()(logits, target), logits)


def test_it_is_least_where_the_sigmoid_is_the_target(batch):
    _, target = batch
    ideal = torch.logit(target, eps=1e-9)
    entropy = binary_cross_entropy(target[:, 1:], target[:, 1:])
    assert InstanceLoss()(ideal, target).item() == pytest.approx(entropy.item(), abs=1e-5)  # Dice's smoothing
    for change in (-0.5, 0.5):
        assert InstanceLoss()(ideal + change, target) > InstanceLoss()(ideal, target)


def test_a_patch_without_objects_gives_a_finite_loss_and_gradient():
    logits = torch.zeros(2, 2, 8, 8, requires_grad=True)
    InstanceLoss()(logits, torch.zeros(2, 2, 8, 8)).backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad > 0).all()  # towards background


def test_a_sure_and_wrong_output_still_has_a_gradient():
    logits = torch.full((1, 2, 8, 8), 40.0, requires_grad=True)
    InstanceLoss()(logits, torch.zeros(1, 2, 8, 8)).backward()
    assert (logits.grad[:, 1] > 1e-3).all()  # 1 / 64 pixels; a squared error would give 0


def test_the_activation_is_a_sigmoid():
    assert activation_of_loss(InstanceLoss()) == "sigmoid"
