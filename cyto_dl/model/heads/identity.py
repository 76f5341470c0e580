"""The head for a backbone whose features are already the task's output."""

from torch import Tensor, nn


class IdentityHead(nn.Module):
    """Passes the backbone's features on as the task's logits."""

    def __init__(self, activation: str | None = None) -> None:
        """Make the head.

        Args:
            activation: "identity", "sigmoid" or "softmax"; None reads it off the task's loss.
        """
        super().__init__()
        self.activation = activation

    def forward(self, features_BCZYX: Tensor) -> Tensor:
        """The features, unchanged."""
        return features_BCZYX
