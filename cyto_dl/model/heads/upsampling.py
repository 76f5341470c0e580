"""The head for a target that is finer than the backbone's features."""

from collections.abc import Sequence

from monai.networks.blocks import ResidualUnit
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from cyto_dl.errors import ConfigError

SLOPE = 0.1  # of LeakyReLU below zero: ReLU would cut off half of what the features say


class UpsamplingHead(nn.Module):
    """Residual blocks, then linear upsampling, then two convolutions to the task's channels.

    Interpolation followed by convolutions leaves no checkerboard, which transposed convolutions do, and takes any whole
    factor along each axis, which pixel shuffling does not. The first convolution on the fine grid has all channels:
    without it, detail has only the nine neighbours' interpolated features to be made of (docs/lab-notebook.md).
    There is no normalisation, which would take the contrast off that has to come out again.

    Source: Odena et al., "Deconvolution and Checkerboard Artifacts", Distill 2016; without normalisation: Lim et al.,
    "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPR workshops 2017; adding the source: Kim et
    al., "Accurate Image Super-Resolution Using Very Deep Convolutional Networks", CVPR 2016.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        scale: int | Sequence[int] = 2,
        num_blocks: int = 1,
        residual: bool = False,
        activation: str | None = None,
    ) -> None:
        """Make the head.

        Args:
            in_channels: Channels of the backbone's features.
            out_channels: Channels of the task's output.
            spatial_dims: 2 or 3.
            scale: Output pixels per pixel of the features; one number, or one per axis in the order (Z)YX.
            num_blocks: Residual blocks before the upsampling.
            residual: Whether to add the interpolated source, so that only what interpolation lacks has to be learnt.
                For a target that is the source, but finer: it has the source's channels, and the features its size.
            activation: "identity", "sigmoid" or "softmax"; None reads it off the task's loss.

        Raises:
            ConfigError: The scale is no whole number per axis.
        """
        super().__init__()
        self.activation = activation
        self.sees_source = residual
        factors = (scale,) * spatial_dims if isinstance(scale, int) else tuple(scale)
        if len(factors) != spatial_dims or not all(isinstance(each, int) and each >= 1 for each in factors):
            raise ConfigError(f"UpsamplingHead: scale is {scale!r}; take one whole number, or {spatial_dims} of them.")
        self.blocks = nn.Sequential(
            *(ResidualUnit(spatial_dims, in_channels, in_channels, subunits=2, norm=None) for _ in range(num_blocks))
        )
        mode = "bilinear" if spatial_dims == 2 else "trilinear"
        self.upsample = nn.Upsample(scale_factor=tuple(float(factor) for factor in factors), mode=mode)
        convolution = Conv[Conv.CONV, spatial_dims]
        self.detail = nn.Sequential(convolution(in_channels, in_channels, 3, padding="same"), nn.LeakyReLU(SLOPE))
        self.convolution = convolution(in_channels, out_channels, 3, padding="same")
        if residual:  # training starts from interpolation, not from noise
            nn.init.zeros_(self.convolution.weight)
            nn.init.zeros_(self.convolution.bias)

    def forward(self, features_BCZYX: Tensor, source_BCZYX: Tensor | None = None) -> Tensor:
        """Logits, B C (Z) Y X, `scale` times as large as the features.

        Args:
            features_BCZYX: The backbone's features.
            source_BCZYX: What the network sees, where the head is residual.

        Raises:
            ConfigError: The source has other channels than the output.
        """
        output = self.convolution(self.detail(self.upsample(self.blocks(features_BCZYX))))
        if source_BCZYX is None:
            return output
        if source_BCZYX.shape[1] != output.shape[1]:
            raise ConfigError(
                f"UpsamplingHead: a residual head adds the source, but that has {source_BCZYX.shape[1]} channels and "
                f"the output {output.shape[1]}. Set the head's residual to false."
            )
        return output + self.upsample(source_BCZYX)
