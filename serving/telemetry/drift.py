"""How far an image is from those that the model was trained on, by the bundle's fingerprint of them.

    image --sample--> percentiles, size, pixel size --against the training data's--> scores --policy--> accepted, warned
                                                                                                        of or refused

A score is a distance in units of its threshold: above 1 the image is unusual. The thresholds are wide on purpose: they
are to find what is of another kind (8-bit copies of 16-bit images, another objective, a blank field), not the dimmer
half of a data set. docs/how-to/serve.md says what they were measured on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from kserve.errors import InvalidInput

from cyto_dl.data.image import Image

POLICIES = ("accept", "warn", "refuse")

CONTRAST_FACTOR = 8.0  # 99th less 1st percentile, against all training images together
OFFSET = 2.0  # distance of the medians, in contrasts of the training images
SIZE_FACTOR = 8.0  # beyond the smallest and the largest: windows make larger images ordinary
SPACING_FACTOR = 1.5  # an objective of 20x instead of 40x is 2; a camera's binning as well
NUM_VALUES = 2**14  # per image: 160 values lie above its 99th percentile
MOST = 99.0  # score of what has no contrast at all


class Finding(NamedTuple):
    """One quantity of an image."""

    quantity: str
    score: float
    words: str


@dataclass(frozen=True)
class Training:
    """What the training images were like.

    Args:
        p1, p50, p99: Percentiles of the intensities of all of them together.
        size: Smallest and largest, per axis (Z)YX.
        spacing_um: The same of pixel sizes; None where they were unknown.
    """

    p1: float
    p50: float
    p99: float
    size: Mapping[str, Sequence[float]]
    spacing_um: Mapping[str, Sequence[float]] | None

    @classmethod
    def of(cls, document: Mapping[str, Any], key: str) -> "Training | None":
        """What a bundle says of the images of its input; None where it says nothing, or not enough."""
        described = ((document.get("fingerprint") or {}).get("columns") or {}).get(key) or {}
        intensity = described.get("intensity") or {}
        if "size" not in described or not {"p1", "p50", "p99"} <= set(intensity) or intensity["p99"] <= intensity["p1"]:
            return None
        p1, p50, p99 = (float(intensity[name]) for name in ("p1", "p50", "p99"))
        return cls(p1, p50, p99, described["size"], described.get("spacing_um"))

    def compare(self, image: np.ndarray, spacing_um: Sequence[float] | None = None) -> list[Finding]:
        """Each quantity of an image C (Z) Y X with intensities as acquired."""
        findings = [self._intensity(image), _outside("size", image.shape[1:], self.size, SIZE_FACTOR)]
        if spacing_um is not None and self.spacing_um is not None:
            findings.append(_outside("spacing", spacing_um, self.spacing_um, SPACING_FACTOR))
        return findings

    def compare_all(self, images: Sequence[Image]) -> list[Finding]:
        """Each quantity of the image that is farthest in it."""
        compared = [self.compare(image.array, image.spacing_um) for image in images]
        return [max(same, key=lambda finding: finding.score) for same in zip(*compared, strict=True)]

    def _intensity(self, image: np.ndarray) -> Finding:
        p1, p50, p99 = np.percentile(_sample(image), (1, 50, 99)).tolist()
        contrast = self.p99 - self.p1
        score = max(_octaves(p99 - p1, contrast) / math.log2(CONTRAST_FACTOR), abs(p50 - self.p50) / contrast / OFFSET)
        words = (
            f"its 1st, 50th and 99th percentiles are {p1:g}, {p50:g} and {p99:g}, those of the training images "
            f"{self.p1:g}, {self.p50:g} and {self.p99:g}"
        )
        return Finding("intensity", min(score, MOST), words)


def describe(findings: Sequence[Finding]) -> str:
    """What an answer's header says of a request: the quantities that are unusual and their scores, or "none"."""
    return ", ".join(f"{finding.quantity}={finding.score:.2f}" for finding in _unusual(findings)) or "none"


def refuse_unusual(findings: Sequence[Finding]) -> None:
    """Take only what the model knows.

    Raises:
        InvalidInput: Something is unusual.
    """
    if unusual := _unusual(findings):
        raise InvalidInput(
            f"the image is unlike those that the model was trained on: {'; '.join(each.words for each in unusual)}. "
            "Send it as acquired; or another model is the right one."
        )


def _unusual(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.score > 1]


def _outside(quantity: str, values: Sequence[float], known: Mapping[str, Sequence[float]], factor: float) -> Finding:
    """How far the values lie outside what is known, on the axis where it is most."""
    pairs = zip(values, known["min"], known["max"], strict=True)
    octaves = max(max(0.0, math.log2(low / value), math.log2(value / high)) for value, low, high in pairs)
    listed = " x ".join(f"{value:g}" for value in values)
    low, high = (" x ".join(f"{value:g}" for value in known[end]) for end in ("min", "max"))
    return Finding(quantity, octaves / math.log2(factor), f"its {quantity} is {listed}, theirs {low} to {high}")


def _octaves(value: float, reference: float) -> float:
    return abs(math.log2(value / reference)) if value > 0 else math.inf


def _sample(image: np.ndarray) -> np.ndarray:
    """Values on a regular grid, of about `NUM_VALUES`; the same share of every axis, or a row would stand for all."""
    step = math.ceil((image[0].size / NUM_VALUES) ** (1 / (image.ndim - 1))) | 1  # odd: interlaced rows alternate
    return image[(slice(None), *[slice(step // 2 if size > step else 0, None, step) for size in image.shape[1:]])]
