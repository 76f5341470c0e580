"""A real MLflow server receives everything of a training over HTTP, and one training stays one run."""

import json
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from lightning import Callback
from mlflow.tracking import MlflowClient

from cyto_dl.bundle import export, export_bundle, load_bundle
from cyto_dl.bundle.provenance import git_commit
from cyto_dl.config import compose_experiment
from cyto_dl.errors import StorageError
from cyto_dl.tracking import find_champion, promote, register_bundle
from cyto_dl.train import train
from tests.bundle.tiny import checkpoint_of, experiment, write_images
from tests.integration.mlflow_server import mlflow_server
from tests.integration.process import PATIENCE_S, ROOT, run
from tests.serving.process import free_ports
from tests.test_train import overrides_for

pytestmark = pytest.mark.integration
TRAIN = [sys.executable, str(ROOT / "cyto_dl" / "train.py")]


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


class WaitForCheckpoint(Callback):
    """Begins the second epoch when the server has a checkpoint of the first."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            client, run_id = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]), trainer.loggers[0].run_id
            deadline = time.monotonic() + PATIENCE_S
            while "checkpoints/last.ckpt" not in artifacts(client, run_id, "checkpoints"):
                assert time.monotonic() < deadline
                time.sleep(0.1)


def test_a_checkpoint_is_in_the_server_while_the_training_goes_on(client, manifest_folder, tmp_path):
    wait = f"+callbacks.wait={{_target_: {__name__}.WaitForCheckpoint}}"
    train_here(manifest_folder(), tmp_path / "run", "experiment_name=early", "trainer.max_epochs=2", "test=false", wait)
    stored = artifacts(client, only_run(client, "early").info.run_id, "checkpoints")
    written = tmp_path / "run" / "checkpoints"
    assert stored == {f"checkpoints/{path.name}": path.stat().st_size for path in written.glob("*.ckpt")}


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


@pytest.fixture
def outage(tmp_path, monkeypatch):
    """Overrides of a training of four epochs whose server is killed in the second, and the server's address."""
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

    def overrides_of(server):
        kill = f"+callbacks.kill={{_target_: {__name__}.KillServerAtStep, pid: {server.pid}, step: 3}}"
        return ["experiment_name=outage", "trainer.max_epochs=4", kill]

    return port, address, overrides_of


def assert_complete(client, output_dir, num_epochs):
    found = only_run(client, "outage")
    assert found.info.status == "FINISHED"
    assert "test/seg/dice" in found.data.metrics
    history = client.get_metric_history(found.info.run_id, "valid/seg/dice")
    assert len(history) == len({each.step for each in history}) == num_epochs
    stored = artifacts(client, found.info.run_id)
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "evaluation/report.html"} <= stored.keys()
    assert {path.split("/")[1] for path in stored if path.startswith("previews/")} == {
        f"epoch_{epoch:03d}" for epoch in range(num_epochs)
    }
    assert not (output_dir / "mlflow_unsent.jsonl").exists()


def test_a_training_goes_on_while_the_server_is_away_and_nothing_is_lost(manifest_folder, tmp_path, outage, caplog):
    """The server is started again when the training is at its end, and waits for it."""
    caplog.set_level(logging.INFO, "cyto_dl")
    port, address, overrides_of = outage
    output_dir, ended = tmp_path / "run", threading.Event()
    with mlflow_server(tmp_path, port) as first, ThreadPoolExecutor() as thread:

        def start_again():
            while not (output_dir / "mlflow_unsent.jsonl").is_file() or "FINISHED" not in unsent(output_dir):
                assert not ended.wait(0.1)
            with mlflow_server(tmp_path, port):
                ended.wait()
                assert_complete(MlflowClient(address), output_dir, num_epochs=4)

        second = thread.submit(start_again)
        try:
            train_here(manifest_folder(), output_dir, *overrides_of(first))
        finally:
            ended.set()
        second.result()
    assert caplog.text.count("The run goes on") == 1
    assert "everything is sent" in caplog.text


def test_a_server_that_stays_away_is_one_message_at_the_end_and_the_run_goes_on_when_it_is_back(
    manifest_folder, tmp_path, outage
):
    port, address, overrides_of = outage
    folder, output_dir = manifest_folder(), tmp_path / "run"
    with mlflow_server(tmp_path, port) as server:
        extra = overrides_of(server)
        with pytest.raises(StorageError, match=f"MLflow at {address} did not come back within 1 s"):
            train_here(folder, output_dir, *extra, "+logger.mlflow.patience_s=1")
    assert "FINISHED" in unsent(output_dir)  # all four epochs were trained

    command = [*TRAIN, *overrides(folder, *extra[:2]), f"hydra.run.dir={output_dir}"]
    ended = run(command, values={"MLFLOW_TRACKING_URI": address})
    assert ended.returncode == 3, ended.stderr
    assert f"StorageError: MLflow at {address} cannot be used" in ended.stderr
    assert "logger=csv" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr

    with mlflow_server(tmp_path, port):
        train_here(folder, output_dir, *extra[:2])
        assert_complete(MlflowClient(address), output_dir, num_epochs=4)


def unsent(output_dir):
    return (output_dir / "mlflow_unsent.jsonl").read_text()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_mlflows_own_command_predicts_the_input_example_of_a_champion(address, tmp_path, monkeypatch, spatial_dims):
    monkeypatch.setattr(export, "export_onnx", lambda *_: {"error": "left out by a test"})
    manifest = write_images(tmp_path, spatial_dims)
    checkpoint_of(experiment(manifest, spatial_dims), tmp_path / "run/checkpoints/best.ckpt")
    bundle = export_bundle(tmp_path / "run", tmp_path / "bundle")
    name = f"tiny-{spatial_dims}d"
    version = register_bundle(bundle, name, tracking_uri=address)
    promote(version, tracking_uri=address)
    assert find_champion(name, tracking_uri=address) == version

    def use_mlflow(*command):
        values = {"MLFLOW_TRACKING_URI": address, "PYTHONPATH": str(ROOT)}
        ended = run([sys.executable, "-m", "mlflow", *command], cwd=tmp_path, values=values)
        assert ended.returncode == 0, ended.stderr

    use_mlflow("artifacts", "download", "-u", f"models:/{name}@champion", "-d", tmp_path / "champion")
    example = tmp_path / "champion" / "serving_input_example.json"
    command = ["models", "predict", "-m", f"models:/{name}@champion", "-t", "json", "--env-manager", "local"]
    use_mlflow(*command, "-i", example, "-o", tmp_path / "prediction.json")
    predicted = json.loads((tmp_path / "prediction.json").read_text())["predictions"]

    (downloaded,) = (tmp_path / "champion").rglob("bundle.yaml")
    image = np.array(json.loads(example.read_text())["inputs"], np.float32)
    assert image.ndim == 1 + spatial_dims
    expected = load_bundle(downloaded.parent).predict(image)
    assert np.array_equal(np.array(predicted["seg"]), expected["seg"])
    # as JSON has them: float32 in decimal digits
    assert np.allclose(np.array(predicted["dist"]), expected["dist"], rtol=1e-6)
