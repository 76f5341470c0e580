"""From what was measured on single images to the figures of a split:  values -> mean,  counts -> pooled value

Both with the 95 % interval that a bootstrap over images gives: how much the figure would vary with other images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchmetrics import Metric

from cyto_dl.evaluation.bootstrap import Interval, bootstrap_interval, central_interval, resampled_sums
from cyto_dl.evaluation.seen import Seen
from cyto_dl.metrics import CountMetric, PooledMetric


@dataclass(frozen=True)
class Measured:
    """What was measured on one image.

    Args:
        row: path, a value per <head>/<metric>, seconds.
        counts: The counts (k,) of metrics that have them, per <head>/<metric>.
        confusion: What was taken for what, (k, k) per head that has categories.
        seen: What the image is like.
    """

    row: dict[str, Any]
    counts: dict[str, Tensor]
    confusion: dict[str, np.ndarray] = field(default_factory=dict)
    seen: Seen | None = None


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


def pooled_interval(metric: PooledMetric, counts: Tensor) -> Interval | None:
    """The interval that holds the pooled value in 95 of 100 resamplings of the images; None for fewer than two.

    Args:
        metric: Makes a value of summed counts.
        counts: Of each image, (N, k).
    """
    if len(counts) < 2:
        return None
    return central_interval(metric.from_statistics(_summed_counts(counts)).numpy(), num_images=len(counts))


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
        interval = central_interval(resampled[part].numpy(), num_images=len(counts)) if part in resampled else None
        found[f"{name.removesuffix('_pooled')}_{part}_pooled"] = (float(value), interval)
    return found


def _summed_counts(counts: Tensor) -> Tensor:
    return torch.from_numpy(resampled_sums(counts.double().numpy()))
