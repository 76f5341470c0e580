"""One image of an evaluation as a figure: input, target, prediction, and where they differ."""

from dataclasses import dataclass

import numpy as np

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

_SIDE_PX = 360


@dataclass(frozen=True)
class Figure:
    """One image: its rank and value, and titled pictures as data URIs."""

    rank: str  # best, median or worst
    value: str  # e.g. "dice 0.912"
    path: str
    pictures: list[tuple[str, str]]


def draw(
    rank: str, value: str, source: Image, *, target: np.ndarray, prediction: np.ndarray, activation: str
) -> Figure:
    """Draw one image; of a stack, the plane in which the target shows most.

    Args:
        rank: "best", "median" or "worst".
        value: What it reached.
        source: The input image.
        target: C (Z) Y X.
        prediction: Activated output, C (Z) Y X.
        activation: Of the head, which says whether these are masks, classes or intensities.
    """
    index = busiest_plane(target)
    shown_target, shown_prediction = plane(target, index), plane(prediction, index)
    pictures = {"input": grey(plane(source.array, index))}
    if activation == "sigmoid":
        pictures |= _masks(shown_target, shown_prediction)
    elif activation == "softmax":
        pictures |= _classes(shown_target, shown_prediction)
    else:
        pictures |= _intensities(shown_target, shown_prediction)
    drawn = [(title, data_uri(fitted(picture, _SIDE_PX))) for title, picture in pictures.items()]
    return Figure(rank, value, source.path, drawn)


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
