"""A loss of intensities that outliers do not rule: noise, hot pixels, the few brightest structures."""

import torch
from torch import Tensor, nn


class CharbonnierLoss(nn.Module):
    """Mean of sqrt((prediction - target)^2 + epsilon^2) - epsilon: the absolute error, smooth around zero.

    Where an error is far above epsilon it counts as in torch.nn.L1Loss, which forgives outliers that the square would
    magnify; far below, as error^2 / (2 epsilon), so that the gradient goes to zero with the error. torch's SmoothL1Loss
    is the same idea in two pieces; this one has all derivatives.

    Source: Charbonnier et al., "Two deterministic half-quadratic regularization algorithms for computed imaging",
    ICIP 1994; minus epsilon is ours, so that a perfect prediction has the loss 0.
    """

    def __init__(self, epsilon: float = 1e-3) -> None:
        """Make the loss.

        Args:
            epsilon: Above 0, in the units of the target: errors below it are as good as none. The default suits images
                of standard deviation 1 (Lai et al., "Deep Laplacian Pyramid Networks", CVPR 2017).
        """
        super().__init__()
        if epsilon <= 0:
            raise ValueError(f"epsilon is {epsilon}; it must be above 0.")
        self.epsilon = epsilon

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar >= 0; prediction and target are B C (Z) Y X, of any range."""
        squared = (prediction - target).square()
        # hypot(error, epsilon) - epsilon, written so that errors below epsilon keep their digits in single precision
        return (squared / (torch.sqrt(squared + self.epsilon**2) + self.epsilon)).mean()
