"""One image of an evaluation as a figure: input, target, prediction, and where they differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from skimage.segmentation import find_boundaries

from cyto_dl.data.image import Image
from cyto_dl.inference.picture import (
    Picture,
    busiest_plane,
    coloured_labels,
    data_uri,
    fitted,
    grey,
    mistakes,
    plane,
    window_of,
)
from cyto_dl.metrics import matched_labels

_SIDE_PX = 360
_FOUND_IOU = 0.5
_OUTLINE = 0.45  # of the object's own brightness
_FOUND, _BADLY_CUT = (90, 90, 90), (245, 205, 60)


@dataclass(frozen=True)
class Figure:
    """One image: its rank and value, and titled pictures as data URIs."""

    rank: str  # best, median or worst
    value: str  # e.g. "dice 0.912"
    path: str
    pictures: list[tuple[str, str]]
    plane: str = ""  # of a stack, which one is shown, e.g. "plane 5 of 10"


def draw(
    rank: str, value: str, source: Image, *, target: np.ndarray, prediction: np.ndarray, output: Mapping[str, Any]
) -> Figure:
    """Draw one image; of a stack, the plane in which the target shows most.

    Args:
        rank: "best", "median" or "worst".
        value: What it reached.
        source: The input image.
        target: C (Z) Y X.
        prediction: Activated output or labels, C (Z) Y X.
        output: Kind and activation of the head, which say whether these are objects, masks, classes or intensities.
    """
    index = busiest_plane(target)
    pictures = {"input": grey(plane(source.array, _same_place(index, target, source.array)))}
    if output["kind"] == "instances":
        pictures |= _objects(target, prediction, index)
    elif output["activation"] == "sigmoid":
        pictures |= _masks(plane(target, index), plane(prediction, index))
    elif output["activation"] == "softmax":
        pictures |= _classes(plane(target, index), plane(prediction, index))
    else:
        pictures |= _intensities(plane(target, index), plane(prediction, index))
    drawn = [(title, data_uri(fitted(picture, _SIDE_PX))) for title, picture in pictures.items()]
    return Figure(rank, value, source.path, drawn, "" if index is None else f"plane {index + 1} of {target.shape[1]}")


def _same_place(index: int | None, target: np.ndarray, source: np.ndarray) -> int | None:
    """The plane of the source that a target of finer or coarser planes shows."""
    if index is None or source.ndim != target.ndim:
        return None
    return (2 * index + 1) * source.shape[1] // (2 * target.shape[1])


def _objects(target: np.ndarray, prediction: np.ndarray, index: int | None) -> dict[str, Picture]:
    """Objects in colours, those that were found in the colour of their true one; then those that were not."""
    target, prediction = target.astype(np.int64), prediction.astype(np.int64)
    true, found = matched_labels(target, prediction, threshold=_FOUND_IOU)
    is_missed = (target > 0) & ~np.isin(target, true)
    is_false = (prediction > 0) & ~np.isin(prediction, found)
    colours = np.arange(prediction.max(initial=0) + 1) + target.max(initial=0)
    colours[0] = 0
    colours[found] = true
    true_plane, predicted_plane = plane(target, index), plane(prediction, index)
    false, missed = plane(is_false, index)[0], plane(is_missed, index)[0]
    verdict = mistakes(false, missed)
    verdict[false & missed] = _BADLY_CUT
    verdict[((true_plane[0] > 0) | (predicted_plane[0] > 0)) & ~false & ~missed] = _FOUND
    return {
        "target": _outlined(coloured_labels(true_plane), true_plane[0]),
        "prediction": _outlined(coloured_labels(colours[predicted_plane]), predicted_plane[0]),
        "found grey, missed blue, false red, both yellow": _outlined(verdict, predicted_plane[0]),
    }


def _outlined(picture: Picture, labels: np.ndarray) -> Picture:
    """The picture with a dark rim inside each object, so that touching ones are told apart."""
    shade = np.where(find_boundaries(labels, mode="inner"), _OUTLINE, 1.0)[..., None]
    return (picture * shade).astype(np.uint8)


def _masks(target: np.ndarray, prediction: np.ndarray) -> dict[str, Picture]:
    return {
        "target": grey(target[:1], (0, 1)),
        "prediction (probability)": grey(prediction[:1], (0, 1)),
        "missed blue, false red": mistakes(prediction[0] > 0.5, target[0] > 0.5),
    }


def _classes(target: np.ndarray, prediction: np.ndarray) -> dict[str, Picture]:
    classes = target if len(target) == 1 else target.argmax(axis=0, keepdims=True)
    predicted = prediction.argmax(axis=0, keepdims=True)
    return {
        "target": coloured_labels(classes.round()),
        "prediction": coloured_labels(predicted),
        "differing pixels": grey((predicted != classes.round()).astype(np.uint8), (0, 1)),
    }


def _intensities(target: np.ndarray, prediction: np.ndarray) -> dict[str, Picture]:
    low, high = window_of(target[0])
    return {
        "target": grey(target[:1], (low, high)),
        "prediction": grey(prediction[:1], (low, high)),
        "absolute difference": grey(np.abs(prediction[:1] - target[:1]), (0, (high - low) / 2)),
    }
