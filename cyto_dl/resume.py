"""Find where a training goes on:  run folder --is it the same experiment?--> checkpoints/last.ckpt

An empty run folder is filled from S3 first, where `callbacks.remote` has left checkpoints.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cyto_dl.bundle.provenance import RUN_FILE
from cyto_dl.config import differences
from cyto_dl.errors import ConfigError, StorageError, list_problems
from cyto_dl.storage import DamagedError, atomic_path, exists, fetch_published, localize

logger = logging.getLogger(__name__)

# A resumed run may change these: they decide how fast it goes and how long, not what it learns. Data may have moved.
_FREE_ON_RESUME = (
    "data.path",
    "data.cache_dir",
    "data.scales",  # only checks the images
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
    """The checkpoint to go on from: the one asked for (`ckpt_path`), else the last one of this run folder or on S3.

    Raises:
        ConfigError: There is no such checkpoint, or the folder holds a run of another experiment.
        StorageError: S3 cannot be read, or what it has is damaged.
    """
    if config["ckpt_path"]:
        if not Path(config["ckpt_path"]).is_file():
            raise ConfigError(f"ckpt_path: {config['ckpt_path']} does not exist.")
        return str(config["ckpt_path"])
    last = last_checkpoint(output_dir)
    remote = (config.get("callbacks") or {}).get("remote")
    if config["resume"] and remote and not last.is_file():
        _fetch(remote["address"].rstrip("/"), last)
        _fetch_run_file(f"{remote['address'].rstrip('/')}/{RUN_FILE}", output_dir / RUN_FILE)
    if not config["resume"] or not last.is_file():
        return None
    _check_same_experiment(config, last)
    return str(last)


def fetch_run(address: str, output_dir: Path) -> dict[str, float]:
    """Fill a run's folder with what a training elsewhere has left on S3; returns the metrics of its last epoch.

    Args:
        address: `callbacks.remote.address` of that training.
        output_dir: Receives checkpoints/{best,last}.ckpt, config.yaml, learning_curves.csv and mlflow.json.

    Raises:
        StorageError: There is no complete checkpoint, or it cannot be read.
    """
    from cyto_dl.bundle.checkpoint import read_checkpoint
    from cyto_dl.callbacks.learning_curves import rows_of, write_rows

    last = last_checkpoint(output_dir)
    _fetch(address, last)
    if not last.is_file():
        raise StorageError(f"{address} holds no checkpoint: the training there has not come to the end of an epoch.")
    _fetch_run_file(f"{address}/{RUN_FILE}", output_dir / RUN_FILE)
    checkpoint = read_checkpoint(last)
    with atomic_path(output_dir / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(checkpoint["config"], sort_keys=False))
    rows = rows_of(checkpoint)
    write_rows(rows, output_dir)
    return {name: value for name, value in (rows[-1] if rows else {}).items() if "/" in name}


def _fetch(address: str, last: Path) -> None:
    """Bring the best and the last checkpoint of a run from S3; the other one takes the place of one that is damaged."""
    steps: dict[str, int | None] = {}
    damaged: dict[str, DamagedError] = {}
    for name in ("best", "last"):
        try:
            steps[name] = fetch_published(address, name, last.with_name(f"{name}.ckpt"))
        except DamagedError as error:
            damaged[name] = error
    for name, problem in damaged.items():
        other = "last" if name == "best" else "best"
        if steps.get(other) is None:
            raise problem
        logger.warning("%s Going on from the %s checkpoint, of step %d, instead.", problem, other, steps[other])
        with atomic_path(last.with_name(f"{name}.ckpt")) as temporary:
            shutil.copy(last.with_name(f"{other}.ckpt"), temporary)
    if last.is_file():
        logger.info("fetched the checkpoints of this run from %s", address)


def _fetch_run_file(uri: str, path: Path) -> None:
    """Bring the name of the run in MLflow: also of one that was killed before its first checkpoint."""
    if not path.is_file() and exists(uri):
        with atomic_path(path) as temporary:
            shutil.copyfile(localize(uri), temporary)


def _check_same_experiment(config: Mapping[str, Any], checkpoint: Path) -> None:
    from cyto_dl.bundle.checkpoint import read_checkpoint

    run_dir, earlier = checkpoint.parent.parent, read_checkpoint(checkpoint)["config"]
    if changed := [
        line for line in differences(_learning(earlier), _learning(config)) if not line.startswith(_FREE_ON_RESUME)
    ]:
        raise ConfigError(
            f"{run_dir} holds a run of another experiment:\n{list_problems(changed)}\n"
            "Choose another run_name to start a new run beside it, resume=false to start over in the same folder, "
            "or the same values to go on with it."
        )
    before, now = earlier["data"].get("path"), config["data"].get("path")
    if before != now:
        logger.warning(
            "%s was trained on %s and goes on with %s. That is right where the same data have moved; for other data "
            "choose another run_name.",
            run_dir,
            before,
            now,
        )


def _learning(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config.get(key) for key in ("data", "model", "seed")}
