"""Train a model:  python cyto_dl/train.py experiment=im2im/segmentation trainer=cpu

experiment --hydra--> plain config --instantiate--> data module, model, callbacks, loggers, trainer
    --fit (or go on where a killed run stopped)--> checkpoints/best.ckpt --evaluate--> test metrics

In Python: `train(compose_experiment([...], output_dir=...))`; `await train_async(...)` does not block an event loop.
"""

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: find the package beside this file's folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import asyncio
import logging
import os
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml

from cyto_dl.allocator import keep_freed_memory
from cyto_dl.check import check_accelerator, check_data, check_experiment, check_labels
from cyto_dl.config import compose_experiment, flatten, instantiate, launch, print_tree
from cyto_dl.errors import ConfigError
from cyto_dl.resume import checkpoint_to_resume, last_checkpoint
from cyto_dl.run_folder import removed_if_refused
from cyto_dl.start import start_from
from cyto_dl.storage import atomic_path

if TYPE_CHECKING:
    from lightning import Callback, LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.loggers import Logger

    from cyto_dl.data import DataframeDatamodule

logger = logging.getLogger(__name__)

_STOPPED_BY_CTRL_C = 130  # 128 + SIGINT, as shells count
_STOPPED_BY_SIGTERM = 143  # 128 + SIGTERM: a scheduler tells it from a training that failed
_ONE_AT_A_TIME = threading.Lock()  # random states, and what torch is set to, belong to the process


def train(config: Mapping[str, Any], *, callbacks: "Sequence[Callback]" = ()) -> dict[str, float]:
    """Train what a resolved experiment describes, and evaluate its best checkpoint on the split `test`.

    The run's folder, `paths.output_dir`, receives config.yaml, checkpoints/{best,last}.ckpt, learning_curves.csv,
    previews/ and what the loggers write. If it already holds the last checkpoint of the same experiment, the run goes
    on from there.

    Args:
        config: From `cyto_dl.config.compose_experiment`, or `cyto_dl.config.plain` of a hydra configuration. Its
            config["data"]["path"] may be set to images in memory: {split: [{column: array}]}, or a list of rows or a
            table with a column `split`. What is written and embedded in checkpoints then says how many there were.
        callbacks: Lightning callbacks beside those that the experiment names.

    Returns:
        Every logged metric by name, e.g. "valid/seg/dice", "test/seg/dice".

    Raises:
        ConfigError: The experiment is wrong, or the folder holds a run of another experiment.
        ManifestError, ImageError: The data is wrong.
        StorageError: MLflow cannot be reached.
        TrainingError: The loss is not finite.
    """
    check_experiment(config)
    images, config = config["data"], _as_written(config)
    output_dir = Path(config["paths"]["output_dir"])
    checkpoint = checkpoint_to_resume(config, output_dir)
    check_accelerator(config["trainer"])
    _prepare_process(config)

    datamodule = instantiate(images, "data", _recursive_=False)
    check_data(config, datamodule)
    model = instantiate(config["model"], "model")
    if config.get("start_from") and config["train"] and checkpoint is None:
        start_from(model, config["start_from"])
    trainer = build_trainer(config, callbacks=callbacks)
    _check_monitors(config, trainer, model)
    check_labels(config, datamodule, model)
    metrics: dict[str, float] = {}
    with removed_if_refused(output_dir, has_begun=lambda: trainer.global_step > 0):
        _write_config(config, output_dir)
        loggers = [instantiate(node, f"logger.{name}") for name, node in (config.get("logger") or {}).items()]
        trainer.loggers = loggers
        for each in loggers:
            each.log_hyperparams(flatten({**config, "model/parameters": _count_parameters(model)}))
        if config["extras"]["print_config"] and trainer.is_global_zero:
            print_tree(config)  # last, so that an error is not looked for below it
        if config["train"]:
            logger.info("training in %s%s", output_dir, f", going on from {checkpoint}" if checkpoint else "")
            metrics = _fit(trainer, model, datamodule, checkpoint)
    if config["test"] and config["train"] and _writes_no_checkpoint(trainer):
        metrics |= _test_as_it_is(trainer, model, datamodule)
    elif config["test"] and trainer.is_global_zero:
        metrics |= _test(config, output_dir, datamodule, loggers)
    if config["train"] and trainer.is_global_zero:
        _say_what_is_next(trainer, output_dir)
    return metrics


