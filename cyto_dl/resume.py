"""Find where a training goes on:  run folder --is it the same experiment?--> checkpoints/last.ckpt"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyto_dl.config import flatten
from cyto_dl.errors import ConfigError, list_problems

log = logging.getLogger(__name__)

# A resumed run may change these: they decide how fast it goes and how long, not what it learns. Data may have moved.
_FREE_ON_RESUME = (
    "data.path",
    "data.cache_dir",
    "data.num_workers",
    "data.pin_memory",
    "data.persistent_workers",
    "data.prefetch_factor",
    "model.lr_scheduler",  # its state comes from the checkpoint; its configuration often follows trainer.max_epochs
)


def last_checkpoint(output_dir: Path) -> Path:
    """Where the checkpoint stands that a run in this folder goes on from."""
    return output_dir / "checkpoints" / "last.ckpt"


def checkpoint_to_resume(config: Mapping[str, Any], output_dir: Path) -> str | None:
    """The checkpoint to go on from: the one asked for (`ckpt_path`), else the last one of this run folder.

    Raises:
        ConfigError: There is no such checkpoint, or the folder holds a run of another experiment.
    """
    if config["ckpt_path"]:
        if not Path(config["ckpt_path"]).is_file():
            raise ConfigError(f"ckpt_path: {config['ckpt_path']} does not exist.")
        return str(config["ckpt_path"])
    last = last_checkpoint(output_dir)
    if not config["resume"] or not last.is_file():
        return None
    _check_same_experiment(config, last)
    return str(last)


def _check_same_experiment(config: Mapping[str, Any], checkpoint: Path) -> None:
    from cyto_dl.bundle.checkpoint import read_checkpoint

    earlier = read_checkpoint(checkpoint)["config"]
    before, now = _learning(earlier), _learning(config)
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        lines = [f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed]
        raise ConfigError(
            f"{checkpoint.parent.parent} holds a run of another experiment:\n{list_problems(lines)}\n"
            "Choose another run_name to start a new run beside it, resume=false to start over in the same folder, "
            "or the same values to go on with it."
        )
    if earlier["data"].get("path") != config["data"].get("path"):
        log.warning(
            "%s was trained on %s and goes on with %s. That is right where the same data have moved; for other data "
            "choose another run_name.",
            checkpoint.parent.parent,
            earlier["data"].get("path"),
            config["data"].get("path"),
        )


def _learning(config: Mapping[str, Any]) -> dict[str, Any]:
    flat = flatten({key: config.get(key) for key in ("data", "model", "seed")})
    return {key: value for key, value in flat.items() if not key.startswith(_FREE_ON_RESUME)}
