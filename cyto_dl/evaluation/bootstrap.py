"""How much a figure would vary with other images:  values of N images -> 2000 resamplings -> 95 % interval"""

from functools import lru_cache

import numpy as np

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000  # the interval's ends then vary by less than their second digit
BLOCK = 1 << 20  # numbers of double precision at a time, 8 MiB

Interval = tuple[float, float]


def bootstrap_interval(values: np.ndarray) -> Interval | None:
    """The interval that holds the mean in 95 of 100 resamplings of the images; None for fewer than two images."""
    if len(values) < 2:
        return None
    return central_interval(resampled_sums(values[:, None])[:, 0] / len(values))


def resampled_sums(values: np.ndarray) -> np.ndarray:
    """The sum over the images of each resampling, (2000, k), of (N, k)."""
    drawn = _resamplings(len(values))
    return np.concatenate([drawn[rows].astype(float) @ values for rows in _blocks(len(values))])


def central_interval(values: np.ndarray) -> Interval | None:
    """What holds 95 of 100 of the resampled values; None where none is defined."""
    defined = values[~np.isnan(values)]  # a resampling of empty images alone has no value
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


@lru_cache(maxsize=2)  # nearly all metrics of an evaluation are of all its images
def _resamplings(num_images: int) -> np.ndarray:
    """How often each image is drawn in each resampling, (2000, N) uint8: none is drawn 256 times."""
    rng = np.random.default_rng(0)
    drawn = np.empty((NUM_RESAMPLES, num_images), np.uint8)
    for rows in _blocks(num_images):
        drawn[rows] = rng.multinomial(num_images, np.full(num_images, 1 / num_images), len(drawn[rows]))
    drawn.flags.writeable = False
    return drawn


def _blocks(num_images: int) -> list[slice]:
    """The resamplings, some at a time: all of 20,000 images would be 320 MB for every metric."""
    num_rows = max(1, BLOCK // num_images)
    return [slice(first, first + num_rows) for first in range(0, NUM_RESAMPLES, num_rows)]
