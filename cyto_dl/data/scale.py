"""How many voxels of a target lie along one voxel of its source: a whole number, or one over a whole number.

source 32x32, target 64x64 -> (2, 2)         source 8x64x64, target 16x32 (a projection) -> (1/4, 1/2)
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from math import lcm

Scale = tuple[Fraction, ...]


@lru_cache(maxsize=4096)  # asked for every patch, about the few sizes of a data set
def scale_of(shape: tuple[int, ...], target_shape: tuple[int, ...]) -> Scale | None:
    """Target voxels per source voxel along each axis of the target; None where that is no scale.

    Args:
        shape: Of the source, (Z)YX.
        target_shape: Of the target, (Z)YX; it may lack the source's leading axes.
    """
    missing = len(shape) - len(target_shape)
    if missing < 0:
        return None
    scale = tuple(Fraction(target, source) for source, target in zip(shape[missing:], target_shape, strict=True))
    return scale if all(1 in (ratio.numerator, ratio.denominator) for ratio in scale) else None


def common_steps(num_axes: int, scales: Iterable[Scale]) -> tuple[int, ...]:
    """Every how many source voxels, along each of its axes, the grids of the source and of all targets meet."""
    steps = [1] * num_axes
    for scale in scales:
        for axis, ratio in enumerate(scale, start=num_axes - len(scale)):
            steps[axis] = lcm(steps[axis], ratio.denominator)
    return tuple(steps)


def source_voxel(voxel: Sequence[int], scale: Scale) -> list[int]:
    """The source's voxel, along the axes of the target, in which the middle of a target's voxel lies."""
    return [
        (2 * index + 1) * ratio.denominator // (2 * ratio.numerator) for index, ratio in zip(voxel, scale, strict=True)
    ]


def target_box(box: Sequence[slice], scale: Scale) -> tuple[slice, ...]:
    """The box of a target that covers a box of its source, whose bounds are multiples of the common steps."""
    inside = box[len(box) - len(scale) :]
    return tuple(
        slice(int(axis.start * ratio), int(axis.stop * ratio)) for axis, ratio in zip(inside, scale, strict=True)
    )


def target_spacing(spacing_um: tuple[float, ...] | None, scale: Scale | None) -> tuple[float, ...] | None:
    """The pixel size of a target in µm, from that of its source; None where it is not known."""
    if spacing_um is None or scale is None:
        return None
    along = spacing_um[len(spacing_um) - len(scale) :]
    return tuple(size / float(ratio) for size, ratio in zip(along, scale, strict=True))


def no_scale(source_key: str, source: str, shape: Sequence[int], *, key: str, target: str, found: Sequence[int]) -> str:
    """The message for a target whose size does not go with that of its source."""
    return (
        f"'{source_key}' ({source}) has the size {tuple(shape)}, but '{key}' ({target}) has {tuple(found)}. They must "
        "be equal, or one a whole multiple of the other along an axis; a target may lack the leading axes."
    )


def other_scale(
    source_key: str,
    source: str,
    shape: Sequence[int],
    *,
    scale: int | Sequence[int],
    key: str,
    target: str,
    found: Sequence[int],
) -> str:
    """The message for a target that has not `scale` times as many voxels as its source; empty where it has."""
    factors = [scale] * len(shape) if isinstance(scale, int) else list(scale)
    if len(factors) != len(shape):
        return f"scale (data.scales.{key}) is {scale}, but '{source_key}' ({source}) has {len(shape)} axes: {shape}."
    expected = tuple(size * factor for size, factor in zip(shape, factors, strict=True))
    if expected == tuple(found):
        return ""
    return (
        f"'{source_key}' ({source}) has the size {tuple(shape)}, so with scale {scale} (data.scales.{key}) "
        f"'{key}' ({target}) must have {expected}, but it has {tuple(found)}. Correct scale, or crop the images: both "
        "must show exactly the same field."
    )


def off_the_grid(path: str, patch_shape: Sequence[int], steps: Sequence[int]) -> str:
    """The message for a patch that would end inside a voxel of a coarser target."""
    return (
        f"{path}: data.patch_shape is {tuple(patch_shape)}, but the voxels of a target are coarser than those of the "
        f"source. Give multiples of {tuple(steps)}."
    )
