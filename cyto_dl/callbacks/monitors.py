"""See before the first step that the metrics which choose checkpoints and end trainings exist."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer

from cyto_dl.errors import ConfigError
from cyto_dl.model import MultiTaskIm2Im


def check_monitors(trainer: Trainer, model: LightningModule, config: Mapping[str, Any]) -> None:
    """Refuse an experiment that watches or optimizes what its model never reports.

    A model of another class than CytoDL's says what it reports in its first validation only (`CheckMonitors`).

    Args:
        trainer: With the callbacks that watch metrics.
        model: Says by its heads and their metrics what it reports.
        config: The experiment, with `optimized_metric` and the schedules' `monitor`.

    Raises:
        ConfigError: Names the metric and those that there are.
    """
    if not isinstance(model, MultiTaskIm2Im):
        return
    metrics = [f"{head}/{metric}" for head, task in model.tasks.items() for metric in task.metrics]
    reported = [name for name in model.means if not name.startswith("test/")] + [f"valid/{name}" for name in metrics]
    tested = [f"test/{name}" for name in metrics]  # which no callback can watch, but a search optimize
    _check("optimized_metric", config["optimized_metric"], [*reported, *tested])
    for callback, monitor in _watching(trainer):
        _check(f"the monitor of {callback}", monitor, reported)
    for role, schedule in (config["model"].get("lr_scheduler") or {}).items():
        if isinstance(schedule, Mapping) and schedule.get("monitor"):
            _check(f"model.lr_scheduler.{role}.monitor", schedule["monitor"], reported)


class CheckMonitors(Callback):
    """Refuses a callback that watches a validation metric of which the first validation images report none.

    So it is where a head has no target in the split. Lightning's own callbacks notice when the first epoch is over.
    """

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare what the callbacks watch with what the first validation batches have reported.

        Raises:
            ConfigError: Names the metric and those that there are.
        """
        there = [name for name in trainer.callback_metrics if name.startswith("valid/")]
        for callback, monitor in _watching(trainer):
            if there and monitor.startswith("valid/"):
                _check(f"the monitor of {callback}", monitor, there)


def _watching(trainer: Trainer) -> list[tuple[str, str]]:
    """Callbacks that watch a metric, and which."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    found = [(type(callback).__name__, getattr(callback, "monitor", None)) for callback in callbacks]
    return [(name, monitor) for name, monitor in found if monitor]


def _check(what: str, monitor: str, there: Sequence[str]) -> None:
    if monitor not in there:
        close = difflib.get_close_matches(monitor, there, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        choices = sorted(name for name in there if name.startswith("valid/"))
        raise ConfigError(
            f"{what} is '{monitor}', which the model does not report.{meant} "
            f"Choose as optimized_metric one of {', '.join(choices)}."
        )
