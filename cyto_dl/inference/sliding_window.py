"""Run a network over an image of any size, window by window, and blend what it predicts.

    image -> pad to a window -> grid of windows -> batches -> (views of) network -> weighted sum per head -> crop

The weights are separable and already divided by their sum, axis by axis: one multiply-add per window,
no count map, no final division.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from cyto_dl.errors import ConfigError
from cyto_dl.inference.views import AUGMENTATIONS, Network, averaged_over_views, num_views

BLENDS = ("gaussian", "constant")
WHOLE_IMAGE_MULTIPLE_PX = 32  # U-Nets halve an image at most five times
GAUSSIAN_SIGMA = 0.125  # of the window's side, as in nnU-Net and MONAI
LARGEST_TERM = 8  # of a fraction: a head that gives 92 px for 96 (no padding) would otherwise pass for the scale 23/24


@dataclass(frozen=True)
class SlidingWindow:
    """How a network meets an image larger than itself.

    Args:
        roi_size: The window in pixels, in the order (Z)YX. None: the whole image in one window, its sides padded to
            multiples of 32 px (memory grows with the image).
        overlap: Least overlap of neighbouring windows, as a part of the window, 0 <= overlap < 1. The windows are
            spread evenly over the image, so that they overlap a little more than asked rather than unevenly.
        blend: "gaussian" trusts a window's middle more than its border, "constant" takes the mean.
        batch_size: Windows per call of the network; it changes speed and memory, not the result.
        augment: Test-time augmentation: None, "flips" (4 times the computation) or "rotations" (8 times); see
            `cyto_dl.inference.views`.

    Raises:
        ConfigError: A value is out of its range; the message names the key.
    """

    roi_size: Sequence[int] | None = None
    overlap: float = 0.25
    blend: str = "gaussian"
    batch_size: int = 4
    augment: str | None = None

    def __post_init__(self) -> None:
        if self.roi_size is not None:
            sides = [self.roi_size] if isinstance(self.roi_size, int | str) else list(self.roi_size)
            if len(sides) not in (2, 3) or not all(_is_positive_integer(side) for side in sides):
                raise ConfigError(
                    f"model.inference.roi_size is {self.roi_size!r}; it must be 2 or 3 whole numbers, (Z)YX in pixels."
                )
            object.__setattr__(self, "roi_size", tuple(sides))
        if isinstance(self.overlap, bool) or not isinstance(self.overlap, int | float) or not 0 <= self.overlap < 1:
            raise ConfigError(f"model.inference.overlap is {self.overlap!r}; it must be a number from 0 to below 1.")
        if self.blend not in BLENDS:
            raise ConfigError(f"model.inference.blend is {self.blend!r}; choose one of {', '.join(BLENDS)}.")
        if not _is_positive_integer(self.batch_size):
            raise ConfigError(f"model.inference.batch_size is {self.batch_size!r}; it must be 1 or more.")
        if self.augment is not None and self.augment not in AUGMENTATIONS:
            raise ConfigError(
                f"model.inference.augment is {self.augment!r}; choose null or one of {', '.join(AUGMENTATIONS)}."
            )

    @torch.no_grad()
    def __call__(self, source_BCZYX: Tensor, network: Network) -> dict[str, Tensor]:
        """The network's output for whole images, per head, float32.

        Args:
            source_BCZYX: Images of one size; an image smaller than the window is reflected at its borders.
            network: From windows to {head: logits}. A head may have other channels, another scale (a whole
                number, or a fraction of numbers up to 8), or drop Z; then one window must cover the whole of Z.

        Returns:
            {head: B C (Z) Y X}, each `scale` times as large as the source, rounded up.

        Raises:
            ConfigError: The window's rank is not the image's, or a head's output does not fit its window.
        """
        if self.augment:
            network = averaged_over_views(network, self.augment)
        spatial_shape = source_BCZYX.shape[2:]
        axes = self._grid(spatial_shape, [1] * len(spatial_shape))
        outputs = self._run(source_BCZYX, network, axes)
        if isinstance(outputs, list):  # a head shrinks the image: windows must begin at multiples of that
            outputs = self._run(source_BCZYX, network, self._grid(spatial_shape, outputs))
        assert isinstance(outputs, dict)
        return outputs

    def num_windows(self, spatial_shape: Sequence[int]) -> int:
        """How many windows an image (Z)YX has, each view of test-time augmentation counted as one.

        A head that shrinks the image may need a few more.
        """
        axes = self._grid(spatial_shape, [1] * len(spatial_shape))
        return math.prod(len(axis.starts) for axis in axes) * num_views(self.augment)

    def _grid(self, spatial_shape: Sequence[int], steps: Sequence[int]) -> list["_Axis"]:
        roi = self.roi_size
        if roi is None:
            roi = [math.ceil(size / WHOLE_IMAGE_MULTIPLE_PX) * WHOLE_IMAGE_MULTIPLE_PX for size in spatial_shape]
        if len(roi) != len(spatial_shape):
            raise ConfigError(
                f"model.inference.roi_size has {len(roi)} numbers {tuple(roi)}, but the image has "
                f"{len(spatial_shape)} spatial axes {tuple(spatial_shape)}. Give one number per axis, (Z)YX."
            )
        return [
            _Axis.fit(size, side, overlap=self.overlap, multiple=multiple)
            for size, side, multiple in zip(spatial_shape, roi, steps, strict=True)
        ]

    def _run(self, source: Tensor, network: Network, axes: Sequence["_Axis"]) -> dict[str, Tensor] | list[int]:
        """Outputs per head; or, when the grid does not fit the heads' scales, the multiples that it must keep to."""
        canvases: dict[str, _Canvas] = {}
        for tiles, windows in self._batches(_pad(source, axes), axes):
            outputs = network(windows)
            if not canvases:
                scales = {name: _scale(name, output, axes) for name, output in outputs.items()}
                multiples = _multiples(scales.values(), axes)
                if not all(axis.fits(multiple) for axis, multiple in zip(axes, multiples, strict=True)):
                    return multiples
                weights = {scale: _Weights(axes, scale, self.blend, source.device) for scale in scales.values()}
                canvases = {
                    name: _Canvas(len(source), output.shape[1], weights[scales[name]])
                    for name, output in outputs.items()
                }
            for name, canvas in canvases.items():
                canvas.add(tiles, outputs[name])
        return {name: canvas.image() for name, canvas in canvases.items()}

    def _batches(self, source: Tensor, axes: Sequence["_Axis"]) -> Iterator[tuple[list["_Tile"], Tensor]]:
        grid = list(itertools.product(*(range(len(axis.starts)) for axis in axes)))
        tiles = [_Tile(image, position) for image in range(len(source)) for position in grid]
        roi = [axis.roi for axis in axes]
        # Batches of nearly one size: oneDNN takes three times as long for a window that is left over and alone.
        num_batches = math.ceil(len(tiles) / self.batch_size)
        limits = [len(tiles) * number // num_batches for number in range(num_batches + 1)]
        buffer = source.new_empty((math.ceil(len(tiles) / num_batches), source.shape[1], *roi))
        for first, last in itertools.pairwise(limits):
            batch = tiles[first:last]
            for window, tile in zip(buffer, batch, strict=False):
                starts = [axis.starts[index] for axis, index in zip(axes, tile.position, strict=True)]
                region = tuple(slice(start, start + side) for start, side in zip(starts, roi, strict=True))
                window.copy_(source[tile.image][(slice(None), *region)])
            yield batch, buffer[: len(batch)]


@dataclass(frozen=True)
class _Tile:
    image: int
    position: tuple[int, ...]  # number of the window along each axis


@dataclass(frozen=True)
class _Axis:
    """Where the windows stand along one axis, in pixels of the padded image."""

    size: int
    roi: int
    before: int  # padding in front of the image
    padded: int
    starts: tuple[int, ...]

    @classmethod
    def fit(cls, size: int, roi: int, *, overlap: float, multiple: int) -> "_Axis":
        """The fewest windows with at least `overlap`, evenly spread; they begin at multiples of `multiple`."""
        span = math.ceil(max(0, size - roi) / multiple)
        step = max(1, int(roi * (1 - overlap)) // multiple)
        num_gaps = math.ceil(span / step)
        gap, num_larger = divmod(span, max(1, num_gaps))
        # all the smaller gaps first: few different neighbourhoods, so few different weights
        gaps = [gap] * (num_gaps - num_larger) + [gap + 1] * num_larger
        starts = tuple(multiple * start for start in itertools.accumulate(gaps, initial=0))
        padded = starts[-1] + roi
        return cls(size, roi, (max(0, roi - size) // 2) // multiple * multiple, padded, starts)

    def fits(self, multiple: int) -> bool:
        return all(position % multiple == 0 for position in (*self.starts, self.before))


class _Weights:
    """Blending weights of every window at one scale; they sum to one at every pixel."""

    def __init__(self, axes: Sequence[_Axis], scale: tuple[Fraction, ...], blend: str, device: torch.device) -> None:
        self.axes = axes[len(axes) - len(scale) :]  # a projection drops Z
        self.scale = scale
        self.device = device
        self.is_one = all(len(axis.starts) == 1 for axis in self.axes)  # one window, and nothing to blend
        if self.is_one:
            return
        per_axis = [_axis_weights(axis, factor, blend) for axis, factor in zip(self.axes, scale, strict=True)]
        self.kinds = [kinds for _, kinds in per_axis]
        self.profiles = [profiles for profiles, _ in per_axis]
        self.product = lru_cache(maxsize=32)(self._product)  # a row of windows has about five kinds

    def of(self, position: tuple[int, ...]) -> Tensor:
        kept = position[len(position) - len(self.axes) :]
        return self.product(tuple(kinds[index] for kinds, index in zip(self.kinds, kept, strict=True)))

    def region(self, position: tuple[int, ...]) -> tuple[slice, ...]:
        kept = position[len(position) - len(self.axes) :]
        return tuple(
            slice(int(axis.starts[index] * factor), int((axis.starts[index] + axis.roi) * factor))
            for axis, factor, index in zip(self.axes, self.scale, kept, strict=True)
        )

    def _product(self, kinds: tuple[int, ...]) -> Tensor:
        weight = torch.ones((), device=self.device)
        for profiles, kind in zip(self.profiles, kinds, strict=True):
            weight = weight[..., None] * profiles[kind].float().to(self.device)
        return weight


class _Canvas:
    """The weighted sum of one head's windows."""

    def __init__(self, num_images: int, num_channels: int, weights: _Weights) -> None:
        self.weights = weights
        shape = [int(axis.padded * factor) for axis, factor in zip(weights.axes, weights.scale, strict=True)]
        self.total = torch.zeros((num_images, num_channels, *shape), device=weights.device)

    def add(self, tiles: Sequence[_Tile], outputs: Tensor) -> None:
        for tile, output in zip(tiles, outputs.float(), strict=True):
            if self.weights.is_one:
                self.total[tile.image].copy_(output)
                continue
            region = self.weights.region(tile.position)
            self.total[tile.image][(slice(None), *region)].addcmul_(output, self.weights.of(tile.position))

    def image(self) -> Tensor:
        region = (
            slice(int(axis.before * factor), int(axis.before * factor) + math.ceil(axis.size * factor))
            for axis, factor in zip(self.weights.axes, self.weights.scale, strict=True)
        )
        return self.total[(slice(None), slice(None), *region)]


def _axis_weights(axis: _Axis, factor: Fraction, blend: str) -> tuple[list[Tensor], list[int]]:
    """The different weight profiles along an axis, and which of them each window has."""
    side = int(axis.roi * factor)
    profile = torch.ones(side, dtype=torch.float64)
    if blend == "gaussian":
        distance = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
        profile = torch.exp(-0.5 * (distance / (GAUSSIAN_SIGMA * side)) ** 2)
    starts = [int(start * factor) for start in axis.starts]
    total = torch.zeros(int(axis.padded * factor), dtype=torch.float64)
    for start in starts:
        total[start : start + side] += profile
    profiles: list[Tensor] = []
    kinds: list[int] = []
    for start in starts:
        weight = profile / total[start : start + side]
        kind = next((kind for kind, known in enumerate(profiles) if torch.equal(known, weight)), len(profiles))
        if kind == len(profiles):
            profiles.append(weight)
        kinds.append(kind)
    return profiles, kinds


def _pad(source: Tensor, axes: Sequence[_Axis]) -> Tensor:
    """The image reflected at its borders, as often as it takes, to the size that the windows cover."""
    for dim, axis in enumerate(axes, start=2):
        if axis.padded == axis.size:
            continue
        period = max(1, 2 * (axis.size - 1))
        position = (torch.arange(axis.padded, device=source.device) - axis.before).abs() % period
        source = source.index_select(dim, torch.where(position < axis.size, position, period - position))
    return source


def _scale(name: str, output: Tensor, axes: Sequence[_Axis]) -> tuple[Fraction, ...]:
    """Output pixels per source pixel along the axes that the head keeps."""
    kept = axes[len(axes) - (output.ndim - 2) :]
    roi = tuple(axis.roi for axis in axes)
    if output.ndim - 2 not in (len(axes), 2):
        raise ConfigError(f"model.task_heads.{name}: the head gives shape {tuple(output.shape)} for a window {roi}.")
    if len(kept) < len(axes) and len(axes[0].starts) > 1:
        raise ConfigError(
            f"model.task_heads.{name} projects along Z, but a window covers {axes[0].roi} of {axes[0].size} planes. "
            f"Set the first number of model.inference.roi_size to {axes[0].size} or more."
        )
    scale = tuple(Fraction(side, axis.roi) for side, axis in zip(output.shape[2:], kept, strict=True))
    if any(factor.denominator > 1 and max(factor.as_integer_ratio()) > LARGEST_TERM for factor in scale):
        raise ConfigError(
            f"model.task_heads.{name}: the head gives {tuple(output.shape[2:])} px for a window of {roi} px, which is "
            f"no simple scale (such as 1, 2 or 1/2). Use convolutions that keep the size (padding), "
            "or sides of model.inference.roi_size that the network's strides divide."
        )
    return scale


def _multiples(scales: Iterable[tuple[Fraction, ...]], axes: Sequence[_Axis]) -> list[int]:
    """What the positions of windows must be multiples of, per axis, to fall on whole output pixels."""
    multiples = [1] * len(axes)
    for scale in scales:
        for dim, factor in enumerate(scale, start=len(axes) - len(scale)):
            multiples[dim] = math.lcm(multiples[dim], factor.denominator)
    return multiples


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
