"""A squared error for images that are mostly background."""

import torch
from torch import Tensor, nn


class ForegroundMSELoss(nn.Module):
    """Mean squared error in which a pixel of the foreground counts `weight` times as much as one of the background.

    A fluorescent stain covers few pixels, and a network that predicts background everywhere is right almost
    everywhere. The weights sum to 1 over a batch, so that the loss is in the units of torch.nn.MSELoss; with a weight
    of 1 it is that loss.

        loss: {_target_: cyto_dl.model.losses.ForegroundMSELoss, threshold: 1, weight: 5}

    Source: the weighted mean of squares; the threshold on the target itself is ours.
    """

    def __init__(self, threshold: float, weight: float = 5) -> None:
        """Make the loss.

        Args:
            threshold: Where the target is above it there is foreground; in the target's units after preprocessing
                (after NormalizeIntensityd: standard deviations above the mean).
            weight: Of a pixel of the foreground, above 0; one of the background has 1.
        """
        super().__init__()
        if weight <= 0:
            raise ValueError(f"weight is {weight}; it must be above 0.")
        self.threshold = threshold
        self.weight = weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar >= 0; prediction and target are B C (Z) Y X, of any range."""
        weights = torch.where(target > self.threshold, self.weight, 1.0)
        return (weights * (prediction - target).square()).sum() / weights.sum()
