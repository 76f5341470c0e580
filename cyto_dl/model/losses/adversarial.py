"""What a generator and a discriminator learn from each other's output.

scores of real and generated patches -> discriminator_loss    real high, generated low
scores of generated patches          -> generator_loss        generated high
features of both                     -> feature_matching_loss
score along the way between both     -> gradient_penalty      of a Wasserstein critic

MONAI's PatchAdversarialLoss is not used: its hinge passes scores through a tanh, so that no score ever leaves the
margin, its "bce" cannot be computed in mixed precision, and it has no Wasserstein distance.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, relu, softplus

from cyto_dl.errors import ConfigError

AdversarialLoss = Literal["hinge", "least_squares", "vanilla", "wasserstein"]

ADVERSARIAL_LOSSES: tuple[AdversarialLoss, ...] = get_args(AdversarialLoss)


def discriminator_loss(loss: AdversarialLoss, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """How badly a discriminator tells real images from generated ones, a scalar.

    Args:
        loss: "hinge", >= 0 (Lim and Ye, "Geometric GAN", 2017); "least_squares", >= 0 (Mao et al., ICCV 2017);
            "vanilla", >= 0 (Goodfellow et al., NIPS 2014); "wasserstein", of any sign, minus the distance that the
            critic sees (Gulrajani et al., NIPS 2017), which needs `gradient_penalty`.
        real: Scores of real images, B 1 (Z) Y X, one tensor per scale; the scales count alike.
        fake: Scores of generated images, alike.

    Raises:
        ConfigError: There is no such loss.
    """
    of_scores = _loss_of_scores(loss)
    scales = [of_scores(a.float(), b.float()) for a, b in zip(real, fake, strict=True)]
    return torch.stack(scales).mean()


def generator_loss(loss: AdversarialLoss, fake: Sequence[Tensor]) -> Tensor:
    """How well a discriminator still recognises generated images as such, a scalar.

    Hinge and Wasserstein: minus the mean score. Vanilla: the non-saturating form, -log of the probability to be real.

    Args:
        loss: As for `discriminator_loss`.
        fake: Scores of generated images, B 1 (Z) Y X, one tensor per scale.

    Raises:
        ConfigError: There is no such loss.
    """
    _loss_of_scores(loss)
    return torch.stack([_GENERATOR[loss](scores.float()) for scores in fake]).mean()


def feature_matching_loss(fake: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean absolute difference between a discriminator's features of generated and of real images, a scalar >= 0.

    Args:
        fake: Per scale the features of each layer, B C (Z) Y X, without the scores.
        real: Alike; no gradient goes to them.

    Source: Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs", CVPR 2018;
    the mean over layers and scales is ours, so that the weight does not depend on their number.
    """
    layers = [
        l1_loss(a.float(), b.detach().float())
        for fake_scale, real_scale in zip(fake, real, strict=True)
        for a, b in zip(fake_scale, real_scale, strict=True)
    ]
    return torch.stack(layers).mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, *, slope: float = 1.0) -> Tensor:
    """Mean of (|gradient of the critic's score| / slope - 1)^2 over one random point between each pair, a scalar >= 0.

    Args:
        critic: From images B C (Z) Y X to one score per image, (B,); no layer of it may mix images of a batch.
        real: Real images, B C (Z) Y X.
        fake: Generated images, alike; no gradient goes to them.
        slope: The steepness, in score per Euclidean distance of images, that the critic is held to.

    Source: Gulrajani et al., "Improved Training of Wasserstein GANs", NIPS 2017; the slope is the gamma of Karras et
    al., "Progressive Growing of GANs", ICLR 2018.
    """
    share = torch.rand((len(real), *[1] * (real.ndim - 1)), device=real.device)
    between = torch.lerp(real.detach().float(), fake.detach().float(), share).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) / slope - 1).square().mean()


def _loss_of_scores(loss: AdversarialLoss) -> Callable[[Tensor, Tensor], Tensor]:
    if loss not in _DISCRIMINATOR:
        raise ConfigError(f"model.adversarial.loss is {loss!r}; choose one of {', '.join(ADVERSARIAL_LOSSES)}.")
    return _DISCRIMINATOR[loss]


_DISCRIMINATOR: dict[AdversarialLoss, Callable[[Tensor, Tensor], Tensor]] = {
    "hinge": lambda real, fake: relu(1 - real).mean() + relu(1 + fake).mean(),
    "least_squares": lambda real, fake: ((real - 1).square().mean() + fake.square().mean()) / 2,
    "vanilla": lambda real, fake: softplus(-real).mean() + softplus(fake).mean(),
    "wasserstein": lambda real, fake: fake.mean() - real.mean(),
}
_GENERATOR: dict[AdversarialLoss, Callable[[Tensor], Tensor]] = {
    "hinge": lambda fake: -fake.mean(),
    "least_squares": lambda fake: (fake - 1).square().mean() / 2,
    "vanilla": lambda fake: softplus(-fake).mean(),
    "wasserstein": lambda fake: -fake.mean(),
}
