"""From what was measured on single images to the figures of a split:  values -> mean,  counts -> pooled value

Both with the 95 % interval that a bootstrap over images gives: how much the figure would vary with other images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchmetrics import Metric

from cyto_dl.metrics import CountMetric, PooledMetric

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000  # the interval's ends then vary by less than their second digit
BLOCK = 1 << 20  # numbers of double precision at a time, 8 MiB

Interval = tuple[float, float]


@dataclass(frozen=True)
class Measured:
    """What was measured on one image.

    Args:
        row: path, a value per <head>/<metric>, seconds.
        counts: The counts (k,) of metrics that have them, per <head>/<metric>.
    """

    row: dict[str, Any]
    counts: dict[str, Tensor]


@dataclass(frozen=True)
class Scores:
    """The figures of a split.

    Args:
        images: One row an image: path, a column <head>/<metric> each, seconds.
        summary: <head>/<metric> -> mean over the images where it is finite, or pooled value.
        intervals: The same keys; absent where there is one image.
    """

    images: pd.DataFrame
    summary: dict[str, float]
    intervals: dict[str, Interval]


def score(measured: Sequence[Measured], metrics: Mapping[str, Metric]) -> Scores:
    """The figures of images, in the order of the metrics; of each class too, where a metric is a mean over classes.

    Args:
        measured: Each image.
        metrics: <head>/<metric> -> what was measured.
    """
    images = pd.DataFrame([image.row for image in measured])
    columns: dict[str, pd.Series] = {}
    summary: dict[str, float] = {}
    intervals: dict[str, Interval] = {}

    def add(name: str, value: float, interval: Interval | None) -> None:
        if np.isfinite(value):
            summary[name] = value
        if interval is not None:
            intervals[name] = interval

    for name, metric in metrics.items():
        having = [index for index, image in enumerate(measured) if name in image.counts]
        counts = torch.stack([measured[index].counts[name] for index in having]) if having else None
        if isinstance(metric, PooledMetric):
            for pooled, (value, interval) in _pooled(name, metric, counts).items():
                add(pooled, value, interval)
            continue
        for column, values in _per_image(name, metric, counts, images, having).items():
            columns[column] = values
            finite = values[np.isfinite(values)].to_numpy(dtype=float)
            add(column, float(finite.mean()) if len(finite) else np.nan, bootstrap_interval(finite))
    table = pd.concat([images["path"], pd.DataFrame(columns, index=images.index), images["seconds"]], axis=1)
    return Scores(table, summary, intervals)


def bootstrap_interval(values: np.ndarray) -> Interval | None:
    """The interval that holds the mean in 95 of 100 resamplings of the images; None for fewer than two images."""
    if len(values) < 2:
        return None
    return _quantiles(_summed(values[:, None])[:, 0] / len(values))


def pooled_interval(metric: PooledMetric, counts: Tensor) -> Interval | None:
    """The interval that holds the pooled value in 95 of 100 resamplings of the images; None for fewer than two.

    Args:
        metric: Makes a value of summed counts.
        counts: Of each image, (N, k).
    """
    if len(counts) < 2:
        return None
    return _quantiles(metric.from_statistics(_summed_counts(counts)).numpy())


def _per_image(
    name: str, metric: Metric, counts: Tensor | None, images: pd.DataFrame, having: list[int]
) -> dict[str, pd.Series]:
    """The column of a metric, and one for each of its classes."""
    if name not in images:
        return {}
    columns = {name: images[name].astype(float)}
    if counts is not None and isinstance(metric, CountMetric):
        for part, values in metric.parts(counts).items():
            columns[f"{name}_{part}"] = pd.Series(values.numpy(), index=having).reindex(images.index)
    return columns


def _pooled(name: str, metric: PooledMetric, counts: Tensor | None) -> dict[str, tuple[float, Interval | None]]:
    """Value and interval of a pooled metric, and of each of its classes."""
    if counts is None:
        return {}
    found = {name: (float(metric.from_statistics(counts.sum(0))), pooled_interval(metric, counts))}
    resampled = metric.parts(_summed_counts(counts)) if len(counts) > 1 else {}
    for part, value in metric.parts(counts.sum(0)).items():
        interval = _quantiles(resampled[part].numpy()) if part in resampled else None
        found[f"{name.removesuffix('_pooled')}_{part}_pooled"] = (float(value), interval)
    return found


@lru_cache(maxsize=2)  # nearly all metrics of an evaluation are of all its images
def _resamplings(num_images: int) -> np.ndarray:
    """How often each image is drawn in each resampling, (2000, N) uint8: none is drawn 256 times."""
    rng = np.random.default_rng(0)
    drawn = np.empty((NUM_RESAMPLES, num_images), np.uint8)
    for rows in _blocks(num_images):
        drawn[rows] = rng.multinomial(num_images, np.full(num_images, 1 / num_images), len(drawn[rows]))
    drawn.flags.writeable = False
    return drawn


def _summed(values: np.ndarray) -> np.ndarray:
    """The sum over the images of each resampling, (2000, k), of (N, k)."""
    drawn = _resamplings(len(values))
    return np.concatenate([drawn[rows].astype(float) @ values for rows in _blocks(len(values))])


def _summed_counts(counts: Tensor) -> Tensor:
    return torch.from_numpy(_summed(counts.double().numpy()))


def _blocks(num_images: int) -> list[slice]:
    """The resamplings, some at a time: all of 20,000 images would be 320 MB for every metric."""
    num_rows = max(1, BLOCK // num_images)
    return [slice(first, first + num_rows) for first in range(0, NUM_RESAMPLES, num_rows)]


def _quantiles(values: np.ndarray) -> Interval | None:
    defined = values[~np.isnan(values)]  # a resampling of empty images alone has no value
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
