"""What a step asks of the cluster: processors, memory, GPUs, credentials, second attempts. A local run ignores it.

GPUs cannot be a pipeline parameter in KFP: they are chosen when a pipeline is compiled, by
`python -m pipelines compile training --gpus 1` or the environment variable CYTO_DL_GPUS, read when this module is
imported. A compiled pipeline with GPUs still needs to be told to use them: overrides=["trainer=gpu"].
"""

import os

from kfp import dsl, kubernetes
from kfp.dsl import PipelineTask

from components.image import IMAGE

NUM_GPUS = int(os.environ.get("CYTO_DL_GPUS") or 0)
GPU_TYPE = "nvidia.com/gpu"

# Names of the secrets and the config map that an operator makes in the namespace; a step starts without them too.
S3_SECRET = "cyto-dl-s3"
MLFLOW_SECRET = "cyto-dl-mlflow"
ENVIRONMENT_CONFIG_MAP = "cyto-dl-environment"
PIPELINE_RUN = "CYTO_DL_PIPELINE_RUN"  # cyto_dl.bundle.provenance.PIPELINE_RUN

_DAY_S = 24 * 3600
# What the cluster keeps of a run (its pods and their logs; artifacts stay), and when it ends one that hangs. No
# workspace: steps pass artifacts through the object store, so that none waits for a volume that all nodes can mount.
LIFETIME = dsl.PipelineConfig(
    ttl_seconds_after_finished=7 * _DAY_S,
    ttl_seconds_after_failure=30 * _DAY_S,  # time to read why
    active_deadline_seconds=7 * _DAY_S,
)


def small(task: PipelineTask) -> PipelineTask:
    """A step that reads images one by one."""
    _size(task, cpu_request="1", cpu_limit="2", memory_request="4Gi", memory_limit="8Gi")
    return _connected(task)


def large(task: PipelineTask) -> PipelineTask:
    """A step that runs the network, on GPUs if the pipeline is compiled for them."""
    _size(task, cpu_request="4", cpu_limit="8", memory_request="16Gi", memory_limit="32Gi")
    if NUM_GPUS:
        task.set_accelerator_type(GPU_TYPE).set_accelerator_limit(NUM_GPUS)
        kubernetes.add_toleration(task, key=GPU_TYPE, operator="Exists", effect="NoSchedule")
    # The data loader's workers pass batches through /dev/shm, of which a container has 64 MB; counts as memory.
    kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit="8Gi")
    return _connected(task)


def try_again(task: PipelineTask, times: int) -> PipelineTask:
    """Up to `times` more attempts: a lost node, a bucket that does not answer. Steps write only their outputs."""
    return task.set_retry(num_retries=times, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="300s")


def once(task: PipelineTask) -> PipelineTask:
    """A small step that changes the world outside: not taken from the cache; a second attempt changes nothing more."""
    task.set_caching_options(False)
    return try_again(small(task), times=2)


def _size(task: PipelineTask, *, cpu_request: str, cpu_limit: str, memory_request: str, memory_limit: str) -> None:
    task.set_cpu_request(cpu_request).set_cpu_limit(cpu_limit)
    task.set_memory_request(memory_request).set_memory_limit(memory_limit)


def _connected(task: PipelineTask) -> PipelineTask:
    """Where the object store and MLflow are, and the keys to them; and the image, which a pod does not know itself."""
    task.set_env_variable("CYTO_DL_IMAGE", IMAGE)
    credentials = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    addresses = ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "MLFLOW_TRACKING_URI")
    accounts = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
    kubernetes.use_secret_as_env(task, S3_SECRET, {name: name for name in credentials}, optional=True)
    kubernetes.use_secret_as_env(task, MLFLOW_SECRET, {name: name for name in accounts}, optional=True)
    # no input of the step: with it, none would ever be taken from the cache
    kubernetes.use_field_path_as_env(task, PIPELINE_RUN, "metadata.labels['pipeline/runid']")
    kubernetes.use_config_map_as_env(task, ENVIRONMENT_CONFIG_MAP, {name: name for name in addresses}, optional=True)
    return task
