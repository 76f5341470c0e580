"""Refuse label images with fractions or negative numbers: whole images, before a training begins.

Unsigned whole numbers are neither, and a header says that a file holds such; only the other images are read for it.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from torch.utils.data import DataLoader, Dataset

from cyto_dl.data.cache import CachedDataset
from cyto_dl.data.check import Described
from cyto_dl.data.manifest import ROW
from cyto_dl.errors import ImageError

CERTAIN = "bu"  # numpy's kinds of numbers that can be neither negative nor fractions


class CheckLabelsd(MapTransform):
    """Refuse labels that are no whole numbers from 0 on; run after the preprocessing, once per image.

    A patch would show them only where it is cut, and a loss over classes would round them without a word. Targets of
    several channels are masks or probabilities and are left alone, as are keys that a row lacks.

    Args:
        keys: The targets that are labels.
    """

    def __init__(self, keys: Collection[str]) -> None:
        super().__init__(sorted(keys), allow_missing_keys=True)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        for key in self.key_iterator(item):  # type: ignore[arg-type]  # MONAI's keys are any hashable, ours are words
            labels = torch.as_tensor(item[key])
            if len(labels) != 1:
                continue
            is_wrong = (labels < 0) | (labels != labels.round())
            if is_wrong.any():
                path = getattr(item[key], "meta", {}).get("path", item.get(ROW, "an image"))
                raise ImageError(_no_labels(path, str(key), labels[is_wrong]))
        return item


def _no_labels(path: str, key: str, wrong: torch.Tensor) -> str:
    return (
        f"{path}: '{key}' is a label image, but {wrong.numel()} of its pixels are negative or no whole numbers, e.g. "
        f"{wrong[0].item():g}. Save label images as whole numbers: 0 for background, and 1, 2, ... for objects or "
        "classes. Fractions come from probability maps, and from resizing with interpolation (also in "
        "data.transforms.preprocess)."
    )


def uncertain_rows(described: Sequence[Sequence[Described]], keys: Collection[str]) -> list[int]:
    """The numbers of the rows with an image of these keys whose header allows for fractions or negative numbers."""
    return [
        number
        for number, images in enumerate(described)
        if any(image.key in keys and np.dtype(image.info.dtype).kind not in CERTAIN for image in images)
    ]


def read_problems(samples: CachedDataset, rows: Sequence[int], *, workers: Mapping[str, Any]) -> list[str]:
    """What is wrong with the images of some rows; what is read is in the samples' cache afterwards.

    Args:
        samples: The images.
        rows: The numbers of the rows.
        workers: Arguments of torch's DataLoader: how many processes read.
    """
    # a generator of its own: a loader draws a seed even if nothing is random, and the training's numbers would change
    loader = DataLoader(_Problems(samples, rows), batch_size=None, generator=torch.Generator(), **workers)
    return [problem for problem in loader if problem]


class _Problems(Dataset[str]):
    """What is wrong with the images of each row, as a sentence; empty where nothing is."""

    def __init__(self, samples: CachedDataset, rows: Sequence[int]) -> None:
        self.samples = samples
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> str:
        try:
            self.samples[self.rows[index]]
        except ImageError as error:
            return f"{self.samples.data[self.rows[index]][ROW]}: {error}"
        return ""
