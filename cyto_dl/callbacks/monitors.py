"""See in the first seconds that the metrics which choose checkpoints and end trainings exist."""

from lightning import Callback, LightningModule, Trainer

from cyto_dl.errors import ConfigError


class CheckMonitors(Callback):
    """Refuses a callback that watches a validation metric which the model does not report.

    Lightning's own callbacks notice it when the first epoch is over.
    """

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare what the callbacks watch with what the first validation batches have reported.

        Raises:
            ConfigError: Names the metric and those that there are.
        """
        there = sorted(name for name in trainer.callback_metrics if name.startswith("valid/"))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            monitor = getattr(callback, "monitor", None)
            if there and monitor and monitor.startswith("valid/") and monitor not in there:
                raise ConfigError(
                    f"{type(callback).__name__} watches '{monitor}', which the model does not report. "
                    f"Choose as optimized_metric one of {', '.join(there)}."
                )
