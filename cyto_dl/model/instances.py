"""Objects as what a network can learn, and back: a foreground and the way to the objects' borders.

    labels -> encode_instances -> [foreground, border distance]            the target of training, per patch
    logits -> threshold -> components, cores -> watershed -> labels        once, on the stitched output

Each object has a core, where the distance to its border is more than half of what is learnt of it. Cores of touching
objects are apart, so that the components of the cores are the objects' seeds. Only a component of the foreground that
holds several seeds has to be split; all others are labelled as they are.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import cc3d
import edt
import fastremap
import numpy as np
from skimage.segmentation import watershed

# Distances are compared in steps of 1/250: a value that changes by rounding alone, from one tiling or engine to the
# next, then floods in the same order, and no border moves.
LEVELS = 250


def encode_instances(
    labels: np.ndarray, *, spacing: Sequence[float] | None = None, border_px: float = 5.0
) -> np.ndarray:
    """What a network learns of a label image, float32, 2 (Z) Y X, both in 0..1.

    Channel 0 is the foreground. Channel 1 is the distance to the border of the object, which is 1 from `border_px` on
    and, in objects thinner than that, in their middle. It needs no more context than `border_px`, so that an object
    cut by a patch or a window looks there as it does elsewhere.

    Args:
        labels: (Z) Y X, 0 is background, every other whole number one object.
        spacing: Pixel size (Z)YX in any unit; None: the same along all axes.
        border_px: Width of the rim that is learnt as distance, in pixels of the finest axis.

    Raises:
        ValueError: A label is negative or no whole number.
    """
    objects = _whole_numbers(labels)
    finest = min(spacing) if spacing else 1.0
    anisotropy = tuple(each / finest for each in spacing) if spacing else (1.0,) * objects.ndim
    distance = edt.edt(objects, anisotropy=anisotropy, black_border=False, parallel=1)
    highest = np.zeros(int(objects.max(initial=0)) + 1, np.float32)
    np.maximum.at(highest, objects.ravel(), distance.ravel())
    rim = np.clip(highest, 1e-6, border_px)[objects]
    foreground = objects > 0
    return np.stack([foreground, np.where(foreground, np.minimum(distance / rim, 1), 0)]).astype(np.float32)


def decode_instances(
    logits: np.ndarray, *, foreground: float = 0.5, seed: float = 0.5, min_size: int = 1, min_seed: int = 1
) -> np.ndarray:
    """The objects of a network's output, uint32, (Z) Y X: background 0, objects 1, 2, 3...

    Args:
        logits: 2 (Z) Y X, foreground and border distance before the sigmoid.
        foreground: Probability above which a pixel belongs to an object.
        seed: Distance, 0..1, above which a pixel belongs to an object's core.
        min_size: Objects of fewer pixels are left out.
        min_seed: Cores of fewer pixels split nothing off.

    Source: marker-controlled watershed, Meyer 1994, on a learnt distance as in Bai and Urtasun 2017; the restriction
    to components with several seeds changes no pixel (tests/model/test_instances.py).
    """
    mask = logits[0] > _logit(foreground)
    cores = mask & (logits[1] > _logit(seed))
    faces: Literal[4, 6] = 4 if mask.ndim == 2 else 6
    corners: Literal[8, 26] = 8 if mask.ndim == 2 else 26
    if min_seed > 1:
        cores = cc3d.dust(cores, threshold=min_seed, connectivity=faces)
    seeds = cc3d.connected_components(cores, connectivity=faces, out_dtype=np.uint32)
    labels = cc3d.connected_components(mask, connectivity=corners, out_dtype=np.uint32)
    _split(labels, seeds, logits[1])
    return _without_small(labels, min_size)


class _Component(NamedTuple):
    """A component of the foreground that holds several seeds."""

    label: int
    box: tuple[slice, ...]


def _split(labels: np.ndarray, seeds: np.ndarray, distance: np.ndarray) -> None:
    """Give each seed of a component with several seeds a label of its own, in place."""
    next_label = int(labels.max(initial=0)) + 1
    for component in _with_several_seeds(labels, seeds):
        inside = labels[component.box] == component.label
        markers, highest = fastremap.renumber(np.where(inside, seeds[component.box], 0))
        parts = watershed(-_levels(distance[component.box]), markers.astype(np.int32), mask=inside)
        labels[component.box][inside] = parts[inside] + (next_label - 1)
        next_label += len(highest) - (0 in highest)


def _with_several_seeds(labels: np.ndarray, seeds: np.ndarray) -> list[_Component]:
    at_seed = seeds > 0
    pairs = np.unique(seeds[at_seed].astype(np.uint64) << np.uint64(32) | labels[at_seed].astype(np.uint64))
    components, num_seeds = np.unique((pairs & np.uint64(0xFFFFFFFF)).astype(np.uint32), return_counts=True)
    several = components[num_seeds > 1]
    if not len(several):
        return []
    boxes = cc3d.statistics(labels)["bounding_boxes"]
    return [_Component(int(label), boxes[label]) for label in several]


def _levels(distance_logits: np.ndarray) -> np.ndarray:
    """Distances in whole steps, int16."""
    return np.rint(LEVELS / (1 + np.exp(-distance_logits.astype(np.float32)))).astype(np.int16)


def _without_small(labels: np.ndarray, min_size: int) -> np.ndarray:
    """The labels of at least `min_size` pixels, numbered 1, 2, 3... in the order of the old ones."""
    sizes = np.bincount(labels.ravel())
    kept = sizes >= max(min_size, 1)
    kept[0] = False
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.uint32)
    return numbers[labels]


def _whole_numbers(labels: np.ndarray) -> np.ndarray:
    """The labels as uint32, numbered without gaps."""
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.rint(labels)):
        wrong = float(labels[labels != np.rint(labels)][0])
        raise ValueError(f"a label image has whole numbers, but this one has {wrong:g}")
    if labels.min(initial=0) < 0:
        raise ValueError(f"a label image has no negative numbers, but this one has {labels.min():g}")
    numbered, _ = fastremap.renumber(np.ascontiguousarray(labels).astype(np.uint32))
    return numbered.astype(np.uint32)


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))
