"""What was taken for what, counted over all images of a split:  prediction, target -> matrix of counts, rows are true

Pixels of a head with masks or classes; objects of a head with instances; nothing of a head with intensities.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cyto_dl.metrics import InstanceAP
from cyto_dl.storage import atomic_path

_FOUND_IOU = 0.5
_BLOCK = 1 << 22  # pixels at a time: 32 MiB of class numbers, whatever the size of a stack
_MOST_CLASSES = 64  # a matrix of more cannot be read


@dataclass(frozen=True)
class Confusion:
    """Counts of true against predicted categories.

    Args:
        unit: "pixels" or "objects".
        categories: Names, in the order of rows and columns.
        matrix: (k, k) whole numbers, row: what is true, column: what was predicted.
    """

    unit: str
    categories: list[str]
    matrix: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """Of each row, the share of each column, (k, k); 0 in a row without counts, and of what is no object."""
        totals = self.matrix.sum(axis=1, keepdims=True)
        shares: np.ndarray = self.matrix / np.maximum(totals, 1)
        if self.unit == "objects":
            shares[1] = 0  # nobody counts the places where rightly nothing was found
        return shares


def count_confusion(output: Mapping[str, Any], prediction: Tensor, target: Tensor) -> np.ndarray | None:
    """The matrix of one image, (k, k) int64; None where there are no categories.

    What counts as predicted is as for Dice, IoU and AP50: masks above 0.5, the most probable class, objects with an IoU
    of 0.5 to a true one. Several masks of a head are counted together.

    Args:
        output: Kind and activation of the head.
        prediction: B C (Z) Y X; activated, or labels.
        target: Likewise; class indices in one channel, or one-hot.
    """
    if output["kind"] == "instances":
        found, false, missed, _ = InstanceAP(thresholds=[_FOUND_IOU]).statistics(prediction, target)[0].tolist()
        return np.array([[found, missed], [false, 0]]).round().astype(np.int64)
    if output["kind"] != "segmentation":
        return None
    if output["activation"] == "sigmoid":
        is_paired = prediction.shape == target.shape
        return _count(target.flatten(), prediction.flatten(), num_classes=2, threshold=0.5) if is_paired else None
    num_classes = prediction.shape[1]
    if num_classes > _MOST_CLASSES or target.shape[1] not in (1, num_classes):
        return None
    true = target if target.shape[1] == 1 else target.argmax(dim=1, keepdim=True)
    return _count(true.flatten(), prediction.argmax(dim=1).flatten(), num_classes=num_classes)


def summed(head: str, output: Mapping[str, Any], matrices: Sequence[np.ndarray]) -> Confusion:
    """The matrices of images as one of the split.

    Args:
        head: Its name.
        output: Its kind and activation.
        matrices: At least one, from `count_confusion`.
    """
    matrix = np.sum(matrices, axis=0)
    if output["kind"] == "instances":
        return Confusion("objects", [f"{head}: object", f"{head}: nothing"], matrix)
    if output["activation"] == "sigmoid":
        return Confusion("pixels", [f"{head}: outside", f"{head}: inside"], matrix)
    return Confusion("pixels", [f"{head}: {index or 'background'}" for index in range(len(matrix))], matrix)


def write_confusion(confusion: Mapping[str, Confusion], path: str | PathLike[str]) -> None:
    """Write matrices as JSON: {head: {"unit", "categories", "matrix"}}, a list of rows each."""
    content = {
        head: {"unit": each.unit, "categories": each.categories, "matrix": each.matrix.tolist()}
        for head, each in confusion.items()
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2))


def _count(true: Tensor, predicted: Tensor, *, num_classes: int, threshold: float | None = None) -> np.ndarray:
    """Pairs of class numbers of flat tensors, some at a time; true ones that are no class are left out."""
    counts = torch.zeros(num_classes * num_classes, dtype=torch.int64)
    for rows, columns in zip(true.split(_BLOCK), predicted.split(_BLOCK), strict=True):
        rows, columns = (rows.round(), columns) if threshold is None else (rows > threshold, columns > threshold)
        rows, columns = rows.long(), columns.long()
        known = (rows >= 0) & (rows < num_classes)
        pairs = rows[known] * num_classes + columns[known]
        counts += torch.bincount(pairs.cpu(), minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes).numpy()
