"""The step `train`, in this process or on several nodes of a cluster.

one node, or no cluster -> cyto_dl.steps.train -> model_dir
several                 -> manifest to S3 -> TrainJob -> checkpoints on S3 -> model_dir

The nodes see neither the step's artifacts nor each other's disks: what they read and leave lies on S3.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.cluster.api import own_namespace
from components.cluster.launcher import run_train_job
from components.cluster.train_job import Nodes, train_job
from cyto_dl.bundle.provenance import PIPELINE_RUN, image_name
from cyto_dl.errors import ConfigError
from cyto_dl.steps.prepare import MANIFEST
from cyto_dl.steps.train import checkpoints_of_run, quoted, train_step, training_words
from cyto_dl.storage import upload

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

_POLL_S = 10  # the whole log is read each time; a training says a few lines a minute


def train_anywhere(
    dataset_dir: str,
    experiment: str,
    overrides: Sequence[str],
    *,
    model_dir: str,
    metrics_path: str,
    checkpoint_folder: str,
    num_nodes: int,
    gpus_per_node: int,
    **described: Any,
) -> dict[str, float]:
    """Train on `num_nodes` nodes of the cluster that this runs in; outside of one in as many processes, on processors.

    Args:
        dataset_dir, experiment, overrides, model_dir, metrics_path: As for `cyto_dl.steps.train_step`.
        checkpoint_folder: As for `cyto_dl.steps.train.training_words`.
        num_nodes: 1 trains in this process.
        gpus_per_node: Of several nodes.
        **described: The other arguments of `training_words`.
    """
    given = {"model_dir": model_dir, "metrics_path": metrics_path, "checkpoint_folder": checkpoint_folder, **described}
    if num_nodes > 1 and "KUBERNETES_SERVICE_HOST" in os.environ:
        nodes = Nodes(int(num_nodes), gpus=int(gpus_per_node))
        return train_on_nodes(dataset_dir, experiment, overrides, nodes=nodes, **given)
    return train_step(dataset_dir, experiment, overrides, num_processes=int(num_nodes), **given)


def train_on_nodes(
    dataset_dir: str,
    experiment: str,
    overrides: Sequence[str],
    *,
    model_dir: str,
    metrics_path: str,
    checkpoint_folder: str,
    nodes: Nodes,
    poll_s: float = _POLL_S,
    client: "ApiClient | None" = None,
    **described: Any,
) -> dict[str, float]:
    """Train as `cyto_dl.steps.train_step` does, on several nodes; a step that is started again finds its job.

    Args:
        dataset_dir: Folder from `cyto_dl.steps.prepare_step`; its images have to be where all nodes can read them.
        experiment: E.g. "im2im/segmentation".
        overrides: As for `cyto_dl.steps.train.training_words`.
        model_dir: Becomes the run's folder.
        metrics_path: Receives the returned metrics as JSON.
        checkpoint_folder: s3://..., through which the nodes leave their result.
        nodes: What it runs on.
        poll_s: Between two looks at the job.
        client: Of the cluster; by default the one that this runs in.
        **described: The other arguments of `training_words`.

    Returns:
        The metrics of the last epoch.

    Raises:
        ConfigError: There is no `checkpoint_folder`, or no image that the nodes could run.
        SystemExit: The training failed, with its own exit code; its log is above.
    """
    from cyto_dl.eval import write_metrics
    from cyto_dl.resume import fetch_run

    if not checkpoint_folder:
        raise ConfigError(
            "training on several nodes needs checkpoint_folder, an s3:// address: the nodes leave the model there."
        )
    image = image_name()
    if image is None:
        raise ConfigError("CYTO_DL_IMAGE is not set: a compiled pipeline says which image its nodes run.")
    address = checkpoints_of_run(checkpoint_folder)
    manifest = f"{address}/{MANIFEST}"
    upload(Path(dataset_dir) / MANIFEST, manifest)
    words = training_words(overrides, checkpoint_folder=checkpoint_folder, **described)
    given = [f"experiment={experiment}", f"data.path={quoted(manifest)}", "paths.log_dir=/tmp/cyto-dl-logs", *words]
    job = train_job(os.environ[PIPELINE_RUN], own_namespace(), image, given, nodes)
    if code := run_train_job(job, poll_s=poll_s, say=print, client=client):
        raise SystemExit(code)
    return write_metrics(fetch_run(address, Path(model_dir)), metrics_path)
