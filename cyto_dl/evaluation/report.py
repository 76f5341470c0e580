"""An evaluation as one HTML file that needs nothing else: tables, figures, learning curves, data, provenance."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cyto_dl.evaluation.curves import Chart, learning_curves
from cyto_dl.evaluation.distribution import Distribution, data_rows, distribution_charts
from cyto_dl.evaluation.evaluate import Evaluation
from cyto_dl.evaluation.judge import BASELINE
from cyto_dl.evaluation.page import write_page

_POOLED = "_pooled"
_BASELINES = {"dice": "dice of Otsu's threshold", "ap50": "ap50 of Otsu's threshold"}
_MOST_ROWS = 500  # of the table of images; a browser is slow with ten thousands


@dataclass(frozen=True)
class _Figure:
    """A figure and its interval."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class _Line:
    """One metric of one head: the mean over images and the pooled value, where there are both."""

    head: str
    metric: str
    mean: _Figure | None
    pooled: _Figure | None
    values: pd.Series

    @property
    def is_baseline(self) -> bool:
        return self.metric.startswith(BASELINE)

    @property
    def title(self) -> str:
        return _BASELINES[self.metric.removeprefix(BASELINE)] if self.is_baseline else self.metric

    @property
    def headline(self) -> _Figure:
        figure = self.mean or self.pooled
        assert figure is not None
        return figure


def write_report(
    evaluation: Evaluation,
    path: str | PathLike[str],
    *,
    curves: pd.DataFrame | None = None,
    fingerprint: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report; returns its path.

    Args:
        evaluation: What was measured.
        path: Of the HTML file.
        curves: What the training reached after each epoch, from `cyto_dl.evaluation.curves.read_curves`.
        fingerprint: Of the data that the model was trained on, from `prepare_data`; default: the bundle's own.
    """
    lines = {head: list(_lines(evaluation, head)) for head in evaluation.figures}
    headlines = [f"{head}/{of_head[0].metric}" for head, of_head in lines.items() if of_head]
    step = (evaluation.provenance.get("checkpoint") or {}).get("step")
    described = _described(evaluation, fingerprint or evaluation.fingerprint)
    return write_page(
        "report.html.j2",
        path,
        evaluation=evaluation,
        heads=lines,
        tiles=[line for of_head in lines.values() for line in of_head[:1]],
        baselines={line.head: line for of_head in lines.values() for line in of_head if line.is_baseline},
        distributions={head: _distributions(head, of_head) for head, of_head in lines.items()},
        curves=None if curves is None else learning_curves(curves, headlines=headlines, step=step),
        described=described,
        data_rows=list(data_rows(described)),
        columns=[column for column in evaluation.images.columns if "/" in column],
        rows=evaluation.images[:_MOST_ROWS].to_dict("records"),
        config=yaml.safe_dump(evaluation.config, sort_keys=False, allow_unicode=True),
    )


def _described(evaluation: Evaluation, fingerprint: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Columns of images by title: those that the model sees, as it learned from them and as it met them now; others."""
    trained = dict(fingerprint.get("columns", {}))
    source = evaluation.config["data"]["columns"].get(evaluation.config["model"]["x_key"])
    first = {f"{source}, trained on": trained.pop(source)} if source in trained else {}
    evaluated = {f"{source}, split {evaluation.split}": evaluation.seen} if evaluation.seen else {}
    return first | evaluated | {f"{column}, trained on": each for column, each in trained.items()}


def write_unmeasured(
    path: str | PathLike[str], *, name: str, split: str, reason: str, curves: pd.DataFrame | None
) -> Path:
    """Write the report of a model that could not be measured: why, and how it learned; returns its path."""
    drawn = None if curves is None else learning_curves(curves, headlines=[], step=None)
    return write_page("unmeasured.html.j2", path, name=name, split=split, reason=reason, curves=drawn)


def _distributions(head: str, lines: list[_Line]) -> list[Chart]:
    return distribution_charts(
        head,
        [
            Distribution(line.metric, line.values, line.mean.value, line.mean.interval)
            for line in lines
            if line.mean is not None and not line.is_baseline
        ],
    )


def _lines(evaluation: Evaluation, head: str) -> Iterator[_Line]:
    prefix = f"{evaluation.split}/{head}/"
    names = [name.removeprefix(prefix) for name in evaluation.summary if name.startswith(prefix)]
    for metric in dict.fromkeys(name.removesuffix(_POOLED) for name in names):
        column = f"{head}/{metric}"
        yield _Line(
            head=head,
            metric=metric,
            mean=_figure(evaluation, prefix + metric),
            pooled=_figure(evaluation, prefix + metric + _POOLED),
            values=evaluation.images[column].dropna() if column in evaluation.images else pd.Series(dtype=float),
        )


def _figure(evaluation: Evaluation, name: str) -> _Figure | None:
    if name not in evaluation.summary:
        return None
    return _Figure(evaluation.summary[name], evaluation.intervals.get(name))
