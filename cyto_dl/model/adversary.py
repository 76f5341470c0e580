"""What a discriminator says about generated images beside real ones, as the losses of both players of a GAN.

One forward pass of the discriminator, on real and generated images together, gives the losses of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cyto_dl.errors import ConfigError
from cyto_dl.model.losses.adversarial import (
    AdversarialLoss,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    gradient_penalty,
)


class Pairs(NamedTuple):
    """What a discriminator sees: sources, and the images that belong to them, B C (Z) Y X on the target's grid."""

    source: Tensor
    real: Tensor
    fake: Tensor


class Verdict(NamedTuple):
    """The losses that follow from one look at real and generated images, scalars."""

    generator: Tensor  # what the discriminator adds to the generator's loss
    discriminator: Tensor
    values: Mapping[str, Tensor]  # what they are made of, for the log


@dataclass(frozen=True)
class Adversary:
    """How much the discriminator has to say; the weights stand beside the heads' losses, which count once.

    Args:
        loss: hinge, least_squares, vanilla or wasserstein (see cyto_dl.model.losses.adversarial).
        weight: Of the adversarial loss. 0.01 beside an absolute error is the 1 : 100 of pix2pix.
        feature_matching: Weight of feature matching. Ten times the adversarial weight, as in pix2pixHD.
        gradient_penalty: Weight within the critic's loss, with wasserstein only. 10 as in WGAN-GP.
        noise_std: Standard deviation, in the target's units, of the noise on what the discriminator sees at first.
            Real and generated images overlap then, and the discriminator is not certain before the generator can
            follow (Sonderby et al., "Amortised MAP Inference for Image Super-Resolution", ICLR 2017).
        noise_epochs: After how many epochs the noise, decreasing linearly, has gone.

    Raises:
        ConfigError: There is no such loss, or a number is negative; by configuration key.
    """

    loss: AdversarialLoss = "hinge"
    weight: float = 0.01
    feature_matching: float = 0.1
    gradient_penalty: float = 10.0
    noise_std: float = 0.0
    noise_epochs: float = 1.0

    def __post_init__(self) -> None:
        discriminator_loss(self.loss, [torch.zeros(1)], [torch.zeros(1)])  # refuses an unknown one
        for key in (field.name for field in fields(self) if field.name != "loss"):
            value = getattr(self, key)
            if value < 0 or (key == "noise_epochs" and value == 0):
                raise ConfigError(f"model.adversarial.{key} is {value}; it must be above 0.")

    @property
    def reported(self) -> tuple[str, ...]:
        """The names of the values of every verdict."""
        penalty = ("discriminator/gradient_penalty",) if self.loss == "wasserstein" else ()
        scores = ("discriminator/real", "discriminator/fake")
        return ("adversarial/loss", "feature_matching/loss", *scores, *penalty, "discriminator/loss")

    def noise_at(self, epoch: float) -> float:
        """Standard deviation of the noise at a time in epochs: 1.5 is the middle of the second."""
        return self.noise_std * max(0.0, 1 - epoch / self.noise_epochs)

    def judge(self, discriminator: nn.Module, pairs: Pairs, *, noise_std: float = 0.0) -> Verdict:
        """The losses of both players.

        Args:
            discriminator: (source, image) -> per scale the features of each layer and last the scores.
            pairs: Real images, and generated ones with their graph.
            noise_std: Standard deviation of the noise that is added to both.
        """
        both = torch.cat([pairs.real, pairs.fake])
        if noise_std:
            both = both + noise_std * torch.randn_like(both)
        size = len(pairs.real)
        outputs = discriminator(torch.cat([pairs.source, pairs.source]), both)
        real = [[layer[:size] for layer in scale] for scale in outputs]
        fake = [[layer[size:] for layer in scale] for scale in outputs]
        real_scores, fake_scores = [scale[-1] for scale in real], [scale[-1] for scale in fake]

        adversarial = generator_loss(self.loss, fake_scores)
        matching = feature_matching_loss([scale[:-1] for scale in fake], [scale[:-1] for scale in real])
        loss = discriminator_loss(self.loss, real_scores, fake_scores)
        values = {
            "adversarial/loss": adversarial,
            "feature_matching/loss": matching,
            "discriminator/real": _score_per_image(real).mean(),
            "discriminator/fake": _score_per_image(fake).mean(),
        }
        if self.loss == "wasserstein":
            penalty = _penalty(discriminator, Pairs(pairs.source, both[:size], both[size:]))
            values["discriminator/gradient_penalty"] = penalty
            loss = loss + self.gradient_penalty * penalty
        values["discriminator/loss"] = loss
        for_generator = self.weight * adversarial + self.feature_matching * matching
        return Verdict(for_generator, loss, {name: value.detach() for name, value in values.items()})


def _penalty(discriminator: nn.Module, pairs: Pairs) -> Tensor:
    """The penalty that holds a critic to the steepness of a mean absolute difference, in single precision.

    Its score is a mean over patches, whose gradient then has the size of an absolute error's: one set of weights suits
    patches of any size and number of axes.
    """

    def score(image: Tensor) -> Tensor:
        return _score_per_image(discriminator(pairs.source, image))

    with torch.autocast(pairs.real.device.type, enabled=False):
        return gradient_penalty(score, pairs.real, pairs.fake, slope=pairs.real[0].numel() ** -0.5)


def _score_per_image(outputs: Sequence[Sequence[Tensor]]) -> Tensor:
    """The mean over patches and scales, (B,)."""
    return torch.stack([scale[-1].float().flatten(1).mean(dim=1) for scale in outputs]).mean(dim=0)
