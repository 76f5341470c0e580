"""One short line of log per epoch, for everyone who cannot see the progress bar: pods, pipelines, log files."""

import logging
import math
import time

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

logger = logging.getLogger(__name__)


class EpochLog(Callback):
    """Logs after each epoch the losses, what other callbacks watch, and how long it took.

    The losses are what the model shows in the progress bar; a callback watches its `monitor`. Every metric is in the
    loggers' tables. Those that no image defines (NaN) are left out.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning does not declare it
        watched = [getattr(callback, "monitor", None) for callback in callbacks]
        there = {name: float(value) for name, value in trainer.callback_metrics.items()}
        # in the order in which they are read: how it learns, how it does on other images, what decides
        named = sorted(trainer.progress_bar_metrics) + [name for name in watched if name]
        shown = [name for name in dict.fromkeys(named) if not math.isnan(there.get(name, math.nan))]
        values = ", ".join(f"{name} {there[name]:.4g}" for name in shown)
        seconds = time.monotonic() - self._start
        logger.info("epoch %d of %s: %s (%.1f s)", trainer.current_epoch + 1, trainer.max_epochs, values, seconds)
