"""Undo on a network's output what preprocessing did to the image's geometry.

image --Spacingd, CropForegroundd, ...--> small image --network--> logits --undo--> logits on the image's own grid
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import BorderPad, Compose, LazyTransform, Transposed
from monai.utils import GridSampleMode, InterpolateMode, SplineMode, TraceKeys
from torch import Tensor

from cyto_dl.data.transforms import Transform
from cyto_dl.errors import ConfigError

# Invertible transforms of MONAI that change types, not geometry.
_OF_TYPES = ("ToTensord", "ToMetaTensord", "FromMetaTensord", "Lambdad")
_INTERPOLATIONS = [*InterpolateMode, *GridSampleMode, *SplineMode]


def undo_geometry(logits: Tensor, preprocessed: MetaTensor, preprocess: Sequence[Transform], *, key: str) -> Tensor:
    """Logits on the grid that the image had before preprocessing, resampled bilinearly.

    Args:
        logits: C (Z) Y X, on the grid of `preprocessed`; C Y X from a head that projects Z away.
        preprocessed: The image after preprocessing, C (Z) Y X; it remembers what was done to it.
        preprocess: The transforms that did it.
        key: Their key.

    Returns:
        C (Z) Y X as the image was acquired. Outside what preprocessing cropped away, the nearest prediction continues.

    Raises:
        ConfigError: The head's output has another size than its input, and preprocessing changed the geometry.
    """
    operations = _geometric_operations(preprocessed)
    if not operations:
        return logits
    shape = preprocessed.shape[1:]
    projected = logits.ndim == len(shape)
    volume = logits[:, None].expand(-1, shape[0], *logits.shape[1:]) if projected else logits
    if volume.shape[1:] != shape:
        raise ConfigError(
            f"data.transforms.preprocess changes the images' geometry, and a head turns {tuple(shape)} pixels into "
            f"{tuple(logits.shape[1:])}. Use one of the two: such a head, or resampling and cropping."
        )
    # One more channel, all ones, shows afterwards which pixels were inside.
    marked = torch.cat([volume, torch.ones_like(volume[:1])])
    carrier = MetaTensor(marked, affine=preprocessed.affine, applied_operations=operations)
    restored = _geometric_part(preprocess).inverse({key: carrier})[key].as_tensor()
    filled = _continue_outside(restored[:-1], inside=restored[-1] > 0.5).to(logits.dtype)
    return filled[:, filled.shape[1] // 2] if projected else filled


def check_geometry(preprocess: Sequence[Transform], image: MetaTensor, *, key: str) -> None:
    """Refuse preprocessing whose change of the image's shape cannot be undone on the predictions.

    Raises:
        ConfigError: Names the transform.
    """
    after: Any = image
    for transform in Compose(preprocess).flatten().transforms:
        before, after = after, transform({key: after})[key]
        is_recorded = len(_geometric_operations(after)) > len(_geometric_operations(before))
        if after.shape[1:] != before.shape[1:] and not is_recorded:
            raise ConfigError(
                f"data.transforms.preprocess: {type(transform).__name__} turns {tuple(before.shape[1:])} pixels into "
                f"{tuple(after.shape[1:])} and MONAI cannot invert it, so predictions would not fit their images. "
                "Use an invertible one (Spacingd, Resized, Zoomd, CropForegroundd, SpatialPadd, ...), or do it "
                "to the files beforehand."
            )


def _geometric_part(preprocess: Sequence[Transform]) -> Compose:
    """MONAI's croppings, paddings and resamplings are lazy transforms; other invertible ones change types."""
    transforms = Compose(preprocess).flatten().transforms
    return Compose([each for each in transforms if isinstance(each, (LazyTransform, Transposed))])


def _geometric_operations(image: Tensor) -> list[dict[str, Any]]:
    """What was done to an image, as MONAI recorded it; a copy, because undoing changes the records."""
    if not isinstance(image, MetaTensor):
        return []
    geometric = [each for each in image.applied_operations if each[TraceKeys.CLASS_NAME] not in _OF_TYPES]
    return [_with_smooth_interpolation(each) for each in copy.deepcopy(geometric)]


def _with_smooth_interpolation(record: Any) -> Any:
    """A record whose interpolations, at any depth, are bilinear: "area" or "nearest" would make blocks of logits."""
    if isinstance(record, list | tuple):
        return [_with_smooth_interpolation(each) for each in record]
    if not isinstance(record, dict):
        return record
    return {
        key: "bilinear" if key == "mode" and value in _INTERPOLATIONS else _with_smooth_interpolation(value)
        for key, value in record.items()
    }


def _continue_outside(volume: Tensor, *, inside: Tensor) -> Tensor:
    """Fill what lies outside the box of `inside` with the values at its border.

    MONAI pads with zeros, and a logit of 0 is a probability of one half.
    """
    if bool(inside.all()):
        return volume
    places = inside.nonzero()
    low, high = places.amin(0).tolist(), (places.amax(0) + 1).tolist()
    box = volume[(slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))]
    borders = [n for a, b, size in zip(low, high, inside.shape, strict=True) for n in (a, size - b)]
    return BorderPad(borders, mode="replicate")(box)