async def train_async(config: Mapping[str, Any]) -> dict[str, float]:
    """`train` in a thread of its own: the event loop of a notebook or a server goes on meanwhile.

    Trainings that are awaited together run one after the other. A training whose task is cancelled, as a notebook's
    stop button does, ends at its next batch; awaited again, it goes on from its last checkpoint. Random states belong
    to the process: a training repeats itself to the last bit only if other threads draw no random numbers.

    Arguments, returned value and errors are those of `train`.
    """
    cancelled = threading.Event()

    def run() -> dict[str, float]:
        with _ONE_AT_A_TIME:
            return {} if cancelled.is_set() else train(config, callbacks=[_stop_when(cancelled)])

    training = asyncio.create_task(asyncio.to_thread(run))
    try:
        return await asyncio.shield(training)  # a thread cannot be cancelled, only asked
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait([training])
        raise


def train_experiment(
    experiment: str, overrides: Sequence[str], *, manifest: str, output_dir: str | Path
) -> dict[str, float]:
    """Train a shipped experiment on a manifest, as a pipeline step does.

    Args:
        experiment: E.g. "im2im/segmentation".
        overrides: Hydra overrides, e.g. ["trainer=gpu", "trainer.max_epochs=50"]; they win over the rest.
        manifest: A .csv or .parquet with a column `split`.
        output_dir: The run's folder.
    """
    given = [f"experiment={experiment}", f"data.path='{manifest}'", *overrides]
    return train(compose_experiment(given, output_dir=output_dir))


def build_trainer(config: Mapping[str, Any], *, callbacks: "Sequence[Callback]" = ()) -> "Trainer":
    """Lightning's Trainer with the configured callbacks, those that make a run resumable, and further ones; no loggers.

    Loggers may open a run on a server when they are made, so they come last.
    """
    from lightning.pytorch.callbacks import Checkpoint

    from cyto_dl.callbacks import (
        AtomicCheckpointIO,
        CheckMonitors,
        EmbedConfig,
        LearningCurves,
        OwnBest,
        RandomStates,
        SaveOnSigterm,
    )

    chosen = {name: node for name, node in (config.get("callbacks") or {}).items() if node}
    named = [instantiate(node, f"callbacks.{name}") for name, node in chosen.items()]
    output_dir = Path(config["paths"]["output_dir"])
    own = [EmbedConfig(config), OwnBest(), RandomStates(), CheckMonitors(), LearningCurves(output_dir)]
    everything = [*named, *own, *callbacks]
    writes_checkpoints = any(isinstance(callback, Checkpoint) for callback in everything)
    if writes_checkpoints:
        everything.append(SaveOnSigterm(last_checkpoint(output_dir)))
    trainer: Trainer = instantiate(
        config["trainer"],
        "trainer",
        callbacks=everything,
        logger=False,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=writes_checkpoints,
    )
    return trainer


