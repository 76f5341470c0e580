"""Checkpoints that are whole or absent, hold plain data only, and know the experiment that made them."""

import copy
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cyto_dl.bundle.provenance import git_commit
from cyto_dl.errors import ConfigError
from cyto_dl.storage import atomic_path

PLAIN_TYPES = (str, int, float, bool, type(None))


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint beside its place and then renames it; reads tensors and plain containers only.

    A process that is killed while it writes leaves the previous checkpoint. Lightning's own writer keeps a second copy
    of the checkpoint in memory and does not wait for the disk; its reader may unpickle whatever a file holds.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to a local `path`, replacing what is there when it is complete."""
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name with no content

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """The content of a checkpoint; never more than tensors and plain containers, whatever `weights_only` says.

        Raises:
            ConfigError: There is no file, it is damaged, or it holds code.
        """
        if not Path(path).is_file():
            raise ConfigError(f"ckpt_path: there is no checkpoint at {path}.")
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            reason = str(error).partition(". ")[0]  # torch goes on about pickles
            raise ConfigError(
                f"ckpt_path: {path} cannot be read: {reason}. It is damaged or not a checkpoint of CytoDL; "
                "name another one, or remove it to start anew."
            ) from error

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint, if it is there."""
        Path(path).unlink(missing_ok=True)


class EmbedConfig(lightning.Callback):
    """Writes the resolved experiment into every checkpoint, as checkpoint["config"], and the commit of the code."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Make the callback.

        Args:
            config: The experiment as plain containers: what config.yaml of the run folder holds.

        Raises:
            ConfigError: A value is an object, which could not be read back with weights_only.
        """
        _check_plain(config, key="config")
        self.config = copy.deepcopy(dict(config))
        self.git_commit = git_commit()  # now: a checkout may move on while a training runs

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the experiment to a checkpoint that is about to be written."""
        checkpoint["config"] = copy.deepcopy(self.config)
        checkpoint["git_commit"] = self.git_commit


class SaveOnSigterm(lightning.Callback):
    """Writes the checkpoint to go on from when the process is asked to end (SIGTERM), as a pod is before it is evicted.

    Lightning ends a training between two batches. A validation that is cut short leaves the checkpoint before it,
    because Lightning would go on with half of its metrics; so do several processes, which may each notice at another
    batch and would wait for each other.
    """

    def __init__(self, path: str | Path) -> None:
        """Make the callback.

        Args:
            path: Of the checkpoint.
        """
        self.path = path

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Save the state after the last batch."""
        is_after_a_batch = isinstance(exception, SIGTERMException) and trainer.training
        if is_after_a_batch and trainer.world_size == 1:
            # the whole state, as the optimizer's, and not the weights alone; when it is read, no pickle is loaded
            trainer.save_checkpoint(self.path, weights_only=False)


def _check_plain(value: Any, *, key: str) -> None:
    if type(value) is dict:
        for name, child in value.items():
            _check_plain(child, key=f"{key}.{name}")
    elif type(value) is list:
        for index, child in enumerate(value):
            _check_plain(child, key=f"{key}[{index}]")
    elif type(value) not in PLAIN_TYPES:
        raise ConfigError(
            f"{key} is a {type(value).__name__}; a checkpoint embeds plain values only. "
            "Resolve the configuration to dicts, lists, texts and numbers first."
        )
