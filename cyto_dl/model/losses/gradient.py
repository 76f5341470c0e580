"""A loss that sees edges: differences between neighbouring pixels."""

import torch
from torch import Tensor, nn


class GradientLoss(nn.Module):
    """Mean absolute error of the differences between neighbouring pixels, averaged over the spatial axes.

    The squared error of a blurred image is small; that of its edges is not. An offset of the whole image costs nothing,
    so this is one of two losses of a `WeightedSum`.

    Source: Mathieu, Couprie, LeCun, "Deep multi-scale video prediction beyond mean square error", ICLR 2016 (their
    gradient difference loss compares magnitudes; here the sign of an edge matters too).
    """

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar >= 0; prediction and target are B C (Z) Y X, of any range.

        An axis of one pixel has no differences and adds nothing.
        """
        error = prediction - target
        axes = [axis for axis in range(2, error.ndim) if error.shape[axis] > 1]
        differences = [torch.diff(error, dim=axis).abs().mean() for axis in axes]
        return torch.stack(differences).mean() if differences else error.sum() * 0
