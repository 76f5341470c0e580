"""The orders in which an image's axes may come, and how it gets into the one of the model.

V2 tensors   N C (Z) Y X, of one channel also N (Z) Y X; answers are always N C (Z) Y X
V1           C (Z) Y X, of one channel also (Z) Y X
the parameter `axes` names any other order, as NYXC: every spatial axis once, C where there are several channels
"""

from collections.abc import Sequence

import numpy as np
from kserve.errors import InvalidInput

from cyto_dl.inference import InputSpec


def full_axes(spec: InputSpec, *, batch: bool) -> str:
    """The order of the model, with N in front where there may be several images."""
    return f"N{spec.axes}" if batch else spec.axes


def accepted_axes(spec: InputSpec, *, batch: bool) -> list[str]:
    """The orders that need not be named."""
    full = full_axes(spec, batch=batch)
    return [full, full.replace("C", "")] if spec.num_channels == 1 else [full]


def axes_of(shape: Sequence[int], spec: InputSpec, *, name: str, batch: bool, asked: str | None = None) -> str:
    """The axes of an array, by its shape or as the client says, checked against the model.

    Args:
        shape: Of the array.
        spec: What the model takes.
        name: Of the array, for messages.
        batch: Whether it may have N.
        asked: The parameter `axes`.

    Raises:
        InvalidInput: The shape does not fit.
    """
    choices = accepted_axes(spec, batch=batch) if asked is None else [_checked(asked, spec, batch=batch)]
    axes = next((axes for axes in choices if len(axes) == len(shape)), "")
    sizes = dict(zip(axes, shape, strict=True)) if axes else {}
    if not axes or min(shape) < 1 or sizes.get("C", 1) != spec.num_channels:
        raise InvalidInput(
            f"{name}: shape {list(shape)} does not fit {' or '.join(in_words(axes, spec) for axes in choices)}, all "
            f"sizes at least 1 ({spec.num_channels} {'channel' if spec.num_channels == 1 else 'channels'})"
        )
    return axes


def in_order(array: np.ndarray, axes: str, spec: InputSpec, *, batch: bool) -> np.ndarray:
    """The array in the order of the model, with every axis; a view where it is already.

    Its memory is in that order, too: networks round differently over other layouts.
    """
    full = full_axes(spec, batch=batch)
    array = np.transpose(array, [axes.index(axis) for axis in full if axis in axes])
    missing = tuple(place for place, axis in enumerate(full) if axis not in axes)
    return np.ascontiguousarray(np.expand_dims(array, missing))


def _checked(asked: str, spec: InputSpec, *, batch: bool) -> str:
    axes, full = asked.upper(), full_axes(spec, batch=batch)
    needed = set(spec.axes if spec.num_channels > 1 else spec.axes[1:])
    if len(set(axes)) != len(axes) or not needed <= set(axes) <= set(full):
        optional = "".join(axis for axis in full if axis not in needed)
        raise InvalidInput(
            f"parameters: axes: {asked[:60]!r} is no order of {', '.join(sorted(needed))}"
            f"{f' and, if there, {optional}' if optional else ''}, each once, as {full}"
        )
    return axes


def in_words(axes: str, spec: InputSpec) -> str:
    """As a shape, for messages: [N, 1, Y, X]."""
    return f"[{', '.join(str(spec.num_channels) if axis == 'C' else axis for axis in axes)}]"
