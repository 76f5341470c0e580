"""The comparison of a candidate with the champion as one HTML file: verdict, gain, image by image.  Needs no torch."""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from cyto_dl.comparison import Comparison
from cyto_dl.evaluation.charts import gains
from cyto_dl.evaluation.page import write_page

_NUM_IMAGES = 5  # that gained and lost most


def write_comparison(
    comparison: Comparison | None, path: str | PathLike[str], *, name: str, champion: str | None, reason: str = ""
) -> Path:
    """Write the page; returns its path.

    Args:
        comparison: From `compare_with_bundle`; None where nothing was compared.
        path: Of the HTML file.
        name: Of the model in the registry.
        champion: Its address, models:/<name>/<version>; None where there is none yet.
        reason: Why nothing was compared, and what follows; one sentence.
    """
    values: dict[str, Any] = {"name": name, "champion": champion, "comparison": comparison, "reason": reason}
    if comparison is not None:
        table = comparison.images.dropna(subset="gain").sort_values("gain", ascending=False, kind="stable")
        gained, lost = table[table["gain"] > 0][:_NUM_IMAGES], table[table["gain"] < 0][::-1][:_NUM_IMAGES]
        values |= {"gained": gained.to_dict("records"), "lost": lost.to_dict("records")}
        values |= {"num_gained": int((table["gain"] > 0).sum()), "num_lost": int((table["gain"] < 0).sum())}
        values["drawing"] = _drawing(comparison, table["gain"].to_numpy(dtype=float))
    return write_page("comparison.html.j2", path, **values)


def _drawing(comparison: Comparison, values: np.ndarray) -> str:
    if not len(values):
        return ""
    title = f"gain in {comparison.metric} of {len(values)} images, from {values.max():.4g} to {values.min():.4g}"
    return gains(values, title=title, x_label="images, by gain", minimal=comparison.minimal_gain)
