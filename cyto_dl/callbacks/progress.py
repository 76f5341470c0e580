"""What a terminal shows of a training beside its log: the size of the network, and how far the epoch is."""

import logging
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, RichProgressBar
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_summary import get_human_readable_count
from rich.console import Console
from torch import nn

from cyto_dl.model.network import TaskNetwork

logger = logging.getLogger(__name__)


class EpochProgress(RichProgressBar):
    """Lightning's bar with epochs counted from 1, and metrics alone beside it; in a file or a pod's log there is none.

    The bar has to be drawn again and again, which a file shows as one line too many.
    """

    def __init__(self, **arguments: Any) -> None:
        """Make the callback.

        Args:
            arguments: Those of Lightning's RichProgressBar.
        """
        super().__init__(**arguments)
        console = Console()
        if not (console.is_terminal or console.is_jupyter):
            self.disable()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics that the model shows, without the number (v_num) that a logger gives the run."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def _get_train_description(self, current_epoch: int) -> str:
        of = f" of {self.trainer.max_epochs}" if self.trainer.max_epochs != -1 else ""
        text = f"Epoch {current_epoch + 1}{of}"
        return f"{text:{len(self.validation_description)}}"  # as wide as "Validation", so that the bars stand in line


class NetworkSummary(ModelSummary):
    """Logs how many parameters the network's parts have, in one line."""

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count them; parts without parameters (losses without weights, metrics) are left out."""
        counts = {name: sum(each.numel() for each in part.parameters()) for name, part in _parts(pl_module)}
        parts = ", ".join(f"{name} {_readable(count)}" for name, count in counts.items() if count)
        logger.info("%s parameters: %s", _readable(sum(counts.values())), parts)


def _readable(count: int) -> str:
    return get_human_readable_count(count).strip()  # 17, 493 K; padded for a table


def _parts(model: LightningModule) -> list[tuple[str, nn.Module]]:
    parts: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        if isinstance(child, TaskNetwork):
            parts.append((f"backbone {type(child.backbone).__name__}", child.backbone))
            parts += [(f"head {head}", module) for head, module in child.heads.items()]
        else:
            parts.append((name, child))
    return parts
