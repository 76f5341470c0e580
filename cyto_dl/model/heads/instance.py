"""The head that tells touching objects apart."""

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from cyto_dl.errors import ConfigError
from cyto_dl.model.instances import encode_instances

NUM_OUTPUTS = 2  # foreground, border distance: see cyto_dl.model.instances


class InstanceHead(nn.Module):
    """Foreground and border distance of objects, from which `postprocessing.instances` makes labels.

    Its target is a label image: 0 is background, every other whole number an object.
    """

    activation = "sigmoid"
    kind = "instances"

    def __init__(self, in_channels: int, *, spatial_dims: int, border_px: float = 5.0) -> None:
        """Make the head.

        Args:
            in_channels: Channels of the backbone's features.
            spatial_dims: 2 or 3.
            border_px: Width of the rim that is learnt as distance, in pixels of the finest axis: about half the
                radius of the objects.

        Raises:
            ConfigError: The rim has no width.
        """
        super().__init__()
        if not border_px > 0:
            raise ConfigError(f"InstanceHead: border_px is {border_px!r}; it must be more than 0 pixels.")
        self.border_px = border_px
        self.convolution = Conv[Conv.CONV, spatial_dims](in_channels, NUM_OUTPUTS, 1)

    def forward(self, features_BCZYX: Tensor) -> Tensor:
        """Logits, B 2 (Z) Y X, of the features' size."""
        return self.convolution(features_BCZYX)

    def encode(self, labels_CZYX: Tensor, spacing_um: Sequence[float] | None) -> Tensor:
        """What the head learns of a label image, 2 (Z) Y X in 0..1.

        Args:
            labels_CZYX: 1 (Z) Y X, whole numbers.
            spacing_um: Pixel size, so that distances are those in the sample where Z is coarser than Y and X.

        Raises:
            ValueError: There are several channels, or the values are no labels.
        """
        if len(labels_CZYX) != 1:
            raise ValueError(f"a label image has one channel, but this one has {len(labels_CZYX)}")
        encoded = encode_instances(labels_CZYX[0].numpy(), spacing=spacing_um, border_px=self.border_px)
        return torch.from_numpy(encoded)
