"""The TrainJob (Kubeflow Trainer v2) that trains one experiment on several nodes."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cyto_dl.bundle.provenance import PIPELINE_RUN
from cyto_dl.errors import ConfigError

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
RUNTIME = "torch-distributed"  # comes with Kubeflow Trainer; starts one pod a node and names them to torchrun
SERVICE_ACCOUNT = "cyto-dl-worker"  # of deploy/pipeline
S3_SECRET = "cyto-dl-s3"
MLFLOW_SECRET = "cyto-dl-mlflow"
ENVIRONMENT_CONFIG_MAP = "cyto-dl-environment"
_SECRET_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_MLFLOW_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_CONFIG_KEYS = ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "MLFLOW_TRACKING_URI")
_GPU = "nvidia.com/gpu"
_GRACE_SECONDS = 60  # after SIGTERM a checkpoint is written and uploaded


@dataclass(frozen=True)
class Nodes:
    """What the training runs on.

    Attributes:
        count: Number of nodes.
        gpus: Per node; 0 trains on processors, with gloo.
        cpu, memory: Per node, as Kubernetes writes them.
        shared_memory: Size of /dev/shm, through which the data loader's workers pass batches; counts as memory.
        volume_claim: A claim that all nodes can write (ReadWriteMany), mounted at /data; "" for none.
    """

    count: int
    gpus: int = 0
    cpu: str = "8"
    memory: str = "32Gi"
    shared_memory: str = "8Gi"
    volume_claim: str = ""

    @property
    def processes(self) -> int:
        """Per node: one a GPU."""
        return max(self.gpus, 1)


def train_job(run: str, namespace: str, image: str, overrides: Sequence[str], nodes: Nodes) -> dict[str, Any]:
    """The TrainJob of `python cyto_dl/train.py OVERRIDES trainer=ddp` on `nodes`, as a mapping.

    Args:
        run: Identifies the run, e.g. KFP's run id. The same run and arguments give the same name, so that a step that
            is started again finds the job of its first attempt.
        namespace: Of Kubernetes.
        image: With a tag or a digest.
        overrides: Hydra's words, beginning with experiment=...; trainer, its nodes and devices come from `nodes`.
        nodes: What it runs on.

    Raises:
        ConfigError: No node, or overrides that name what `nodes` says.
    """
    decided = ("trainer=", "trainer.num_nodes=", "trainer.devices=", "trainer.accelerator=")
    taken = [word for word in overrides if word.lstrip("+").startswith(decided)]
    if nodes.count < 1 or nodes.gpus < 0 or taken:
        problem = f"overrides {taken} are decided by the nodes" if taken else f"{nodes.count} nodes, {nodes.gpus} GPUs"
        raise ConfigError(
            f"training on several nodes: {problem}. Give a number of nodes of at least 1, and leave them out."
        )
    spec = {
        "runtimeRef": {"name": RUNTIME},
        "trainer": {
            "image": image,
            "command": ["python", "-m", "torch.distributed.run"],
            "args": ["--module", "cyto_dl.train", *overrides, *_trainer(nodes)],
            "numNodes": nodes.count,
            "numProcPerNode": nodes.processes,
            "resourcesPerNode": _resources(nodes),
            "env": [*_origin(run, image), *_environment()],
        },
        # podSpecOverrides of older examples are dropped without a word by Trainer 2.3.
        "runtimePatches": [
            {"manager": "cyto-dl/launcher", "trainingRuntimeSpec": {"template": {"spec": _patch(nodes)}}}
        ],
    }
    digest = hashlib.sha256(json.dumps([run, spec], sort_keys=True).encode()).hexdigest()[:16]
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": f"cyto-dl-{digest}",
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "cyto-dl"},
            "annotations": {"cyto-dl/run": run},
        },
        "spec": spec,
    }


def _trainer(nodes: Nodes) -> list[str]:
    # torch synchronizes the statistics of batch normalisation on GPUs only
    accelerator = [] if nodes.gpus else ["trainer.accelerator=cpu", "trainer.sync_batchnorm=false"]
    return ["trainer=ddp", f"trainer.num_nodes={nodes.count}", f"trainer.devices={nodes.processes}", *accelerator]


def _resources(nodes: Nodes) -> dict[str, Any]:
    amounts = {"cpu": nodes.cpu, "memory": nodes.memory} | ({_GPU: str(nodes.gpus)} if nodes.gpus else {})
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _origin(run: str, image: str) -> list[dict[str, Any]]:
    """What the training's run in MLflow is found by: a pod knows neither its image nor the pipeline's run itself."""
    return [{"name": "CYTO_DL_IMAGE", "value": image}, *([{"name": PIPELINE_RUN, "value": run}] if run else [])]


def _environment() -> list[dict[str, Any]]:
    """Where the object store and MLflow are, and the keys to them; a training starts without them too."""
    secret = [(key, "secretKeyRef", S3_SECRET) for key in _SECRET_KEYS]
    mlflow = [(key, "secretKeyRef", MLFLOW_SECRET) for key in _MLFLOW_KEYS]
    config = [(key, "configMapKeyRef", ENVIRONMENT_CONFIG_MAP) for key in _CONFIG_KEYS]
    return [
        {"name": key, "valueFrom": {kind: {"name": name, "key": key, "optional": True}}}
        for key, kind, name in [*secret, *mlflow, *config]
    ]


def _patch(nodes: Nodes) -> dict[str, Any]:
    """What the pods of the runtime's job `node` get beside its own."""
    volumes: list[dict[str, Any]] = [
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": nodes.shared_memory}}
    ]
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    if nodes.volume_claim:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": nodes.volume_claim}})
        mounts.append({"name": "data", "mountPath": "/data"})
    pod: dict[str, Any] = {
        "serviceAccountName": SERVICE_ACCOUNT,
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "volumes": volumes,
        "containers": [{"name": "node", "volumeMounts": mounts}],
    }
    if nodes.gpus:
        pod["tolerations"] = [{"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}]
    return {"replicatedJobs": [{"name": "node", "template": {"spec": {"template": {"spec": pod}}}}]}
