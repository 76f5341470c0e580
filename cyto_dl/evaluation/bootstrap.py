"""How much a figure would vary with other images:  values of N images -> 2000 resamplings -> 95 % interval

A plain percentile interval is too short for few images: of 5 it misses the mean in 17 cases of 100 instead of 5.
"""

from functools import lru_cache

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000  # the interval's ends then vary by less than their second digit
BLOCK = 1 << 20  # numbers of double precision at a time, 8 MiB

Interval = tuple[float, float]


def bootstrap_interval(values: np.ndarray) -> Interval | None:
    """The interval that holds the mean of so many other images in 95 of 100 cases; None for fewer than two images.

    It never leaves the range of the values, as a metric between 0 and 1 demands: of five images that is 90 cases, of
    three 75, of two 50.
    """
    if len(values) < 2:
        return None
    return central_interval(_resampled_means(values), num_images=len(values))


def inflated_interval(values: np.ndarray) -> Interval | None:
    """`bootstrap_interval` that is right for two images too, at the cost of leaving the range of the values.

    No resampling of values that are all above zero is below it, and with two images that is chance in one case of
    four. The distances of the resampled means from the mean are made longer instead, as Student's t is longer than
    the normal distribution.
    """
    if len(values) < 2:
        return None
    ends = np.quantile(_resampled_means(values), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    low, high = values.mean() + (ends - values.mean()) * _student(len(values)) / ndtri((1 + CONFIDENCE) / 2)
    return float(low), float(high)


def resampled_sums(values: np.ndarray) -> np.ndarray:
    """The sum over the images of each resampling, (2000, k), of (N, k)."""
    drawn = _resamplings(len(values))
    return np.concatenate([drawn[rows].astype(float) @ values for rows in _blocks(len(values))])


def central_interval(values: np.ndarray, *, num_images: int) -> Interval | None:
    """What holds 95 of 100 of the resampled values, and more of few images; None where none is defined.

    A resampling of N images scatters by the square root of (N - 1) / N too little, and as if their standard deviation
    were known. 5 images take the quantiles 0.1 % and 99.9 %, 20 images 1.6 % and 98.4 %.

    Source: Hesterberg, What Teachers Should Know About the Bootstrap (The American Statistician 69, 2015), the
    expanded percentile interval.
    """
    defined = values[~np.isnan(values)]  # a resampling of empty images alone has no value
    if not len(defined):
        return None
    tail = ndtr(-_student(num_images))
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def _student(num_images: int) -> float:
    """Half of an interval's length, in standard deviations of the resampled means."""
    return float(stdtrit(num_images - 1, (1 + CONFIDENCE) / 2) * np.sqrt(num_images / (num_images - 1)))


def _resampled_means(values: np.ndarray) -> np.ndarray:
    return resampled_sums(values[:, None])[:, 0] / len(values)


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
