"""The loss of a head that learns objects by their foreground and the distance to their borders."""

from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits


class InstanceLoss(nn.Module):
    """Dice and cross-entropy of the foreground, plus cross-entropy of the border distance, scalar >= 0.

    The distance is a number in 0..1 and no class; cross-entropy with such soft targets is smallest where the sigmoid
    equals the target and, unlike a squared error, still has a gradient where the sigmoid saturates. For soft targets
    the smallest value is their entropy, above 0.
    """

    sigmoid = True

    def __init__(self, distance_weight: float = 1.0) -> None:
        """Make the loss.

        Args:
            distance_weight: Weight of the distance beside the foreground.
        """
        super().__init__()
        self.distance_weight = distance_weight
        self.dice = DiceLoss(sigmoid=True, batch=True)  # over the batch: a patch without objects has no Dice of its own

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch; logits and target are B 2 (Z) Y X, the target as `InstanceHead.encode` makes it."""
        foreground = self.dice(logits[:, :1], target[:, :1]) + binary_cross_entropy_with_logits(
            logits[:, :1], target[:, :1]
        )
        return foreground + self.distance_weight * binary_cross_entropy_with_logits(logits[:, 1:], target[:, 1:])
