"""Refuse augmentations that would flip or turn a stack and its projection along different axes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monai.transforms import Compose, RandAxisFlipd

from cyto_dl.data.transforms import Transform
from cyto_dl.errors import ConfigError


def check_axes(augment: Sequence[Transform], spatial_dims: Mapping[str, int]) -> None:
    """Check the flips and rotations of images that differ in their number of axes.

    Axis 0 is Z in a stack and Y in its projection; -1 is X in both.

    Args:
        augment: Random transforms.
        spatial_dims: By key; 2 or 3.

    Raises:
        ConfigError: A transform counts axes from the front, or draws one.
    """
    for transform in _flat(augment):
        keys = [str(key) for key in getattr(transform, "keys", ()) if str(key) in spatial_dims]
        if len({spatial_dims[key] for key in keys}) < 2:
            continue
        axes = _axes(transform)
        if isinstance(transform, RandAxisFlipd) or any(axis >= 0 for axis in axes):
            each = ", ".join(f"'{key}' {spatial_dims[key]}" for key in keys)
            raise ConfigError(
                f"data.transforms: {type(transform).__name__} counts axes from the front, but its images differ in "
                f"their number of axes ({each}). Give axes counted from the end: -1 is X, -2 is Y."
            )


def _flat(transforms: Sequence[Any]) -> Iterator[Any]:
    for transform in transforms:
        yield from _flat(transform.transforms) if isinstance(transform, Compose) else [transform]


def _axes(transform: Any) -> tuple[int, ...]:
    """The axes that MONAI's flips and rotations by right angles are told; none where they mean all."""
    axes = getattr(getattr(transform, "flipper", transform), "spatial_axis", getattr(transform, "spatial_axes", None))
    return (axes,) if isinstance(axes, int) else tuple(axes or ())
