"""One look of the discriminator gives the losses of both players."""

import pytest
import torch
from torch import nn

from cyto_dl.errors import ConfigError
from cyto_dl.model.adversary import Adversary, Pairs
from cyto_dl.model.losses.adversarial import ADVERSARIAL_LOSSES

SPACE = {2: (6, 8), 3: (4, 6, 8)}
DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])


class LinearCritic(nn.Module):
    """Scores every pixel by `weight` times its value; remembers what it saw."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.seen = []

    def forward(self, source, image):
        self.seen.append((source.detach(), image.detach()))
        return [[image + 1, self.weight * image]]


def pairs(spatial_dims, *, real=1.0, fake=0.25):
    shape = (3, 1, *SPACE[spatial_dims])
    generated = torch.full(shape, fake, requires_grad=True)
    return Pairs(torch.rand(shape), torch.full(shape, real), generated)


@DIMS
def test_the_losses_are_those_of_one_pass_over_real_and_generated_images(spatial_dims):
    critic, seen = LinearCritic(0.5), pairs(spatial_dims)
    verdict = Adversary(loss="least_squares", weight=2.0, feature_matching=3.0).judge(critic, seen)
    real, fake = 0.5 * 1.0, 0.5 * 0.25  # the scores
    assert len(critic.seen) == 1
    assert verdict.discriminator.item() == pytest.approx(((real - 1) ** 2 + fake**2) / 2)
    assert verdict.generator.item() == pytest.approx(2 * (fake - 1) ** 2 / 2 + 3 * (1 - 0.25))
    assert verdict.values["discriminator/real"].item() == pytest.approx(real)
    assert verdict.values["discriminator/fake"].item() == pytest.approx(fake)


@DIMS
@pytest.mark.parametrize("loss", ADVERSARIAL_LOSSES)
def test_each_players_gradient_can_be_taken_from_the_same_pass(spatial_dims, loss):
    critic, seen = LinearCritic(0.5), pairs(spatial_dims)
    adversary = Adversary(loss=loss)
    verdict = adversary.judge(critic, seen)
    assert set(verdict.values) == set(adversary.reported)
    verdict.generator.backward(inputs=[seen.fake], retain_graph=True)
    assert critic.weight.grad is None
    assert (seen.fake.grad < 0).all()  # brighter is more like the real one, and scores higher
    before = seen.fake.grad.clone()
    verdict.discriminator.backward(inputs=[critic.weight])
    assert critic.weight.grad is not None
    assert torch.equal(seen.fake.grad, before)


@DIMS
@pytest.mark.parametrize("weight", [0.5, 1.0, 3.0])
def test_a_wasserstein_critic_is_held_to_the_slope_of_a_mean_absolute_difference(spatial_dims, weight):
    # its score, the mean of weight * pixels, changes by weight times what the mean absolute difference changes by
    critic = LinearCritic(weight)
    verdict = Adversary(loss="wasserstein", gradient_penalty=7.0).judge(critic, pairs(spatial_dims))
    assert verdict.values["discriminator/gradient_penalty"].item() == pytest.approx((weight - 1) ** 2, abs=1e-6)
    expected = weight * (0.25 - 1.0) + 7 * (weight - 1) ** 2
    assert verdict.discriminator.item() == pytest.approx(expected, rel=1e-5)
    assert len(critic.seen) == 2  # the images, and what lies between them


def test_the_noise_decreases_linearly_to_none():
    adversary = Adversary(noise_std=0.4, noise_epochs=10)
    assert [adversary.noise_at(epoch) for epoch in (0, 2.5, 5, 10, 50)] == pytest.approx([0.4, 0.3, 0.2, 0, 0])


@DIMS
def test_noise_is_added_to_real_and_generated_images_and_not_to_the_source(spatial_dims):
    torch.manual_seed(0)
    critic, seen = LinearCritic(), pairs(spatial_dims, fake=1.0)
    Adversary().judge(critic, seen, noise_std=0.3)
    source, image = critic.seen[0]
    assert torch.equal(source, torch.cat([seen.source, seen.source]))
    for half in image.chunk(2):
        assert half.std().item() == pytest.approx(0.3, rel=0.3)  # of 144 values and more: within 6 %, five times over
    Adversary().judge(critic, seen)
    assert torch.equal(critic.seen[1][1], torch.ones_like(image))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "lsgan"}, "model.adversarial.loss is 'lsgan'; choose one of"),
        ({"weight": -1}, "model.adversarial.weight is -1"),
        ({"noise_epochs": 0}, "model.adversarial.noise_epochs is 0"),
    ],
)
def test_wrong_settings_are_refused_by_their_key(settings, message):
    with pytest.raises(ConfigError, match=message):
        Adversary(**settings)
