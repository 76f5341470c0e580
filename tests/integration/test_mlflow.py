"""A real MLflow server receives everything of a training over HTTP, and one training stays one run."""

import os
import signal
import sys
from contextlib import contextmanager

import pytest
from lightning import Callback
from mlflow.tracking import MlflowClient

from cyto_dl.bundle.provenance import git_commit
from cyto_dl.config import compose_experiment
from cyto_dl.errors import StorageError
from cyto_dl.train import train
from tests.integration.process import ROOT, run, started, wait_for
from tests.serving.process import free_ports
from tests.test_train import overrides_for

pytestmark = pytest.mark.integration
TRAIN = [sys.executable, str(ROOT / "cyto_dl" / "train.py")]


@contextmanager
def mlflow_server(folder, port):
    """The process of a server that keeps its runs in sqlite and its artifacts in a folder."""
    log = folder / "mlflow.log"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    with started(command, log=log, values={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}) as process:
        wait_for(f"http://127.0.0.1:{port}/health", process, log=log, is_up=lambda status: status == 200)
        yield process


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    (port,) = free_ports(1)
    with mlflow_server(tmp_path_factory.mktemp("mlflow"), port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def client(address, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return MlflowClient(address)


def overrides(folder, *extra):
    return [*overrides_for(folder), "logger=mlflow", "callbacks.previews.every_n_epochs=1", *extra]


def train_here(folder, output_dir, *extra):
    return train(compose_experiment(overrides(folder, *extra), output_dir=output_dir))


def only_run(client, experiment_name):
    experiment = client.get_experiment_by_name(experiment_name)
    (found,) = client.search_runs([experiment.experiment_id])
    return found


def artifacts(client, run_id, folder=None):
    """Path and size of every artifact of a run."""
    found = client.list_artifacts(run_id, folder)
    inside = [each for entry in found if entry.is_dir for each in artifacts(client, run_id, entry.path).items()]
    return {entry.path: entry.file_size for entry in found if not entry.is_dir} | dict(inside)


def test_a_training_leaves_everything_in_the_server(client, manifest_folder, tmp_path):
    output_dir = tmp_path / "run"
    metrics = train_here(manifest_folder(), output_dir, "experiment_name=everything", "tags=[a,b]", "seed=7")
    found = only_run(client, "everything")

    assert found.info.status == "FINISHED"
    assert (found.data.params["seed"], found.data.params["model.backbone.spatial_dims"]) == ("7", "2")
    for name in ("train/loss", "valid/seg/dice", "test/seg/dice"):
        assert found.data.metrics[name] == pytest.approx(metrics[name], rel=1e-6), name  # losses are logged as float32
    assert (found.data.tags["tags"], found.data.tags["git_commit"]) == ("a, b", git_commit())

    stored = artifacts(client, found.info.run_id)
    for name in ("config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert stored[name] == (output_dir / name).stat().st_size, name
    for name in ("report.html", "intervals.json", "images.csv"):
        assert stored[f"evaluation/{name}"] == (output_dir / "test" / name).stat().st_size, name
    previews = {path.name for path in (output_dir / "previews").rglob("*") if path.is_file()}
    assert previews
    assert {path.rpartition("/")[2] for path in stored if path.startswith("previews/")} == previews
    requirements = client.download_artifacts(found.info.run_id, "requirements.txt", str(tmp_path))
    with open(requirements) as file:
        assert any(line.startswith("torch==") for line in file)


def test_a_training_that_was_killed_goes_on_in_its_run(client, address, manifest_folder, tmp_path):
    folder, output_dir = manifest_folder(), tmp_path / "run"
    extra = ["experiment_name=killed", "trainer.max_epochs=2", "test=false"]
    kill_in_second_epoch = "+callbacks.kill={_target_: tests.test_train.KillAtStep, step: 3}"
    command = [*TRAIN, *overrides(folder, *extra, kill_in_second_epoch), f"hydra.run.dir={output_dir}"]
    killed = run(command, values={"MLFLOW_TRACKING_URI": address, "PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = only_run(client, "killed")
    assert before.info.status == "RUNNING"

    train_here(folder, output_dir, *extra)
    after = only_run(client, "killed")
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    history = client.get_metric_history(after.info.run_id, "valid/seg/dice")
    assert len({each.step for each in history}) == len(history) == 2


def test_an_injected_run_is_used_and_left_running(client, manifest_folder, tmp_path, monkeypatch):
    owned = client.create_run(client.create_experiment("owned")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", owned)
    train_here(manifest_folder(), tmp_path / "run", "experiment_name=other")

    assert client.get_experiment_by_name("other") is None
    found = client.get_run(owned)
    assert found.info.status == "RUNNING"
    assert {"valid/seg/dice", "test/seg/dice"} <= set(found.data.metrics)
    assert "checkpoints/best.ckpt" in artifacts(client, owned)


class KillServerAtStep(Callback):
    """Ends an MLflow server with all its processes before the given optimizer step."""

    def __init__(self, pid, step):
        self.pid, self.step = pid, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.killpg(self.pid, signal.SIGKILL)


def test_a_server_that_dies_is_one_message_and_the_run_goes_on_when_it_is_back(manifest_folder, tmp_path, monkeypatch):
    (port,), folder, output_dir = free_ports(1), manifest_folder(), tmp_path / "run"
    address, extra = f"http://127.0.0.1:{port}", ["experiment_name=outage", "trainer.max_epochs=2"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with mlflow_server(tmp_path, port) as process:
        kill = f"+callbacks.kill={{_target_: {__name__}.KillServerAtStep, pid: {process.pid}, step: 3}}"
        with pytest.raises(StorageError, match=f"MLflow at {address} cannot be used"):
            train_here(folder, output_dir, *extra, kill)

    command = [*TRAIN, *overrides(folder, *extra), f"hydra.run.dir={output_dir}"]
    ended = run(command, values={"MLFLOW_TRACKING_URI": address})
    assert ended.returncode == 3, ended.stderr
    assert f"StorageError: MLflow at {address} cannot be used" in ended.stderr
    assert "logger=csv" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr

    with mlflow_server(tmp_path, port):
        train_here(folder, output_dir, *extra)
        client = MlflowClient(address)
        found = only_run(client, "outage")
        assert found.info.status == "FINISHED"
        assert "test/seg/dice" in found.data.metrics
        assert len(client.get_metric_history(found.info.run_id, "valid/seg/dice")) == 2
