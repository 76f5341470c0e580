"""The head that chooses a task's channels from features which several tasks share."""

from monai.networks.layers.factories import Conv
from torch import Tensor, nn


class ConvolutionHead(nn.Module):
    """One convolution from the backbone's channels to the task's."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        kernel_size: int = 1,
        activation: str | None = None,
    ) -> None:
        """Make the head.

        Args:
            in_channels: Channels of the backbone's features.
            out_channels: Channels of the task's output.
            spatial_dims: 2 or 3.
            kernel_size: Side of the kernel in pixels, odd, so that the image keeps its size.
            activation: "identity", "sigmoid" or "softmax"; None reads it off the task's loss.
        """
        super().__init__()
        self.activation = activation
        convolution = Conv[Conv.CONV, spatial_dims]
        self.convolution = convolution(in_channels, out_channels, kernel_size, padding="same")

    def forward(self, features_BCZYX: Tensor) -> Tensor:
        """Logits, B C (Z) Y X, of the features' size."""
        return self.convolution(features_BCZYX)
