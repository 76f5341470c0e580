"""The bundle's sample: a small image and its predictions, made at export and replayed wherever the bundle is loaded.

crop of a real image --Predictor--> outputs --sample.npz--> Predictor elsewhere --compare--> same, or an error
"""

import itertools
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyto_dl.data.image import Image
from cyto_dl.errors import BundleError, list_problems
from cyto_dl.storage import atomic_path

if TYPE_CHECKING:
    from cyto_dl.inference.predictor import Predictor

_WHOLE_IMAGE_SIDE_PX = 128  # of the sample, when the network sees images in one piece

_INPUT, _SPACING = "input", "spacing_um"
_IMAGE, _ACTIVATION = "image/", "activation/"


@dataclass(frozen=True)
class Tolerance:
    """How much a replay may differ from what was recorded.

    Args:
        floats: Of the output's largest value, or of 1; integers may always be rounded to a neighbour.
        labels: Part of the pixels that may have another label.
    """

    floats: float
    labels: float


EXACT = Tolerance(0, 0)  # bit for bit: the machine, engine and number of threads that recorded the sample
ELSEWHERE = Tolerance(1e-4, 1e-4)  # another processor, another build of torch: sums are rounded in another order
# bfloat16: logits within 20 differed by up to 0.17, 0.03 % of the mask; float16 is finer
HALF_PRECISION = Tolerance(5e-2, 5e-3)
ANOTHER_ENGINE = Tolerance(1e-3, 1e-3)  # they also fold and reorder layers; an export allows logits as much


def tolerance_of(engine: str) -> Tolerance:
    """How much an engine may differ from what torch recorded."""
    tolerances = {"torch": ELSEWHERE, "torch-mixed": HALF_PRECISION, "openvino-bf16": HALF_PRECISION}
    return tolerances.get(engine, ANOTHER_ENGINE)


@dataclass(frozen=True)
class Sample:
    """An input and what a model made of it.

    Args:
        image: As acquired, C (Z) Y X.
        images: Head -> postprocessed prediction.
        activations: Head -> activated output, float32; none of a head whose image is what metrics see.
    """

    image: Image
    images: Mapping[str, np.ndarray]
    activations: Mapping[str, np.ndarray]


def make_sample(predictor: "Predictor", image: Image) -> Sample:
    """Predict an image as the bundle's sample."""
    prediction = predictor.predict_with_activations(image)
    # what metrics see of objects is their image
    activations = {head: each.numpy() for head, each in prediction.activations.items() if each.is_floating_point()}
    return Sample(predictor.checked(image), prediction.images, activations)


