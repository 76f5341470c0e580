"""One loss of the losses of several heads: with fixed weights, or with weights that are learned.

model.loss_weights: {seg: 1, distance: 0.1}                                         fixed; a head not named has 1
model.loss_weights: {_target_: cyto_dl.model.weighting.UncertaintyWeights}          learned
"""

from collections.abc import Iterable, Mapping
from numbers import Real

import torch
from torch import Tensor, nn

from cyto_dl.errors import ConfigError


class FixedWeights(nn.Module):
    """The sum of the heads' losses, each times a number."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Make the weighting.

        Args:
            weights: Head -> weight, 0 or more.
        """
        super().__init__()
        self.weights = dict(weights)

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The loss that training minimises, a scalar, of the losses (scalars) of the heads that a batch trains."""
        return sum((self.weights[head] * loss for head, loss in losses.items()), start=torch.zeros(()))


class UncertaintyWeights(nn.Module):
    """The sum over heads of exp(-s) loss / 2 + s / 2, where s, the log-variance of each head, is learned.

    A head whose loss stays large gets a large variance and so a small weight; the s / 2 keeps the variances from
    growing for nothing. At its best, s is the logarithm of the head's loss, so that heads in different units pull
    equally. The publication has exp(-s) loss + s / 2 for classes; the factor only shifts s, so there is one formula.
    The sum may be negative: choose the best checkpoint by a metric rather than by valid/loss where it matters.

    Source: Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics", CVPR 2018.
    """

    def __init__(self) -> None:
        """Make the weighting, without any head yet."""
        super().__init__()
        self.log_variances = nn.ParameterDict()

    def add_heads(self, heads: Iterable[str]) -> None:
        """Give every head a variance of 1, before the optimizer is made."""
        for head in heads:
            self.log_variances[head] = nn.Parameter(torch.zeros(()))

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The loss that training minimises, a scalar, of the losses (scalars) of the heads that a batch trains."""
        total = torch.zeros(())
        for head, log_variance in self.log_variances.items():
            if head in losses:
                total = total + (torch.exp(-log_variance) * losses[head] + log_variance) / 2
            else:  # a gradient of zero: DDP waits for one of every parameter
                total = total + 0 * log_variance
        return total


def build_weighting(loss_weights: nn.Module | Mapping[str, float] | None, heads: Iterable[str]) -> nn.Module:
    """The weighting of `model.loss_weights`, from {head: loss} to one loss.

    Args:
        loss_weights: A module such as `UncertaintyWeights`; {head: weight}, 1 for those it does not name; None: all 1.
        heads: The names of the heads.

    Raises:
        ConfigError: A weight for no head, or one that is no number of 0 or more.
    """
    heads = list(heads)
    if isinstance(loss_weights, nn.Module):
        if isinstance(loss_weights, UncertaintyWeights):
            loss_weights.add_heads(heads)
        return loss_weights
    weights = dict(loss_weights or {})
    if unknown := [head for head in weights if head not in heads]:
        raise ConfigError(f"model.loss_weights.{unknown[0]}: there is no such head; choose among {', '.join(heads)}.")
    for head, weight in weights.items():
        if not isinstance(weight, Real) or not 0 <= weight < float("inf"):
            raise ConfigError(f"model.loss_weights.{head} is {weight!r}; it must be a number, 0 or more.")
    return FixedWeights(dict.fromkeys(heads, 1.0) | weights)
