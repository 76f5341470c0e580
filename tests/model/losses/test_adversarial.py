"""Adversarial losses against their closed forms, and the penalty of critics whose gradient is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cyto_dl.errors import ConfigError
from cyto_dl.model.losses.adversarial import (
    ADVERSARIAL_LOSSES,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    gradient_penalty,
)

SPACE = {2: (5, 6), 3: (3, 5, 6)}
DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])
SCORE = st.floats(-5, 5, width=32)


def log_1_plus_exp(x):
    return math.log1p(math.exp(x))


# discriminator's and generator's loss of one real score r and one generated score f
CLOSED_FORMS = {
    "hinge": (lambda r, f: max(0, 1 - r) + max(0, 1 + f), lambda f: -f),
    "least_squares": (lambda r, f: ((r - 1) ** 2 + f**2) / 2, lambda f: (f - 1) ** 2 / 2),
    "vanilla": (lambda r, f: log_1_plus_exp(-r) + log_1_plus_exp(f), lambda f: log_1_plus_exp(-f)),
    "wasserstein": (lambda r, f: f - r, lambda f: -f),
}


@pytest.mark.parametrize("loss", ADVERSARIAL_LOSSES)
@given(real=SCORE, fake=SCORE)
def test_each_loss_has_its_closed_form(loss, real, fake):
    of_discriminator, of_generator = CLOSED_FORMS[loss]
    # one scale, one patch; single precision has seven digits
    assert discriminator_loss(loss, [torch.tensor([real])], [torch.tensor([fake])]).item() == pytest.approx(
        of_discriminator(real, fake), rel=1e-5, abs=1e-6
    )
    assert generator_loss(loss, [torch.tensor([fake])]).item() == pytest.approx(of_generator(fake), rel=1e-5, abs=1e-6)


@DIMS
@pytest.mark.parametrize("loss", ADVERSARIAL_LOSSES)
def test_scales_count_alike_however_many_patches_they_have(loss, spatial_dims):
    def scores(value, size):
        return torch.full((2, 1, *[size] * spatial_dims), value)

    both = discriminator_loss(loss, [scores(0.5, 8), scores(-2.0, 2)], [scores(0.1, 8), scores(3.0, 2)])
    alone = [CLOSED_FORMS[loss][0](0.5, 0.1), CLOSED_FORMS[loss][0](-2.0, 3.0)]
    assert both.item() == pytest.approx(sum(alone) / 2, rel=1e-5)


@pytest.mark.parametrize("loss", ADVERSARIAL_LOSSES)
def test_half_precision_scores_are_compared_in_single(loss):
    scores = [torch.tensor([300.0], dtype=torch.float16)]  # its square is beyond half precision
    assert torch.isfinite(discriminator_loss(loss, scores, scores))
    assert generator_loss(loss, scores).dtype == torch.float32


@DIMS
def test_feature_matching_is_the_mean_difference_of_layers_and_moves_the_generated_image_only(spatial_dims):
    shape = (2, 3, *SPACE[spatial_dims])
    fake = [[torch.ones(shape, requires_grad=True), torch.ones(shape) * 4], [torch.zeros(shape)]]
    real = [[torch.zeros(shape, requires_grad=True), torch.ones(shape)], [torch.ones(shape) * 2]]
    loss = feature_matching_loss(fake, real)
    assert loss.item() == pytest.approx((1 + 3 + 2) / 3)
    loss.backward()
    assert fake[0][0].grad is not None
    assert real[0][0].grad is None


@given(norm=st.floats(0.01, 10), slope=st.floats(0.1, 3), spatial_dims=st.sampled_from([2, 3]))
def test_the_penalty_of_a_linear_critic_follows_from_the_norm_of_its_weights(norm, slope, spatial_dims):
    shape = (4, 2, *SPACE[spatial_dims])
    weights = torch.randn(shape[1:], generator=torch.Generator().manual_seed(0))
    weights *= norm / weights.norm()
    penalty = gradient_penalty(
        lambda image: (image * weights).flatten(1).sum(dim=1), torch.rand(shape), torch.rand(shape), slope=slope
    )
    assert penalty.item() == pytest.approx((norm / slope - 1) ** 2, rel=1e-3, abs=1e-5)  # norm of 180 single floats


@DIMS
def test_the_penalty_is_taken_between_the_images_of_each_pair(spatial_dims):
    real, fake = torch.zeros(64, 1, *SPACE[spatial_dims]), torch.ones(64, 1, *SPACE[spatial_dims])
    seen = []

    def critic(image):
        seen.append(image.detach())
        return image.flatten(1).sum(dim=1)

    gradient_penalty(critic, real, fake)
    per_image = seen[0].flatten(1)
    assert (per_image == per_image[:, :1]).all()  # one share per pair
    assert 0 <= per_image.min() < 0.2  # 64 uniform shares come that close to both ends in all but 1e-6 of cases
    assert 0.8 < per_image.max() <= 1


def test_the_penalty_moves_the_critic_and_not_the_generator():
    weight = torch.tensor(3.0, requires_grad=True)
    fake = torch.rand(2, 1, 4, 4, requires_grad=True)
    gradient_penalty(lambda image: weight * image.flatten(1).sum(dim=1) / 4, torch.rand(2, 1, 4, 4), fake).backward()
    assert weight.grad.item() == pytest.approx(2 * (3 - 1), rel=1e-5)  # d/dw (w - 1)^2
    assert fake.grad is None


def test_an_unknown_loss_is_told_with_the_choices():
    with pytest.raises(ConfigError, match=r"model.adversarial.loss is 'bce'; choose one of hinge, least_squares"):
        discriminator_loss("bce", [], [])
    with pytest.raises(ConfigError, match=r"model.adversarial.loss"):
        generator_loss("bce", [])
