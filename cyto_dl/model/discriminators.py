"""The network that tells real images from generated ones, patch by patch, while a GAN trains.

source, image --concatenate--> [pool ->] strided convolutions -> features, scores        one such network per scale
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from monai.networks.layers.factories import Conv, Norm, Pool
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from cyto_dl.errors import ConfigError

SLOPE = 0.2  # of LeakyReLU below zero, as in pix2pixHD: a dead unit would pass no gradient on to the generator


class MultiScalePatchDiscriminator(nn.Module):
    """Scores every patch of an image, seen beside its source, at its own and at halved sizes.

    MONAI's discriminator of this name makes its scales by deeper and wider networks on the full image, halves Z as
    often as Y and X, and has no spectral normalisation.

    Source: Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs", CVPR 2018
    (pix2pixHD); with spectral normalisation: Yu et al., "Free-Form Image Inpainting with Gated Convolution", ICCV 2019.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        source_channels: int,
        target_channels: int,
        channels: int = 32,
        strides: Sequence[int | Sequence[int]] = (2, 2, 2),
        num_scales: int = 2,
        norm: Literal["spectral", "instance"] = "spectral",
    ) -> None:
        """Make the discriminator.

        Args:
            spatial_dims: 2 or 3, of the target.
            source_channels: Channels of the source image.
            target_channels: Channels of the targets that are judged, all together.
            channels: Of the first layer; each further layer has twice as many.
            strides: One layer each: 2 halves, 1 keeps the size; one number, or one per axis in the order (Z)YX. Three
                halvings see 54 pixels at the first scale, 108 at the second.
            num_scales: Networks; each sees the image smaller than the one before, by the first stride.
            norm: "spectral" bounds the steepness and leaves brightness and contrast for the discriminator to see;
                "instance" normalises them away, but leaves the steepness to a gradient penalty.

        Raises:
            ConfigError: The strides or the norm cannot be used.
        """
        super().__init__()
        self.strides = [_per_axis(stride, spatial_dims) for stride in strides]
        if not self.strides or num_scales < 1:
            raise ConfigError("model.discriminator needs at least one stride and one scale (strides, num_scales).")
        if norm not in ("spectral", "instance"):
            raise ConfigError(f"model.discriminator.norm is {norm!r}; choose spectral or instance.")
        self.norm = norm
        self.in_channels = source_channels + target_channels
        self.scales = nn.ModuleList(
            _layers(self.in_channels, channels, self.strides, norm=norm) for _ in range(num_scales)
        )
        self.pool = Pool[Pool.AVG, spatial_dims](self.strides[0])

    def forward(self, source_BCZYX: Tensor, image_BCZYX: Tensor) -> list[list[Tensor]]:
        """Per scale, the features of each layer and last the scores, B 1 (Z) Y X.

        Args:
            source_BCZYX: The source, of the image's size.
            image_BCZYX: Real or generated target.

        Raises:
            ConfigError: The image is too small to be halved so often, or the channels are others than promised.
        """
        seen = torch.cat([source_BCZYX, image_BCZYX], dim=1)
        if seen.shape[1] != self.in_channels:
            raise ConfigError(
                f"model.discriminator is made for {self.in_channels} channels (source_channels + target_channels), but "
                f"the source has {source_BCZYX.shape[1]} and the targets {image_BCZYX.shape[1]}."
            )
        self._check_size(tuple(seen.shape[2:]))
        outputs = []
        for index, layers in enumerate(self.scales):
            seen = self.pool(seen) if index else seen
            features = seen
            outputs.append([features := layer(features) for layer in cast(nn.ModuleList, layers)])
        return outputs

    def _check_size(self, shape: tuple[int, ...]) -> None:
        pooled = [self.strides[0]] * (len(self.scales) - 1)
        smallest = [math.prod(axis) for axis in zip(*pooled, *self.strides, strict=True)]
        left = [size // least for size, least in zip(shape, smallest, strict=True)]
        if min(left) < 1 or (self.norm == "instance" and math.prod(left) < 2):  # one pixel has no deviation
            raise ConfigError(
                f"model.discriminator cannot judge patches of {shape} px: its strides and scales need at least "
                f"{tuple(smallest)}, twice one of them with norm instance. Enlarge data.patch_shape, or take fewer of "
                "model.discriminator.strides or num_scales."
            )


def _layers(in_channels: int, channels: int, strides: Sequence[tuple[int, ...]], *, norm: str) -> nn.ModuleList:
    """Strided layers, one that keeps the size, and the scores."""
    spatial_dims = len(strides[0])
    keep = (1,) * spatial_dims
    widths = [in_channels, *(channels * 2**index for index in range(len(strides) + 1))]
    layers = nn.ModuleList()
    for index, ((before, after), stride) in enumerate(zip(pairwise(widths), [*strides, keep], strict=True)):
        parts: list[nn.Module] = [_convolution(before, after, stride)]
        if norm == "spectral":
            spectral_norm(parts[0])
        elif index:  # not the first layer, so that brightness is seen at least once (pix2pixHD)
            parts.append(Norm[Norm.INSTANCE, spatial_dims](after))
        layers.append(nn.Sequential(*parts, nn.LeakyReLU(SLOPE)))
    scores = _convolution(widths[-1], 1, keep)
    layers.append(spectral_norm(scores) if norm == "spectral" else scores)
    return layers


def _convolution(in_channels: int, out_channels: int, stride: tuple[int, ...]) -> nn.Module:
    # 4 pixels where the size is halved: every pixel is then seen equally often, and the generator's gradient has no
    # checkerboard
    kernel_size = tuple(4 if step == 2 else 3 for step in stride)
    convolution: nn.Module = Conv[Conv.CONV, len(stride)](in_channels, out_channels, kernel_size, stride, padding=1)
    return convolution


def _per_axis(stride: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    steps = (stride,) * spatial_dims if isinstance(stride, int) else tuple(stride)
    if len(steps) != spatial_dims or not set(steps) <= {1, 2}:
        raise ConfigError(
            f"model.discriminator.strides has {stride!r}; take 1 or 2, one number or {spatial_dims} of them."
        )
    return steps
