"""One line of log per epoch, for everyone who cannot see the progress bar: pods, pipelines, log files."""

import logging
import math
import time

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

logger = logging.getLogger(__name__)


class EpochLog(Callback):
    """Logs the losses and the metrics of the heads after each epoch, and how long it took.

    Metrics that no image defines (NaN) are left out.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        defined = sorted((name, value) for name, value in metrics.items() if not math.isnan(value))
        values = ", ".join(f"{name} {value:.4g}" for name, value in defined)
        seconds = time.monotonic() - self._start
        logger.info("epoch %d of %s: %s (%.1f s)", trainer.current_epoch + 1, trainer.max_epochs, values, seconds)