def _fit(
    trainer: "Trainer", model: "LightningModule", datamodule: "LightningDataModule", checkpoint: str | None
) -> dict[str, float]:
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    try:
        with _as_config_error():
            trainer.fit(model, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as end:  # how Lightning ends after Ctrl-C too
        logger.warning("stopped; the same command goes on from the last checkpoint")
        code = _STOPPED_BY_SIGTERM if isinstance(end, SIGTERMException) else _STOPPED_BY_CTRL_C
        raise SystemExit(code) from end
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if checkpoint and not metrics:
        logger.info("this run is complete: raise trainer.max_epochs to train on, or choose another run_name")
    return metrics


def _prepare_process(config: Mapping[str, Any]) -> None:
    import lightning
    import torch

    from cyto_dl.callbacks import ignore_known_warnings

    keep_freed_memory()
    ignore_known_warnings()
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    torch.set_float32_matmul_precision(config["extras"]["matmul_precision"])


def _as_written(config: Mapping[str, Any]) -> dict[str, Any]:
    """The experiment as files and checkpoints hold it: images in memory become the number of their rows."""
    data = config["data"]
    path = data.get("path")
    if isinstance(path, os.PathLike):
        path = os.fspath(path)
    elif isinstance(path, Mapping):
        path = f"in memory: {', '.join(f'{len(rows)} {split}' for split, rows in path.items())}"
    elif path is not None and not isinstance(path, str):
        path = f"in memory: {len(path)} rows"
    return {**config, "data": {**data, "path": path} if "path" in data else data}


def _check_monitors(config: Mapping[str, Any], trainer: "Trainer", model: "LightningModule") -> None:
    if config["train"]:
        from cyto_dl.callbacks import check_monitors

        check_monitors(trainer, model, config)


def _stop_when(asked: threading.Event) -> "Callback":
    from lightning.pytorch.callbacks import LambdaCallback

    def stop(*_: Any) -> None:
        if asked.is_set():
            raise asyncio.CancelledError

    return LambdaCallback(on_train_batch_start=stop, on_validation_batch_start=stop)


def _write_config(config: Mapping[str, Any], output_dir: Path) -> None:
    """Save the resolved experiment beside the run."""
    with atomic_path(output_dir / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(dict(config), sort_keys=False))


def _count_parameters(model: "LightningModule") -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _test(
    config: dict[str, Any], output_dir: Path, datamodule: "DataframeDatamodule", loggers: "Sequence[Logger]"
) -> dict[str, float]:
    """Evaluate the best checkpoint as it would be served; nothing to do without images of the split `test`."""
    from cyto_dl.eval import evaluate_checkpoint
    from cyto_dl.tracking import MLflowLogger

    if not datamodule.has_targets("test"):
        logger.warning("no image has the split 'test' and a target: the model is not evaluated")
        return {}
    metrics = evaluate_checkpoint(output_dir, config=config, manifest=datamodule.path, output_dir=output_dir / "test")
    logger.info("report: %s", output_dir / "test" / "report.html")
    for each in loggers:
        if not isinstance(each, MLflowLogger):  # the evaluation is in the MLflow run already, with its report
            each.log_metrics(metrics)
            each.save()
    return metrics


def _say_what_is_next(trainer: "Trainer", output_dir: Path) -> None:
    """Tell where the best checkpoint is and what can be done with it; nothing where no metric chooses one."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    for each in callbacks:
        if isinstance(each, ModelCheckpoint) and each.monitor and each.best_model_path:
            path, run_dir = (os.path.relpath(path) for path in (each.best_model_path, output_dir))
            score = "unknown" if each.best_model_score is None else f"{float(each.best_model_score):.4g}"
            logger.info("best checkpoint: %s (%s %s)", path, each.monitor, score)
            logger.info("next: cyto-dl export %s --output bundle", shlex.quote(run_dir))
            logger.info("then: cyto-dl predict bundle IMAGE... --output predictions")


def _writes_no_checkpoint(trainer: "Trainer") -> bool:
    # Lightning sets fast_dev_run when it is made, without declaring it
    return bool(trainer.fast_dev_run) or not trainer.checkpoint_callbacks  # type: ignore[attr-defined]


def _test_as_it_is(trainer: "Trainer", model: "LightningModule", datamodule: Any) -> dict[str, float]:
    """Metrics of the weights that the training ended with, as with debug=...; there is no checkpoint to evaluate."""
    if not datamodule.has_targets("test"):
        return {}
    trainer.test(model, datamodule=datamodule)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@contextmanager
def _as_config_error() -> Iterator[None]:
    """Turn what Lightning raises about settings of the trainer and the callbacks into a ConfigError."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {error}") from error


def main() -> None:
    """Entry point of `python cyto_dl/train.py` and `cyto-dl train`."""

    def task(config: dict[str, Any]) -> float | None:
        return train(config).get(config["optimized_metric"])

    launch(task, "train.yaml")


if __name__ == "__main__":
    main()
