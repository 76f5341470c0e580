"""An evaluation as one HTML file that needs nothing else: tables, figures, provenance."""

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from cyto_dl.evaluation.evaluate import Evaluation
from cyto_dl.evaluation.judge import BASELINE
from cyto_dl.storage import atomic_path

_POOLED = "_pooled"
_BASELINES = {"dice": "dice of Otsu's threshold", "ap50": "ap50 of Otsu's threshold"}


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


def write_report(evaluation: Evaluation, path: str | PathLike[str]) -> Path:
    """Write the report; returns its path."""
    template = Environment(
        loader=PackageLoader("cyto_dl.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.j2")
    lines = {head: list(_lines(evaluation, head)) for head in evaluation.figures}
    text = template.render(
        evaluation=evaluation,
        heads=lines,
        tiles=[line for of_head in lines.values() for line in of_head[:1]],
        baselines={line.head: line for of_head in lines.values() for line in of_head if line.is_baseline},
        columns=[column for column in evaluation.images.columns if "/" in column],
        rows=evaluation.images.to_dict("records"),
        config=yaml.safe_dump(evaluation.config, sort_keys=False, allow_unicode=True),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


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
