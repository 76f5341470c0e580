"""An evaluation as one HTML file that needs nothing else: tables, figures, provenance."""

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from cyto_dl.evaluation.evaluate import BASELINE, Evaluation
from cyto_dl.storage import atomic_path


@dataclass(frozen=True)
class _Line:
    """One metric of one head."""

    head: str
    metric: str
    mean: float
    interval: tuple[float, float] | None
    lowest: float
    highest: float
    num_images: int

    @property
    def is_baseline(self) -> bool:
        return self.metric == BASELINE

    @property
    def title(self) -> str:
        return "dice of Otsu's threshold" if self.is_baseline else self.metric


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
    for column in evaluation.images.columns:
        name = f"{evaluation.split}/{column}"
        if column.rpartition("/")[0] != head or name not in evaluation.summary:
            continue
        values = evaluation.images[column].dropna()
        yield _Line(
            head=head,
            metric=column.rpartition("/")[2],
            mean=evaluation.summary[name],
            interval=evaluation.intervals.get(name),
            lowest=float(values.min()),
            highest=float(values.max()),
            num_images=len(values),
        )
