"""Keep the best checkpoint of a run that goes on elsewhere:  checkpoint["scores"] --> the best value to beat.

Lightning forgets the best value when the run's folder has another path, as on another machine; the first validation
would then replace a better checkpoint. And it believes in a best checkpoint whose file is not there, or is another one.
"""

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from cyto_dl.callbacks.checkpointing import AtomicCheckpointIO
from cyto_dl.errors import ConfigError


class OwnBest(lightning.Callback):
    """Every checkpoint says how good it is, and a run that goes on compares with the checkpoints in its folder."""

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the newest value of each metric that chooses checkpoints, as checkpoint["scores"]."""
        known = trainer.callback_metrics
        monitors = {each.monitor for each in _writers(trainer)}
        checkpoint["scores"] = {name: value.detach().cpu().clone() for name, value in known.items() if name in monitors}

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Replace what the checkpoint says of others by what stands in this run's folder, before Lightning reads it."""
        for each in _writers(trainer):
            if state := checkpoint["callbacks"].get(each.state_key):
                here = str(Path(str(each.dirpath)) / Path(state["best_model_path"]).name)
                found = _found(each, state["best_k_models"]) if each.monitor else {"best_model_path": here}
                checkpoint["callbacks"][each.state_key] = {**state, "dirpath": each.dirpath, **found}


def _writers(trainer: lightning.Trainer) -> list[ModelCheckpoint]:
    callbacks: list[Any] = trainer.checkpoint_callbacks
    return [each for each in callbacks if isinstance(each, ModelCheckpoint)]


def _found(callback: ModelCheckpoint, remembered: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The part of a ModelCheckpoint's state that is about its best files, of those that are in its folder."""
    folder = Path(str(callback.dirpath))
    scores: dict[str, torch.Tensor] = {}
    for path, score in remembered.items():
        here = folder / Path(path).name
        try:
            scores[str(here)] = (
                AtomicCheckpointIO().load_checkpoint(here).get("scores", {}).get(callback.monitor, score)
            )
        except ConfigError:  # absent or damaged: there is nothing to beat
            continue
    ordered = sorted(scores, key=lambda path: float(scores[path]), reverse=callback.mode == "max")
    best, worst = (ordered[0], ordered[-1]) if ordered else ("", "")
    return {
        "best_k_models": scores,
        "best_model_path": best,
        "best_model_score": scores.get(best),
        "kth_best_model_path": worst,
        "kth_value": scores.get(worst, callback.kth_value),
    }
