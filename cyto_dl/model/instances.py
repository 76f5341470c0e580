"""Objects as what a network can learn, and back: a foreground and the way to the objects' borders.

    labels -> encode_instances -> [foreground, border distance]            the target of training, per patch
    logits -> threshold -> components, cores -> watershed -> labels        once, on the stitched output

Each object has a core, where the distance to its border is more than half of what is learnt of it. Cores of touching
objects are apart, so that the components of the cores are the objects' seeds. Only a component of the foreground that
holds several seeds has to be split; all others are labelled as they are.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import cc3d
import edt
import fastremap
import numpy as np
from scipy import ndimage
from scipy.special import expit, logit
from skimage.graph import MCP_Geometric
from skimage.segmentation import watershed

# Distances are compared in steps of 1/250: a value that changes by rounding alone, from one tiling or engine to the
# next, then floods in the same order, and no border moves.
LEVELS = 250
# An object is given one core at each of these distances; a `seed` in between finds it whole too, with few exceptions.
CORE_DISTANCES = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
BLOCK_PX = 1 << 20  # numpy counts and looks up with 8 bytes per pixel: a block at a time, that is next to nothing


def encode_instances(
    labels: np.ndarray, *, spacing: Sequence[float] | None = None, border_px: float = 5.0
) -> np.ndarray:
    """What a network learns of a label image, float32, 2 (Z) Y X, both in 0..1.

    Channel 0 is the foreground. Channel 1 is the distance to the pixels at the object's border: 0 there, and 1 from
    `border_px` on or, in objects thinner than that, in their middle. It needs no more context than `border_px`, so
    that an object cut by a patch or a window looks there as it does elsewhere.

    Where an object has a waist, the way through it is raised: an object has one core, whatever the `seed` (0.3 to 0.8).

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
    depth = edt.edt(_without_borders(objects), anisotropy=anisotropy, black_border=False, parallel=1)
    highest = _highest(depth, objects)
    if not highest[1:].all():  # objects of two pixels are border throughout
        depth += _depth_of_flat(np.where(highest[objects] == 0, objects, 0), objects, anisotropy)
        highest = _highest(depth, objects)
    highest[0] = 1
    distance = np.minimum(depth / np.minimum(highest, border_px)[objects], 1).astype(np.float32)
    _join_cores(distance, objects)
    return np.stack([(objects > 0).astype(np.float32), distance])


def decode_instances(
    logits: np.ndarray,
    *,
    foreground: float = 0.5,
    seed: float | Sequence[float] = 0.5,
    min_size: int = 1,
    min_seed: int = 1,
) -> np.ndarray:
    """The objects of a network's output, uint32, (Z) Y X: background 0, objects 1, 2, 3...

    Args:
        logits: 2 (Z) Y X, foreground and border distance before the sigmoid.
        foreground: Probability above which a pixel belongs to an object, between 0 and 1.
        seed: Distance above which a pixel belongs to an object's core, between 0 and 1. With several, a core that falls
            into parts at a higher one is replaced by these: low ones find small objects, high ones part large ones.
        min_size: Objects of fewer pixels are left out.
        min_seed: Cores of fewer pixels split nothing off.

    Source: marker-controlled watershed, Meyer 1994, on a learnt distance as in Bai and Urtasun 2017; the restriction
    to components with several seeds changes no pixel (tests/model/test_instances.py).
    """
    mask = logits[0] > float(logit(foreground))
    labels = _components(mask, _corners(mask.ndim))
    levels = [seed] if isinstance(seed, int | float) else sorted(seed)
    _split(labels, _seeds(mask, logits[1], levels, min_seed), logits[1])
    _leave_out_small(labels, min_size)
    return labels


def _without_borders(objects: np.ndarray) -> np.ndarray:
    """The objects less their pixels beside another object or the background; the image's own border is none."""
    inner = objects.copy()
    for (here, there), (inner_here, inner_there) in zip(_pairs(objects), _pairs(inner), strict=True):
        differs = here != there
        inner_here[differs] = 0
        inner_there[differs] = 0
    return inner


