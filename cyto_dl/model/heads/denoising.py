"""The head for a target that is the source without its noise."""

from collections.abc import Sequence

import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from cyto_dl.errors import ConfigError


class DenoisingHead(nn.Module):
    """A Gaussian filter of the source, plus what one convolution makes of the backbone's features.

    The convolution begins with zeros, so a training begins as good as the filter and learns what that gets wrong. A
    backbone that has to draw the image itself takes long to become as good, longest where hidden pixels teach it
    (docs/lab-notebook.md).

    Source: learning the difference: Zhang et al., "Beyond a Gaussian Denoiser", IEEE TIP 2017; to the filtered and not
    to the noisy source: ours, because the value of a hidden pixel (`cyto_dl.data.BlindSpotd`) is a random one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        sigma_px: float | Sequence[float] = 1.25,
        activation: str | None = None,
    ) -> None:
        """Make the head.

        Args:
            in_channels: Channels of the backbone's features.
            out_channels: Channels of the target, as many as the source has.
            spatial_dims: 2 or 3.
            sigma_px: Of the Gaussian filter; one number above 0, or one per axis in the order (Z)YX.
            activation: "identity", "sigmoid" or "softmax"; None reads it off the task's loss.

        Raises:
            ConfigError: `sigma_px` is not above 0, or has another number of axes.
        """
        super().__init__()
        self.activation = activation
        self.sees_source = True
        sigmas = (sigma_px,) * spatial_dims if isinstance(sigma_px, int | float) else tuple(sigma_px)
        if len(sigmas) != spatial_dims or not all(sigma > 0 for sigma in sigmas):
            raise ConfigError(f"DenoisingHead: sigma_px is {sigma_px!r}; take a number above 0, or {spatial_dims}.")
        for axis, sigma in enumerate(sigmas):
            kernel = gaussian_1d(torch.tensor(float(sigma)), approx="sampled", normalize=True)
            self.register_buffer(f"kernel_{axis}", kernel, persistent=False)  # of the configuration, not learnt
        self.convolution = Conv[Conv.CONV, spatial_dims](in_channels, out_channels, 1)
        nn.init.zeros_(self.convolution.weight)
        nn.init.zeros_(self.convolution.bias)

    def forward(self, features_BCZYX: Tensor, source_BCZYX: Tensor) -> Tensor:
        """The source without its noise, B C (Z) Y X, in its units.

        Args:
            features_BCZYX: The backbone's features.
            source_BCZYX: What the network sees, of the same size.

        Raises:
            ConfigError: The source has other channels than the output.
        """
        output = self.convolution(features_BCZYX)
        if source_BCZYX.shape[1] != output.shape[1]:
            raise ConfigError(
                f"DenoisingHead: the source has {source_BCZYX.shape[1]} channels and the output {output.shape[1]}. "
                "Set the head's out_channels to the former."
            )
        kernels = [self.get_buffer(f"kernel_{axis}") for axis in range(output.ndim - 2)]
        return output + separable_filtering(source_BCZYX, kernels, mode="replicate")  # zeros would darken the border
