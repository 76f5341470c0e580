"""The head that predicts one plane from a stack."""

import torch
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """A weighted mean over Z with learned weights, then a 2-D convolution to the task's channels.

    A 1x1x1 convolution scores every voxel; the softmax of the scores along Z weighs the planes, per pixel.
    Stacks of any depth are accepted. The sliding window must cover the whole of Z (`model.inference.roi_size`).
    """

    def __init__(self, in_channels: int, out_channels: int, *, activation: str | None = None) -> None:
        """Make the head.

        Args:
            in_channels: Channels of the backbone's 3-D features.
            out_channels: Channels of the task's 2-D output.
            activation: "identity", "sigmoid" or "softmax"; None reads it off the task's loss.
        """
        super().__init__()
        self.activation = activation
        self.score = nn.Conv3d(in_channels, 1, 1)
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, padding="same")

    def forward(self, features_BCZYX: Tensor) -> Tensor:
        """Logits, B C Y X."""
        weights_B1ZYX = torch.softmax(self.score(features_BCZYX), dim=2)
        return self.convolution((features_BCZYX * weights_B1ZYX).sum(dim=2))
