"""How the values of single images are spread, a chart a metric; and the data itself as rows of a table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cyto_dl.evaluation.bootstrap import Interval
from cyto_dl.evaluation.charts import histogram
from cyto_dl.evaluation.curves import Chart

_MOST_CHARTS = 12  # of a head: one with 60 classes has a value of each in the table


class Distribution(NamedTuple):
    """The values of one metric: its name, one value an image, their mean and the mean's interval."""

    metric: str
    values: pd.Series
    mean: float
    interval: Interval | None


def distribution_charts(head: str, metrics: Sequence[Distribution]) -> list[Chart]:
    """A histogram of each metric; of fewer than two finite values there is none."""
    charts: list[Chart] = []
    for metric, values, mean, interval in metrics:
        finite = values.to_numpy(dtype=float)
        finite = finite[np.isfinite(finite)]
        if len(finite) > 1 and len(charts) < _MOST_CHARTS:
            title = (
                f"{head}: how {metric} is spread over {len(finite)} images, {finite.min():.4g} to {finite.max():.4g}"
            )
            charts.append(Chart(metric, histogram(finite, title=title, x_label=metric, mean=mean, interval=interval)))
    return charts


def data_rows(columns: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """The rows of a table that sets columns of images side by side: what it says, and the value of each column.

    Args:
        columns: Title -> description, as `cyto_dl.data.fingerprint.fingerprint` gives of one column. What a description
            lacks is a dash; what all lack is no row.
    """
    for title, said in (
        ("images", lambda each: f"{each['num_images']}"),
        ("type", lambda each: ", ".join(each["dtypes"])),
        ("channels", lambda each: ", ".join(map(str, each["num_channels"]))),
        ("size, (Z) Y X in pixels", lambda each: _spread(each["size"])),
        ("pixel size, (Z) Y X in µm", lambda each: _spread(each["spacing_um"])),
        ("intensity: mean ± standard deviation", lambda each: "{mean:.4g} ± {std:.4g}".format(**each["intensity"])),
        ("percentiles 0.1, 1, 5", lambda each: _percentiles(each, ("p0.1", "p1", "p5"))),
        ("median", lambda each: _percentiles(each, ("p50",))),
        ("percentiles 95, 99, 99.9", lambda each: _percentiles(each, ("p95", "p99", "p99.9"))),
    ):
        cells = []
        for description in columns.values():
            try:
                cells.append(said(description))
            except (KeyError, TypeError):  # an older fingerprint, or an image without a pixel size
                cells.append("–")
        if set(cells) != {"–"}:
            yield title, cells


def _percentiles(description: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{description['intensity'][name]:.4g}" for name in names)


def _spread(spread: Mapping[str, Sequence[float]]) -> str:
    """The median, and what it ranges over, e.g. "256 × 256 (256 × 256 to 520 × 696)"."""
    low, median, high = (
        "\u00a0×\u00a0".join(f"{side:.4g}" for side in spread[name]) for name in ("min", "median", "max")
    )
    return median if low == high else f"{median} ({low} to {high})"
