"""What the steps of the pipeline `sweep` do beside those of `training`.

model_dirs, metrics of each --> table of the variants, the best of the folders
"""

import json
import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cyto_dl.errors import ConfigError
from cyto_dl.storage import atomic_path

logger = logging.getLogger(__name__)


def choose_step(
    model_dirs: Sequence[str],
    metrics_paths: Sequence[str],
    variants: Sequence[Sequence[str]],
    *,
    metric: str,
    mode: str,
    model_dir: str,
    table_path: str,
    metrics_path: str,
) -> dict[str, float]:
    """Copy the run whose metric is best, and write a table of all variants.

    Args:
        model_dirs: Of each variant, from `cyto_dl.steps.train_step`.
        metrics_paths: Of each variant, from `cyto_dl.steps.evaluate_step`.
        variants: The overrides of each.
        metric: E.g. "valid/seg/dice"; "" for the first that the variants have.
        mode: "max" or "min".
        model_dir: Receives the best run's folder.
        table_path: Receives a row a variant: overrides, metrics, chosen.
        metrics_path: Receives the returned numbers as JSON.

    Returns:
        The number of the best variant ("variant", counted from 0) and its value, by the metric's name.

    Raises:
        ConfigError: No variant has the metric, or `mode` is another word.
    """
    table = pd.DataFrame([json.loads(Path(path).read_text()) for path in metrics_paths])
    name = metric or next(iter(table.columns), "")
    best = _best(table, name, mode)
    table.insert(0, "overrides", [json.dumps(list(variant)) for variant in variants])
    table.insert(1, "chosen", [number == best for number in range(len(table))])
    with atomic_path(table_path) as temporary:
        table.to_csv(temporary, index=False)
    with atomic_path(model_dir) as temporary:
        shutil.copytree(model_dirs[best], temporary)
    value = float(table[name][best])
    logger.info("of %d variants the best is %s: %s %.4g", len(table), table["overrides"][best], name, value)
    found = {"variant": float(best), name: value}
    with atomic_path(metrics_path) as temporary:
        temporary.write_text(json.dumps(found))
    return found


def check_mode(mode: str) -> None:
    """Refuse another word than max and min."""
    if mode not in ("max", "min"):
        raise ConfigError(f"mode is '{mode}': choose max where more of the metric is better, min where less is.")


def _best(table: pd.DataFrame, name: str, mode: str) -> int:
    """The number of the row with the best value; of equal ones the first."""
    check_mode(mode)
    if name not in table or all(math.isnan(value) for value in table[name]):
        choices = ", ".join(map(str, table.columns)) or "none: no image has a target"
        raise ConfigError(f"metric: no variant has a value of '{name}'. Choose one of {choices}.")
    return int(table[name].argmax() if mode == "max" else table[name].argmin())
