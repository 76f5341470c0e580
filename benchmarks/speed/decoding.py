"""Instance decoding against the plain chain of scipy and scikit-image, in CPU time on one thread.

    OMP_NUM_THREADS=1 python benchmarks/speed/decoding.py

Both make labels of the same logits: a volume of about 700 touching ellipsoids with the soft borders of a network's
output. The plain chain labels foreground and cores with scipy, floods the whole volume with scikit-image, removes small
objects and renumbers. It gets its landscape ready-made, which is not counted. The labels must be the same.
Writes benchmarks/speed/results/decoding.json.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fastremap
import numpy as np
from scipy import ndimage
from scipy.special import expit, logit
from skimage.morphology import remove_small_objects
from skimage.segmentation import relabel_sequential, watershed

from benchmarks.results import write_result
from cyto_dl.model.instances import LEVELS, decode_instances, encode_instances

RESULT = Path(__file__).parent / "results" / "decoding.json"
TARGET_RATIO = 1 / 3
SPACING = (2.0, 1.0, 1.0)
RADII_PX = ((4, 8, 8), (9, 16, 16))  # of nuclei, smallest and largest, ZYX
BLUR_PX = 0.8  # how soft a network's borders are
MIN_SIZE = 64


def synthetic_labels(shape: Sequence[int], num_objects: int) -> np.ndarray:
    """Ellipsoids at random places, ZYX uint32; where two overlap, each pixel is of the one it lies deeper in."""
    rng = np.random.default_rng(0)
    labels, nearest = np.zeros(shape, np.uint32), np.ones(shape, np.float32)
    for label in range(1, num_objects + 1):
        center, radii = rng.integers(0, shape), rng.uniform(*RADII_PX)
        low = np.maximum(center - np.ceil(radii).astype(int), 0)
        box = tuple(
            slice(start, middle + int(np.ceil(radius)) + 1)
            for start, middle, radius in zip(low, center, radii, strict=True)
        )
        place = np.indices(labels[box].shape, np.float32) + (low - center).reshape(-1, 1, 1, 1)
        distance = np.square(place / radii.reshape(-1, 1, 1, 1)).sum(0)
        closer = distance < nearest[box]
        labels[box][closer] = label
        nearest[box][closer] = distance[closer]
    return labels


def logits_of(labels: np.ndarray) -> np.ndarray:
    """What a network would say of these objects, 2 Z Y X float32."""
    encoded = encode_instances(labels, spacing=SPACING)
    soft = np.stack([ndimage.gaussian_filter(channel, BLUR_PX) for channel in encoded]).clip(1e-4, 1 - 1e-4)
    return logit(soft)


class PlainChain:
    """The same decoding with whole-volume functions of scipy and scikit-image, step by step."""

    def __init__(self) -> None:
        self.cpu_seconds: dict[str, float] = {}

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """The labels, ZYX."""
        corners = np.ones((3, 3, 3))
        mask = self._timed("threshold", lambda: logits[0] > 0)
        cores = self._timed("threshold", lambda: mask & (logits[1] > 0))
        components, num_components = self._timed("scipy label", lambda: ndimage.label(mask, corners))
        edges = ndimage.generate_binary_structure(3, 2)
        seeds, num_seeds = self._timed("scipy label", lambda: ndimage.label(cores, edges))
        seeded = np.zeros(num_components + 1, bool)
        seeded[np.unique(components[cores])] = True
        markers = np.where(mask & ~seeded[components], components + num_seeds, seeds)
        landscape = flooding_order(logits[1], markers)
        labels = self._timed("watershed", lambda: watershed(landscape, markers, mask=mask))
        labels = watershed(flooding_order(logits[1], labels), labels, mask=mask, connectivity=3)  # what corners hold
        labels = self._timed("remove_small_objects", lambda: remove_small_objects(labels, max_size=MIN_SIZE - 1))
        return self._timed("relabel_sequential", lambda: relabel_sequential(labels))[0]

    def _timed(self, step: str, function: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = function()
        self.cpu_seconds[step] = self.cpu_seconds.get(step, 0) + time.process_time() - start
        return result


def flooding_order(distance_logits: np.ndarray, markers: np.ndarray) -> np.ndarray:
    """The landscape of decode_instances: markers in the order of their pixels, then distances in steps of 1/250."""
    order = np.arange(-markers.size, 0, dtype=np.int32).reshape(markers.shape)
    levels = LEVELS - np.rint(LEVELS * expit(distance_logits)).astype(np.int32)
    return np.where(markers > 0, order, levels)


def run(shape: Sequence[int], num_objects: int, repeats: int) -> dict[str, Any]:
    """CPU seconds of both, after the check that they give the same objects."""
    logits = logits_of(synthetic_labels(shape, num_objects))
    ours, plain = [], []
    for _ in range(repeats):
        start = time.process_time()
        labels = decode_instances(logits, min_size=MIN_SIZE)
        ours.append(time.process_time() - start)
        chain = PlainChain()
        expected = chain(logits)
        plain.append(chain.cpu_seconds)
        same = np.array_equal(fastremap.renumber(labels)[0], fastremap.renumber(expected)[0])
        assert same, "decode_instances and the plain chain give different objects"
    steps = {step: statistics.median(each[step] for each in plain) for step in plain[0]}
    decoding_s, chain_s = statistics.median(ours), statistics.median(sum(each.values()) for each in plain)
    return {
        "shape": list(shape),
        "num_objects": int(labels.max()),
        "num_components": int(ndimage.label(logits[0] > 0, np.ones((3, 3, 3)))[1]),
        "decode_instances_cpu_s": decoding_s,
        "plain_chain_cpu_s": chain_s,
        "plain_chain_steps_cpu_s": steps,
        "ratio": decoding_s / chain_s,
        "target_ratio": TARGET_RATIO,
    }


def table(result: dict[str, Any]) -> str:
    """The result for a person."""
    steps = {f"  {step}": seconds for step, seconds in result["plain_chain_steps_cpu_s"].items()}
    rows = {
        "plain chain": result["plain_chain_cpu_s"],
        **steps,
        "decode_instances": result["decode_instances_cpu_s"],
    }
    lines = [f"{name:24} {seconds:8.3f} CPU s" for name, seconds in rows.items()]
    lines.append(f"{result['num_objects']} objects in {result['num_components']} components, the same in both")
    lines.append(f"ratio {result['ratio']:.3f} (target at most {result['target_ratio']:.3f})")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the result, show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 512, 512), help="of the volume, ZYX")
    parser.add_argument("--objects", type=int, default=700, help="how many ellipsoids")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median is taken")
    parser.add_argument("--result", type=Path, default=RESULT)
    chosen = parser.parse_args(arguments)
    result = run(chosen.shape, chosen.objects, chosen.repeats)
    write_result(chosen.result, result)
    print(table(result))


if __name__ == "__main__":
    main()
