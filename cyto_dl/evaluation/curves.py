"""The learning curves of a run:  learning_curves.csv -> a chart each of the loss and of what heads are measured by"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from cyto_dl.callbacks.learning_curves import LEARNING_CURVES
from cyto_dl.evaluation.charts import Line, lines

_SPLITS = {"train": "training", "valid": "validation"}


@dataclass(frozen=True)
class Chart:
    """A drawing and what stands above it."""

    title: str
    drawing: Markup


@dataclass(frozen=True)
class Curves:
    """The learning curves of one run.

    Args:
        main: The loss, and the first metric of each head.
        more: Everything else that was logged for single epochs.
        story: How long the training took, where, and which epoch was evaluated; one sentence.
    """

    main: list[Chart]
    more: list[Chart]
    story: str


def read_curves(run_dir: str | Path) -> pd.DataFrame | None:
    """The table of a run's epochs; None where there is none, as beside a bundle."""
    path = Path(run_dir) / LEARNING_CURVES
    return pd.read_csv(path, float_precision="round_trip") if path.is_file() else None


def learning_curves(table: pd.DataFrame, *, headlines: Sequence[str], step: int | None) -> Curves:
    """Charts of a run's epochs.

    Args:
        table: From `read_curves`.
        headlines: <head>/<metric> that are shown first, beside the loss.
        step: Of the checkpoint that is evaluated; None if unknown.
    """
    epochs = table["epoch"].to_numpy(dtype=float)
    chosen = table.loc[table["step"] == step, "epoch"] if step is not None else pd.Series(dtype=float)
    marker = float(chosen.iloc[-1]) if len(chosen) else None
    logged = [str(name).partition("/") for name in table.columns if "/" in str(name)]
    names = list(dict.fromkeys(rest for split, _, rest in logged if split in _SPLITS))
    charts = {}
    for name in names:
        drawn = [
            Line(title, epochs, table[f"{split}/{name}"].to_numpy(dtype=float))
            for split, title in _SPLITS.items()
            if f"{split}/{name}" in table and np.isfinite(table[f"{split}/{name}"].to_numpy(dtype=float)).any()
        ]
        if drawn:
            title = f"{name} over epochs, {' and '.join(line.name for line in drawn)}"
            charts[name] = Chart(name, lines(drawn, title=title, x_label="epoch", marker=marker))
    first = [name for name in ("loss", *headlines) if name in charts]
    return Curves(
        main=[charts.pop(name) for name in dict.fromkeys(first)],
        more=list(charts.values()),
        story=_story(table, marker),
    )


def _story(table: pd.DataFrame, marker: float | None) -> str:
    seconds = float(table["seconds"].sum())
    devices = ", then ".join(dict.fromkeys(map(str, table["device"])))
    plural = "" if len(table) == 1 else "s"
    said = f"{len(table)} epoch{plural}, {int(table['step'].max())} steps, {duration(seconds)} on {devices}."
    return said + (
        f" The dotted line is the evaluated checkpoint, of epoch {marker:.0f}, counted from 1." if marker else ""
    )


def duration(seconds: float) -> str:
    """Seconds as people say them, e.g. "3 h 20 min"."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = math.floor(seconds / 60 + 0.5)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
