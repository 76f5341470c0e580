"""Learn to denoise from noisy images alone: hide pixels from the network and let it predict them.

augmented patch C(Z)YX -> source: hidden pixels show a neighbour's value | target: their own values, NaN everywhere else
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from cyto_dl.errors import ConfigError

NUM_TRIES = 20  # to find a visible neighbour, before any visible pixel of the patch is taken


class BlindSpotd(MapTransform, RandomizableTransform):
    """Hides pixels of a noisy image and makes their values the target, so that nobody needs a clean image.

    Where the noise of neighbouring pixels is independent, a pixel's neighbours tell its signal but not its noise. A
    network that must predict pixels which it cannot see learns the signal. The target is NaN where nothing was hidden:
    there a network could copy the noise. `cyto_dl.model.losses.MaskedMSELoss` compares the other pixels.

    Write it last in `data.transforms.augment`. It also runs on validation images (`in_validation`), with hidden pixels
    that depend on the image's row alone: the loss of an image with nothing hidden would be least for the network that
    copies the noise. Test images and predictions stay whole, and are compared with clean images where there are any;
    metrics leave out targets with NaN.

    All channels hide the same pixels. Every pixel is equally likely to be hidden, and hidden ones are spread evenly:
    one at a random place in each cell of a randomly shifted grid.

    Source: Krull, Buchholz, Jug, "Noise2Void - Learning Denoising from Single Noisy Images", CVPR 2019; with
    `hidden_shape`: Broaddus et al., "Removing Structured Noise with Self-Supervised Blind-Spot Networks", ISBI 2020.
    """

    in_validation = True

    def __init__(
        self,
        keys: str,
        target_key: str,
        *,
        fraction: float = 1 / 64,
        radius_px: int = 5,
        hidden_shape: Sequence[int] | None = None,
    ) -> None:
        """Make the transform.

        Args:
            keys: The key of the noisy source.
            target_key: The key that the target gets; an image that has it already is replaced.
            fraction: Of the pixels are targets, at most 1/4; about, because cells have a whole number of pixels per
                side. The default gives the publication's cells of 8 x 8 pixels, and 4 x 4 x 4 voxels.
            radius_px: A hidden pixel shows the value of a random other pixel, at most this far along every axis; with
                `hidden_shape` of one that is not hidden.
            hidden_shape: For noise that is correlated along lines: the box (Z)YX, of odd sides, that is hidden around
                every target pixel. None: the pixel alone.

        Raises:
            ConfigError: An argument is out of its range.
        """
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self)  # always
        self.source_key, self.target_key = str(self.keys[0]), target_key
        self.fraction = fraction
        self.radius_px = radius_px
        self.hidden_shape = None if hidden_shape is None else tuple(hidden_shape)
        wrong = {
            f"keys is {list(self.keys)}, but there is one source": len(self.keys) != 1,
            f"target_key is '{target_key}', the source itself": target_key in self.keys,
            f"fraction is {fraction}, but it is above 0 and at most 1/4": not 0 < fraction <= 1 / 4,
            f"radius_px is {radius_px}, but at least 1 is needed": radius_px < 1,
            f"hidden_shape is {self.hidden_shape}, but its sides are odd": any(
                side < 1 or side % 2 == 0 for side in self.hidden_shape or ()
            ),
        }
        if problems := [message for message, is_wrong in wrong.items() if is_wrong]:
            raise ConfigError(f"BlindSpotd in data.transforms cannot be used: {'; '.join(problems)}.")

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The item with hidden pixels in its source, and its target.

        Raises:
            ConfigError: `hidden_shape` has another number of axes than the image, or hides all of it.
        """
        key = self.source_key
        source_CZYX = torch.as_tensor(data[key]).as_subclass(Tensor)
        shape = tuple(source_CZYX.shape[1:])
        if self.hidden_shape is not None and len(self.hidden_shape) != len(shape):
            raise ConfigError(f"BlindSpotd: hidden_shape is {self.hidden_shape}, but the image is {shape} pixels.")
        spots = self._spots(shape)
        target_CZYX = torch.full_like(source_CZYX, float("nan"))
        target_CZYX[_at(spots)] = source_CZYX[_at(spots)]
        hidden = _boxes(spots, self.hidden_shape or (1,) * len(shape), shape)
        masked_CZYX = source_CZYX.clone()
        stand_ins = self._neighbours(hidden, shape)
        if self.hidden_shape is not None:
            self._replace_hidden(stand_ins, hidden, shape)
        masked_CZYX[_at(hidden)] = source_CZYX[_at(stand_ins)]
        return {**data, key: masked_CZYX, self.target_key: target_CZYX}

    def _spots(self, shape: Sequence[int]) -> np.ndarray:
        """Coordinates (axes, n) of the target pixels: one per cell of a grid that begins at a random place."""
        side = max(round(self.fraction ** (-1 / len(shape))), 1)
        starts = [np.arange(-self.R.randint(side), size, side) for size in shape]
        corners = np.stack(np.meshgrid(*starts, indexing="ij")).reshape(len(shape), -1)
        spots: np.ndarray = corners + self.R.randint(side, size=corners.shape)
        inside = (spots >= 0) & (spots < np.array(shape)[:, None])
        return spots[:, inside.all(0)]

    def _replace_hidden(self, stand_ins: np.ndarray, hidden: np.ndarray, shape: Sequence[int]) -> None:
        """Draw those stand-ins anew, in place, that are hidden themselves.

        Within a box, noise is correlated: a stand-in from it would tell what the box hides.
        """
        is_hidden = np.zeros(shape, bool)
        is_hidden[tuple(hidden)] = True
        for _ in range(NUM_TRIES):
            again = is_hidden[tuple(stand_ins)]
            if not again.any():
                return
            stand_ins[:, again] = self._neighbours(hidden[:, again], shape)
        visible = np.stack(np.nonzero(~is_hidden))
        if not visible.size:
            raise ConfigError(
                f"BlindSpotd: boxes {self.hidden_shape} around {self.fraction:.2g} of its pixels hide all of a patch "
                f"of {tuple(shape)}. Make fraction smaller."
            )
        again = is_hidden[tuple(stand_ins)]
        stand_ins[:, again] = visible[:, self.R.randint(visible.shape[1], size=again.sum())]

    def _neighbours(self, pixels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """For each pixel (axes, n) another one within the radius and the image, all of them equally likely."""
        low = np.maximum(pixels - self.radius_px, 0)
        sides = np.minimum(pixels + self.radius_px + 1, np.array(shape)[:, None]) - low
        strides = np.concatenate([np.cumprod(sides[:0:-1], axis=0)[::-1], np.ones_like(sides[:1])])
        itself = ((pixels - low) * strides).sum(0)
        chosen = (self.R.random_sample(itself.shape) * (sides.prod(0) - 1)).astype(np.int64)
        chosen += chosen >= itself  # of the window's pixels, in order, all but itself
        neighbours: np.ndarray = low + chosen // strides % sides
        return neighbours


def _boxes(pixels: np.ndarray, box: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Coordinates of all pixels of the image in the boxes around these pixels."""
    offsets = np.stack(np.meshgrid(*(np.arange(side) - side // 2 for side in box), indexing="ij"))
    boxes = (pixels[:, :, None] + offsets.reshape(len(box), 1, -1)).reshape(len(box), -1)
    inside = (boxes >= 0) & (boxes < np.array(shape)[:, None])
    return boxes[:, inside.all(0)]


def _at(pixels: np.ndarray) -> tuple[slice | Tensor, ...]:
    """The index of these pixels in an image C(Z)YX."""
    return (slice(None), *map(torch.from_numpy, pixels))
