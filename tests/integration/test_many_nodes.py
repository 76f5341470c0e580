"""The step `train` on two nodes: a stub takes the TrainJob, real processes train, a real store carries the result."""

import subprocess
import sys

import pandas as pd
import pytest
import yaml

from components.cluster.nodes import train_anywhere
from cyto_dl.bundle import load_bundle
from cyto_dl.bundle.checkpoint import read_checkpoint
from cyto_dl.bundle.provenance import PIPELINE_RUN
from cyto_dl.errors import ConfigError
from cyto_dl.steps import evaluate_step, export_step, prepare_step
from tests.deploy.conftest import cluster  # noqa: F401  # the fixture
from tests.serving.process import free_ports

pytestmark = pytest.mark.integration
OVERRIDES = [
    "data.patch_shape=[32,32]",
    "data.patches_per_image=2",
    "data.batch_size=1",
    "data.num_workers=0",
    "model.backbone.filters=[4,4,8,8]",
    "model.backbone.norm_name=INSTANCE",  # torch synchronizes no batch normalisation on processors
    "trainer.max_epochs=2",
]
DESCRIBED = {"source_col": "raw", "target_cols": ["seg"], "spatial_dims": 2, "num_channels": 1}


@pytest.fixture
def pod(monkeypatch):
    """This process as a pod of the pipeline's run r1."""
    monkeypatch.setenv(PIPELINE_RUN, "r1")
    monkeypatch.setenv("CYTO_DL_IMAGE", "registry.example.org/cyto-dl:0.1.0")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")


def as_the_cluster_does(job):
    """Run what the job asks for, a process a node; returns the exit codes."""
    (port,) = free_ports(1)
    trainer = job["spec"]["trainer"]
    group = [f"--nnodes={trainer['numNodes']}", f"--nproc-per-node={trainer['numProcPerNode']}"]
    group += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    command = [sys.executable, *trainer["command"][1:], *group]
    nodes = [
        subprocess.Popen([*command, f"--node-rank={rank}", *trainer["args"]]) for rank in range(trainer["numNodes"])
    ]
    return [node.wait(timeout=300) for node in nodes]


def test_the_model_of_several_nodes_is_measured_and_exported(cluster, bucket, pod, manifest_folder, tmp_path):  # noqa: F811
    dataset, model = str(tmp_path / "dataset"), str(tmp_path / "model")
    prepare_step(str(manifest_folder(train=4) / "manifest.csv"), dataset, **DESCRIBED)
    codes = []

    def look(job):
        if not codes:
            codes.extend(as_the_cluster_does(job))
            condition = "Failed" if any(codes) else "Complete"
            job["status"] = {"conditions": [{"type": condition, "status": "True"}]}

    cluster.look = look
    places = {"model_dir": model, "metrics_path": str(tmp_path / "metrics")}
    nodes = {"checkpoint_folder": f"s3://{bucket.name}/runs", "num_nodes": 2, "gpus_per_node": 0}
    metrics = train_anywhere(dataset, "im2im/segmentation", OVERRIDES, **places, **nodes, **DESCRIBED)

    assert codes == [0, 0]
    assert "valid/seg/dice" in metrics
    last = read_checkpoint(tmp_path / "model" / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 8  # 8 patches an epoch, one a node and step
    assert yaml.safe_load((tmp_path / "model" / "config.yaml").read_text())["trainer"]["num_nodes"] == 2
    assert list(pd.read_csv(tmp_path / "model" / "learning_curves.csv")["epoch"]) == [1, 2]
    assert cluster.methods() == ["POST", "DELETE"]

    made = {f"{name}_path": str(tmp_path / name) for name in ("report", "metrics", "images", "confusion")}
    measured, _ = evaluate_step(dataset, model, "test", **made)
    export_step(dataset, model, made["metrics_path"], str(tmp_path / "bundle"))
    assert load_bundle(tmp_path / "bundle").metadata["metrics"] == measured


def test_a_training_that_fails_on_its_nodes_fails_the_step_with_its_exit_code(
    cluster,  # noqa: F811
    bucket,
    pod,
    manifest_folder,
    tmp_path,
):
    def look(job):
        job["status"] = {"conditions": [{"type": "Failed", "status": "True", "message": "node 0 ended with 4"}]}

    cluster.look = look
    places = {"model_dir": str(tmp_path / "model"), "metrics_path": str(tmp_path / "metrics")}
    nodes = {"checkpoint_folder": f"s3://{bucket.name}/runs", "num_nodes": 2, "gpus_per_node": 0}
    with pytest.raises(SystemExit) as ended:
        train_anywhere(str(manifest_folder()), "im2im/segmentation", [], **places, **nodes, **DESCRIBED)
    assert ended.value.code == 1  # no container ran
    assert not (tmp_path / "model").exists()


def test_several_nodes_need_a_place_for_their_result(pod, tmp_path):
    places = {"model_dir": str(tmp_path / "model"), "metrics_path": str(tmp_path / "metrics")}
    nodes = {"checkpoint_folder": "", "num_nodes": 2, "gpus_per_node": 0}
    with pytest.raises(ConfigError, match="needs checkpoint_folder"):
        train_anywhere("dataset", "im2im/segmentation", [], **places, **nodes, **DESCRIBED)
