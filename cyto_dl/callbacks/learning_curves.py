"""What a training reached after each epoch, as a table that a resumed run continues on any machine.

callback_metrics after each epoch -> state in every checkpoint -> <run folder>/learning_curves.csv
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_only

from cyto_dl.storage import atomic_path

LEARNING_CURVES = "learning_curves.csv"


class LearningCurves(lightning.Callback):
    """Writes learning_curves.csv: epoch (counted from 1), step, seconds, device, and every metric of this epoch.

    The rows are in the checkpoints too: a run that goes on, also on a machine that has only its checkpoint, continues
    its table; epochs after that checkpoint are run again and their rows replaced.
    """

    def __init__(self, output_dir: str | Path) -> None:
        """Make the callback.

        Args:
            output_dir: The run's folder.
        """
        self.path = Path(output_dir) / LEARNING_CURVES
        self.rows: list[dict[str, Any]] = []
        self._start = time.monotonic()
        self._is_validated = False

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._start, self._is_validated = time.monotonic(), False

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._is_validated = True

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Add the epoch, before checkpoints are written; validation comes before the end of an epoch."""
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "seconds": round(time.monotonic() - self._start, 3),
            "device": _device(trainer),
        }
        for name, value in trainer.callback_metrics.items():
            if self._is_validated or not name.startswith("valid/"):  # Lightning keeps those of an earlier epoch
                row[name] = float(value)
        self.rows.append(row)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it without declaring it
            self._write()

    @rank_zero_only
    def _write(self) -> None:
        write_rows(self.rows, self.path.parent)

    def state_dict(self) -> dict[str, Any]:
        """The rows until now."""
        return {"rows": list(self.rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the rows of a checkpoint."""
        self.rows = list(state_dict["rows"])


def rows_of(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table in a checkpoint, as a row an epoch; empty in one that was written before the first epoch's end."""
    state = checkpoint.get("callbacks", {}).get(LearningCurves.__qualname__, {})
    return list(state.get("rows", []))


def write_rows(rows: Sequence[Mapping[str, Any]], output_dir: Path) -> None:
    """Write the table of a run into its folder, whole or not at all."""
    with atomic_path(output_dir / LEARNING_CURVES) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def _device(trainer: lightning.Trainer) -> str:
    """The name of the device, and how many of them train together."""
    root = trainer.strategy.root_device
    name = torch.cuda.get_device_name(root) if root.type == "cuda" else root.type
    return f"{trainer.world_size} x {name}" if trainer.world_size > 1 else name
