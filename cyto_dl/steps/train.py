"""What the step `train` of a pipeline does:  dataset_dir, experiment, overrides -> training -> model_dir, metrics

With `checkpoint_folder` the best and the last checkpoint go to <checkpoint_folder>/<pipeline run>/checkpoints while the
training goes on, and a step that is started again goes on from there.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyto_dl.bundle.provenance import PIPELINE_RUN
from cyto_dl.errors import ConfigError
from cyto_dl.steps.console import quiet_libraries
from cyto_dl.steps.prepare import MANIFEST, whole_numbers


def train_step(
    dataset_dir: str, experiment: str, overrides: Sequence[str], *, model_dir: str, metrics_path: str, **described: Any
) -> dict[str, float]:
    """Train an experiment on prepared data.

    Metrics go to MLflow when MLFLOW_TRACKING_URI is set. Preprocessed images are kept in a temporary folder, because
    what is in `model_dir` is uploaded when the step ends.

    Args:
        dataset_dir: Folder from `cyto_dl.steps.prepare_step`.
        experiment: E.g. "im2im/segmentation".
        overrides: In hydra's syntax, e.g. ["trainer=gpu", "trainer.max_epochs=50"]; they win over all others.
        model_dir: Becomes the run's folder.
        metrics_path: Receives the returned metrics as JSON.
        **described: The other arguments of `training_words`.
    """
    quiet_libraries()
    from cyto_dl.eval import write_metrics
    from cyto_dl.train import train_experiment

    manifest = str(Path(dataset_dir) / MANIFEST)
    with tempfile.TemporaryDirectory(prefix="cyto-dl-cache-") as cache_dir:
        words = [f"paths.cache_dir={quoted(cache_dir)}", *training_words(overrides, **described)]
        metrics = train_experiment(experiment, words, manifest=manifest, output_dir=model_dir)
    return write_metrics(metrics, metrics_path)


def training_words(
    overrides: Sequence[str],
    *,
    source_col: str,
    target_cols: Sequence[str],
    spatial_dims: int,
    num_channels: int = 0,
    source_channel: Sequence[int] = (),
    target_channel: Sequence[int] = (),
    start_model: str = "",
    checkpoint_folder: str = "",
    num_processes: int = 1,
) -> list[str]:
    """A step's arguments as changes to an experiment, in hydra's syntax; `overrides` win over all others.

    Args:
        overrides: E.g. ["trainer=gpu", "trainer.max_epochs=50"].
        source_col: Column of the manifest that holds the images.
        target_cols: Columns that hold the targets. One sets the experiment's `target_col`; an experiment with several
            names them itself, or in overrides: ["data.columns.seg=nuclei"]; so does one that makes its own.
        spatial_dims: 2 or 3.
        num_channels: Sets the experiment's `raw_im_channels`; 0 leaves it.
        source_channel: Sets the experiment's `source_channel`; empty leaves it.
        target_channel: Sets the experiment's `target_channel`; empty leaves it.
        start_model: Bundle, run or checkpoint whose weights the training begins with; "" for none.
        checkpoint_folder: s3://..., see above; "" for none.
        num_processes: On this machine's processors, that train together.
    """
    words = [f"source_col={quoted(source_col)}", f"spatial_dims={int(spatial_dims)}", "test=false"]
    words.append("extras.print_config=false")  # config.yaml in the run's folder says it
    if len(target_cols) == 1:
        words.append(f"target_col={quoted(target_cols[0])}")
    if num_channels:
        words.append(f"raw_im_channels={int(num_channels)}")
    selected = {"source_channel": source_channel, "target_channel": target_channel}
    words += [f"{name}={whole_numbers(channels)}" for name, channels in selected.items() if channels]
    if os.environ.get("MLFLOW_TRACKING_URI"):
        words.append("logger=many_loggers")
    if start_model:
        words.append(f"start_from={quoted(start_model)}")
    if checkpoint_folder:
        words += ["callbacks=s3", f"callbacks.remote.address={quoted(checkpoints_of_run(checkpoint_folder))}"]
    if num_processes > 1:
        words += ["trainer=ddp_sim", f"trainer.devices={int(num_processes)}"]
    return [*words, *overrides]


def checkpoints_of_run(checkpoint_folder: str) -> str:
    """Where the checkpoints of this pipeline's run lie in the folder of all runs.

    Raises:
        ConfigError: The folder is not on S3, or nobody says which run this is.
    """
    run = os.environ.get(PIPELINE_RUN)
    if not checkpoint_folder.startswith("s3://"):
        raise ConfigError(
            f"checkpoint_folder is {checkpoint_folder!r}: give an address s3://bucket/folder, or leave it empty. A "
            "folder of one machine would be gone with it."
        )
    if not run:
        raise ConfigError(
            f"checkpoint_folder {checkpoint_folder} holds a folder for each run, and {PIPELINE_RUN} does not say which "
            "run this is: set it to a name of your own. A pipeline sets it for its steps."
        )
    return f"{checkpoint_folder.rstrip('/')}/{run}/checkpoints"


def quoted(value: str) -> str:
    """A value for hydra's grammar, in which a bare space, comma or bracket means something."""
    return "'" + value.replace("'", "\\'") + "'"
