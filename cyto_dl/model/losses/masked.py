"""The mean squared error of targets that are known at some pixels only."""

import torch
from torch import Tensor, nn


class MaskedMSELoss(nn.Module):
    """Mean squared error over the pixels that the target knows; NaN marks those that it does not.

    For blind-spot denoising (`cyto_dl.data.BlindSpotd`), and every other target with holes. With all pixels known it is
    torch.nn.MSELoss.
    """

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar >= 0; 0 where nothing is known.

        Args:
            prediction: B C (Z) Y X, any range.
            target: Like prediction, in its units, NaN where it is not known.
        """
        known = ~torch.isnan(target)
        # where, before the square: the gradient of 0 * NaN would be NaN
        error = torch.where(known, prediction - target, 0)
        return error.square().sum() / known.sum().clamp(min=1)
