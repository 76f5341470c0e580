"""The head for a backbone whose features are coarser than the task's target."""

from collections.abc import Sequence

from monai.networks.blocks import ResidualUnit
from monai.networks.layers.factories import Conv
from torch import Tensor, nn


class UpsamplingHead(nn.Module):
    """Residual blocks, then linear upsampling, then a convolution to the task's channels.

    Interpolation followed by a convolution leaves no checkerboard, which transposed convolutions do.
    Source: Odena et al., "Deconvolution and Checkerboard Artifacts", Distill 2016.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        scale: int | Sequence[int] = 2,
        num_blocks: int = 1,
        activation: str | None = None,
    ) -> None:
        """Make the head.

        Args:
            in_channels: Channels of the backbone's features.
            out_channels: Channels of the task's output.
            spatial_dims: 2 or 3.
            scale: Output pixels per pixel of the features; one number, or one per axis in the order (Z)YX.
            num_blocks: Residual blocks before the upsampling.
            activation: "identity", "sigmoid" or "softmax"; None reads it off the task's loss.
        """
        super().__init__()
        self.activation = activation
        factors = (scale,) * spatial_dims if isinstance(scale, int) else tuple(scale)
        self.blocks = nn.Sequential(
            *(ResidualUnit(spatial_dims, in_channels, in_channels, subunits=2) for _ in range(num_blocks))
        )
        mode = "bilinear" if spatial_dims == 2 else "trilinear"
        self.upsample = nn.Upsample(scale_factor=tuple(float(factor) for factor in factors), mode=mode)
        self.convolution = Conv[Conv.CONV, spatial_dims](in_channels, out_channels, 3, padding="same")

    def forward(self, features_BCZYX: Tensor) -> Tensor:
        """Logits, B C (Z) Y X, `scale` times as large as the features."""
        return self.convolution(self.upsample(self.blocks(features_BCZYX)))