def crop_for_sample(image: Image, roi_size: Sequence[int] | None) -> Image:
    """A piece of an image that two windows cover, so that their blending is replayed; the one richest in contrast.

    Args:
        image: C (Z) Y X.
        roi_size: The network's window; None: it sees images in one piece.
    """
    sides = list(roi_size) if roi_size else [_WHOLE_IMAGE_SIDE_PX] * (image.array.ndim - 1)
    if roi_size:
        sides[-1] = sides[-1] * 3 // 2
    starts = []
    for size, side in zip(image.array.shape[1:], sides, strict=True):
        room = max(0, size - side)
        starts.append(sorted({0, room // 2, room}))
    crops = [
        image.array[(slice(None), *(slice(start, start + side) for start, side in zip(corner, sides, strict=True)))]
        for corner in itertools.product(*starts)
    ]
    best = max(crops, key=lambda crop: float(crop[0].std()))
    return Image(np.ascontiguousarray(best), image.spacing_um, image.path)


def write_sample(path: Path, sample: Sample) -> None:
    """Write a sample as .npz."""
    arrays: dict[str, Any] = {_INPUT: sample.image.array}
    if sample.image.spacing_um is not None:
        arrays[_SPACING] = np.array(sample.image.spacing_um)
    arrays |= {f"{_IMAGE}{head}": array for head, array in sample.images.items()}
    arrays |= {f"{_ACTIVATION}{head}": array for head, array in sample.activations.items()}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_sample(path: Path) -> Sample:
    """Read a sample.

    Raises:
        BundleError: The file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        spacing_um = tuple(arrays[_SPACING].tolist()) if _SPACING in arrays else None
        return Sample(
            Image(arrays[_INPUT], spacing_um, path.name),
            {name.removeprefix(_IMAGE): array for name, array in arrays.items() if name.startswith(_IMAGE)},
            {name.removeprefix(_ACTIVATION): array for name, array in arrays.items() if name.startswith(_ACTIVATION)},
        )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path} cannot be read: {error}. Export the bundle again.") from error


def replay(predictor: "Predictor", sample: Sample, *, tolerance: Tolerance = ELSEWHERE) -> None:
    """Predict the sample again and compare with what was recorded.

    Args:
        predictor: The model as it was loaded.
        sample: The bundle's sample.
        tolerance: EXACT, ELSEWHERE, ANOTHER_ENGINE or HALF_PRECISION.

    Raises:
        BundleError: Says which head differs, and by how much.
    """
    again = make_sample(predictor, sample.image)
    problems = []
    for head, output in predictor.outputs.items():
        compare = _different_values
        if output.get("values") == "labels":
            compare = partial(_different_labels, output["kind"])
        problems += _differences(head, again.images[head], sample.images.get(head), compare, tolerance)
    for head, found in again.activations.items():
        expected = sample.activations.get(head)
        problems += _differences(f"{head} (activated)", found, expected, _different_values, tolerance)
    if problems:
        raise BundleError(
            f"{predictor.name} does not repeat the predictions that were recorded when it was exported:\n"
            f"{list_problems(problems)}\n"
            "Is it run with the versions of torch and MONAI that bundle.yaml names under provenance?"
        )


def _differences(
    name: str,
    found: np.ndarray,
    expected: np.ndarray | None,
    compare: Callable[[np.ndarray, np.ndarray, Tolerance], str],
    tolerance: Tolerance,
) -> list[str]:
    if expected is None:
        return [f"{name}: no output was recorded"]
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return [f"{name}: {found.dtype} {found.shape}, and recorded was {expected.dtype} {expected.shape}"]
    if tolerance == EXACT:
        return [] if found.tobytes() == expected.tobytes() else [f"{name}: not the same bit for bit"]
    problem = compare(found, expected, tolerance)
    return [f"{name}: {problem}"] if problem else []


def _different_values(found: np.ndarray, expected: np.ndarray, tolerance: Tolerance) -> str:
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    limit = tolerance.floats * max(1.0, float(np.abs(expected).max(initial=0)))
    if np.issubdtype(expected.dtype, np.integer):
        limit = max(1.0, limit)
    largest = float(difference.max(initial=0))
    return f"values differ by up to {largest:.3g} ({limit:.3g} is allowed)" if largest > limit else ""


def _different_labels(kind: str, found: np.ndarray, expected: np.ndarray, tolerance: Tolerance) -> str:
    part = changed_part(found, expected, kind)
    what = "belong to another object" if kind == "instances" else "have another label"
    return f"{part:.3%} of the pixels {what}" if part > tolerance.labels else ""


def changed_part(found: np.ndarray, expected: np.ndarray, kind: str) -> float:
    """Part of the pixels that have another label.

    Args:
        found: Labels.
        expected: Labels, of the same shape.
        kind: Of the head. "instances": objects are the same whatever numbers they have, because one object more
            changes those of all after it.
    """
    if kind != "instances":
        return float(np.mean(found != expected))
    pairs, counts = np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1, return_counts=True)
    common = []  # pixels that an object shares with the one of the other image that it shares most with
    for labels in pairs:
        largest = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
        np.maximum.at(largest, labels, counts)
        common.append(int(largest.sum()))
    return 1 - min(common) / max(1, found.size)