def _depth_of_flat(flat: np.ndarray, objects: np.ndarray, anisotropy: tuple[float, ...]) -> np.ndarray:
    """Distance to the outside of objects that have no inner pixel; 0 beside another object, if that leaves a core."""
    depth = edt.edt(flat, anisotropy=anisotropy, black_border=False, parallel=1)
    apart = depth.copy()
    for (here, there), (apart_here, apart_there) in zip(_pairs(objects), _pairs(apart), strict=True):
        touching = (here != there) & (here > 0) & (there > 0)
        apart_here[touching] = 0
        apart_there[touching] = 0
    return np.where(_highest(apart, flat)[flat] > 0, apart, depth)


def _highest(depth: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """The greatest depth of each object, shape (number of objects + 1,); that of the background is 0."""
    highest = np.zeros(int(objects.max(initial=0)) + 1, np.float32)
    foreground = objects > 0
    np.maximum.at(highest, objects[foreground], depth[foreground])
    return highest


def _join_cores(distance: np.ndarray, objects: np.ndarray) -> None:
    """Raise the ways between the cores of an object, in place, so that it has one at each of CORE_DISTANCES."""
    num_objects = int(objects.max(initial=0))
    for level in CORE_DISTANCES:
        cores = np.where(distance > level, objects, 0)
        pieces, num_pieces = cc3d.connected_components(cores, connectivity=_edges(cores.ndim), return_N=True)
        if num_pieces == num_objects:
            continue
        owners = np.array(list(fastremap.component_map(pieces, objects).values()))
        boxes = ndimage.find_objects(objects)
        for each in np.flatnonzero(np.bincount(owners[owners > 0]) > 1):
            box = boxes[each - 1]
            inside = objects[box] == each
            way = _way_between(np.where(inside, pieces[box], 0), distance[box], inside)
            distance[box][way] = np.maximum(distance[box][way], level + 1 / LEVELS)


def _way_between(pieces: np.ndarray, distance: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The pixels between the largest piece and the others, through the middle of the waists, as a mask."""
    numbers, sizes = np.unique(pieces[pieces > 0], return_counts=True)
    largest = numbers[sizes.argmax()]
    steps = np.argwhere(ndimage.generate_binary_structure(inside.ndim, 2)) - 1  # to neighbours by sides and edges
    ways = MCP_Geometric(np.where(inside, 1 / (distance + 1 / LEVELS), np.inf), offsets=steps)
    costs, _ = ways.find_costs(np.argwhere(pieces == largest))
    passed = np.zeros_like(inside)
    for piece in numbers[numbers != largest]:
        pixels = np.argwhere(pieces == piece)
        nearest = pixels[costs[tuple(pixels.T)].argmin()]
        if np.isfinite(costs[tuple(nearest)]):  # some objects are in several parts
            passed[tuple(np.transpose(ways.traceback(nearest)))] = True
    return passed


def _seeds(mask: np.ndarray, distance: np.ndarray, levels: Sequence[float], min_seed: int) -> np.ndarray:
    """The numbers of the cores, uint32. A core that falls into several at a higher level is replaced by these."""
    seeds = np.zeros(mask.shape, np.uint32)
    for level in levels:
        cores = distance > float(logit(level))
        cores &= mask
        if min_seed > 1:
            cores = cc3d.dust(cores, threshold=min_seed, connectivity=_edges(mask.ndim))
        parts = _components(cores, _edges(mask.ndim))
        if level == levels[0]:
            seeds = parts
            continue
        num_parts = np.bincount(_wholes(parts, seeds)[1:], minlength=int(seeds.max(initial=0)) + 1)
        if (num_parts > 1).any():
            replaced = (num_parts > 1)[seeds]
            seeds = np.where(replaced, np.where(parts > 0, parts + len(num_parts), 0), seeds)
            seeds = fastremap.renumber(seeds)[0].astype(np.uint32)
    return seeds


def _wholes(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """The number of the whole that each part lies in, shape (number of parts + 1,)."""
    whole_of = np.zeros(int(parts.max(initial=0)) + 1, np.uint32)
    for parts_block, wholes_block in zip(_blocks(parts), _blocks(wholes), strict=True):
        there = np.flatnonzero(parts_block)
        whole_of[parts_block[there]] = wholes_block[there]
    return whole_of


def _split(labels: np.ndarray, seeds: np.ndarray, distance: np.ndarray) -> None:
    """Give each seed of a component with several seeds a label of its own, in place."""
    num_components = int(labels.max(initial=0))
    component_of = _wholes(seeds, labels)
    several = np.flatnonzero(np.bincount(component_of[1:]) > 1)
    boxes = ndimage.find_objects(labels) if len(several) else []
    for component in several:
        box = boxes[component - 1]
        inside = labels[box] == component
        parts = _flood(seeds[box].view(np.int32), distance[box], inside=inside)
        labels[box][inside] = parts[inside] + num_components


def _flood(seeds: np.ndarray, distance: np.ndarray, *, inside: np.ndarray) -> np.ndarray:
    """The number of the seed that each pixel inside belongs to, int32: high distances are flooded first."""
    free = inside & (seeds == 0)
    shore = free | _beside(free)  # further inside a seed there is nothing to flood
    parts = watershed(_landscape(distance, free), seeds, mask=inside & shore)
    np.copyto(parts, seeds, where=~free)
    free = inside & (parts == 0)
    if free.any():  # what hangs on by a corner
        parts = watershed(_landscape(distance, free), parts, connectivity=seeds.ndim, mask=inside)
    return parts


def _landscape(distance: np.ndarray, free: np.ndarray) -> np.ndarray:
    """What is flooded when, low first, int32: seeds, in the order of their pixels, and then the free ones.

    scikit-image leaves the order of seeds that are equally low to chance, that is to what else is in the image.
    """
    landscape = np.arange(-free.size, 0, dtype=np.int32).reshape(free.shape)
    np.copyto(landscape, LEVELS - _levels(distance), where=free, casting="unsafe")
    return landscape


def _beside(mask: np.ndarray) -> np.ndarray:
    """The pixels that share a face with one of the mask."""
    beside = np.zeros_like(mask)
    for (here, there), (beside_here, beside_there) in zip(_pairs(mask), _pairs(beside), strict=True):
        beside_here |= there
        beside_there |= here
    return beside


def _leave_out_small(labels: np.ndarray, min_size: int) -> None:
    """Number the labels of at least `min_size` pixels 1, 2, 3... in the order of the old ones, in place."""
    sizes = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    for block in _blocks(labels):
        sizes += np.bincount(block, minlength=len(sizes))
    kept = sizes >= max(min_size, 1)
    kept[0] = False
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.uint32)
    for block in _blocks(labels):
        block[:] = numbers[block]


def _components(mask: np.ndarray, connectivity: Literal[8, 18, 26]) -> np.ndarray:
    """Pixels that touch get one number, uint32, (Z) Y X."""
    components = cc3d.connected_components(mask, connectivity=connectivity, out_dtype=np.uint32)
    return np.ascontiguousarray(components)


def _corners(ndim: int) -> Literal[8, 26]:
    """Parts that touch by a side, an edge or a corner are of one object, unless it holds several cores."""
    return 8 if ndim == 2 else 26


def _edges(ndim: int) -> Literal[8, 18]:
    """Cores are one by a side or an edge: pixels off the border of two objects never touch so, by a corner they may."""
    return 8 if ndim == 2 else 18


def _pairs(array: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each axis, all pixels but the last and their next ones, as views."""
    for axis in range(array.ndim):
        moved = np.moveaxis(array, axis, 0)
        yield moved[:-1], moved[1:]


def _blocks(array: np.ndarray) -> list[np.ndarray]:
    """The pixels of a contiguous array, in order, as views of one axis."""
    pixels = array.reshape(-1)
    return [pixels[first : first + BLOCK_PX] for first in range(0, pixels.size, BLOCK_PX)]


def _levels(distance_logits: np.ndarray) -> np.ndarray:
    """Distances in whole steps, float32; in place, since an object may be as large as the image."""
    levels = expit(distance_logits.astype(np.float32))
    levels *= LEVELS
    return np.rint(levels, out=levels)


def _whole_numbers(labels: np.ndarray) -> np.ndarray:
    """The labels as uint32, numbered without gaps."""
    if labels.dtype.kind == "f" and not (np.isfinite(labels) & (labels == np.rint(labels))).all():
        wrong = float(labels[~np.isfinite(labels) | (labels != np.rint(labels))][0])
        raise ValueError(f"a label image has whole numbers, but this one has {wrong:g}")
    if labels.min(initial=0) < 0:
        raise ValueError(f"a label image has no negative numbers, but this one has {labels.min():g}")
    numbered, _ = fastremap.renumber(np.ascontiguousarray(labels).astype(np.uint64))
    return numbered.astype(np.uint32)
