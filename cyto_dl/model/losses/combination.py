"""Several losses of one head."""

from collections.abc import Sequence

from torch import Tensor, nn


class WeightedSum(nn.Module):
    """The sum of losses on the same output and target, each with its weight.

        loss:
          _target_: cyto_dl.model.losses.WeightedSum
          losses:
            - {_target_: torch.nn.L1Loss}
            - {_target_: monai.losses.SSIMLoss, spatial_dims: 2, data_range: 4}
          weights: [0.16, 0.84]

    The example is the mix of Zhao et al., "Loss Functions for Image Restoration with Neural Networks", IEEE
    Transactions on Computational Imaging 2017, with one scale in place of five. The losses must agree about the
    activation: all with `sigmoid: true`, or all over intensities.
    """

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float]) -> None:
        """Make the loss.

        Args:
            losses: Each gives a scalar of (prediction, target).
            weights: One per loss.
        """
        super().__init__()
        if len(losses) != len(weights) or not losses:
            raise ValueError(f"there are {len(losses)} losses and {len(weights)} weights; give one weight per loss.")
        self.losses = nn.ModuleList(losses)
        self.weights = tuple(weights)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar; prediction and target are what the losses take."""
        values = (weight * loss(prediction, target) for weight, loss in zip(self.weights, self.losses, strict=True))
        return sum(values, start=prediction.new_zeros(()))
