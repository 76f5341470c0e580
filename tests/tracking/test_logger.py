"""MLflow receives everything of a run, and one run stays one run."""

import hashlib
import json
import math
import os
import socket
import threading
import time
from pathlib import Path

import mlflow
import pytest
from lightning.pytorch.utilities import rank_zero_only
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, TEMPORARILY_UNAVAILABLE
from mlflow.tracking import MlflowClient

from cyto_dl.bundle.provenance import git_commit
from cyto_dl.errors import StorageError
from cyto_dl.tracking import MLflowLogger, log_evaluation
from cyto_dl.tracking.server import call_patiently


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory):
    """An sqlite store; MLflow makes its tables on first use, which takes seconds: once for all tests here."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def client(tracking_uri):
    return MlflowClient(tracking_uri)


@pytest.fixture
def output_dir(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("best", "last"):
        (tmp_path / "checkpoints" / f"{name}.ckpt").write_bytes(b"weights")
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    return tmp_path


def open_logger(output_dir, tracking_uri):
    return MLflowLogger(
        output_dir=output_dir, experiment_name="nuclei", run_name="one", tracking_uri=tracking_uri, tags=["a", "b"]
    )


def artifacts(client, run_id, folder=None):
    found = client.list_artifacts(run_id, folder)
    inside = [path for entry in found if entry.is_dir for path in artifacts(client, run_id, entry.path)]
    return {entry.path for entry in found if not entry.is_dir} | set(inside)


def test_a_run_has_parameters_metrics_configuration_previews_checkpoints_versions_and_commit(
    output_dir, tracking_uri, client
):
    logger = open_logger(output_dir, tracking_uri)
    logger.log_hyperparams({"model.optimizer.generator.lr": 0.1, "data.path": "images.csv"})
    logger.log_metrics({"valid/seg/dice": 0.9}, step=3)
    preview = output_dir / "cell_seg.png"
    preview.write_bytes(b"png")
    logger.log_previews([preview], epoch=3)
    logger.finalize("success")

    run = client.get_run(logger.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"model.optimizer.generator.lr": "0.1", "data.path": "images.csv"}
    assert run.data.metrics == {"valid/seg/dice": 0.9}
    assert run.data.tags["tags"] == "a, b"
    assert run.data.tags["git_commit"] == git_commit()
    assert artifacts(client, logger.run_id) == {
        "config.yaml",
        "requirements.txt",
        "previews/epoch_003/cell_seg.png",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    }


def test_the_address_that_the_process_uses_stays_as_it_was(output_dir, tracking_uri, monkeypatch):
    open_logger(output_dir, tracking_uri).finalize("success")
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert mlflow.get_tracking_uri() != tracking_uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///another.db")
    assert mlflow.get_tracking_uri() == "sqlite:///another.db"


def test_a_resumed_training_continues_its_run_and_may_change_parameters(output_dir, tracking_uri, client):
    first = open_logger(output_dir, tracking_uri)
    first.log_hyperparams({"trainer.max_epochs": 3})
    first.finalize("failed")
    second = open_logger(output_dir, tracking_uri)
    second.log_hyperparams({"trainer.max_epochs": 5, "trainer.devices": 1})

    assert second.run_id == first.run_id
    run = client.get_run(second.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"trainer.max_epochs": "3", "trainer.devices": "1"}


def test_a_run_says_on_which_data_it_is_trained_and_in_which_image(output_dir, tracking_uri, client, monkeypatch):
    monkeypatch.setenv("CYTO_DL_IMAGE", "registry.example.org/cyto-dl@sha256:0123")
    manifest = output_dir / "nuclei.csv"
    manifest.write_text("raw,seg,split\n")
    measured = {"num_images": 3, "splits": {"train": 2, "valid": 1}}
    (output_dir / "fingerprint.json").write_text(json.dumps(measured))
    for _ in range(2):  # a resumed training uses no further data
        logger = open_logger(output_dir, tracking_uri)
        logger.log_hyperparams({"data.path": str(manifest)})

    run = client.get_run(logger.run_id)
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert run.data.tags["image"] == "registry.example.org/cyto-dl@sha256:0123"
    assert run.data.tags["manifest_sha256"] == digest
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("nuclei", digest[:36])
    assert json.loads(used.dataset.source) == {"uri": str(manifest)}
    assert json.loads(used.dataset.profile) == measured
    assert "data/fingerprint.json" in artifacts(client, logger.run_id)


def test_a_data_set_that_two_trainings_log_at_once_belongs_to_both(output_dir, tracking_uri, client, monkeypatch):
    (output_dir / "manifest.csv").write_text("raw,seg,split\n")
    logger, send, others = open_logger(output_dir, tracking_uri), MlflowClient.log_inputs, []

    def lose_the_race(self, run_id, datasets):
        """What SQLAlchemy says when another process has made the row since it was looked for."""
        if not others:
            others.append(run_id)
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.name, datasets.digest")
        send(self, run_id, datasets)

    monkeypatch.setattr(MlflowClient, "log_inputs", lose_the_race)
    logger.log_hyperparams({"data.path": str(output_dir / "manifest.csv")})
    logger.finalize("success")
    assert len(client.get_run(logger.run_id).inputs.dataset_inputs) == 1


def test_images_in_memory_are_no_data_set_of_a_run(output_dir, tracking_uri, client):
    logger = open_logger(output_dir, tracking_uri)
    logger.log_hyperparams({"data.path": "in memory: 4 train"})
    assert not client.get_run(logger.run_id).inputs.dataset_inputs


def test_checkpoints_are_uploaded_while_the_training_goes_on_and_the_newest_at_its_end(
    output_dir, tracking_uri, client, tmp_path_factory
):
    logger = open_logger(output_dir, tracking_uri)
    last = output_dir / "checkpoints" / "last.ckpt"

    def stored():
        folder = tmp_path_factory.mktemp("stored")
        return Path(client.download_artifacts(logger.run_id, "checkpoints/last.ckpt", str(folder))).read_bytes()

    logger.after_save_checkpoint(None)
    while not logger._checkpoints.is_sent(last):
        time.sleep(0.01)
    assert stored() == b"weights"
    last.unlink()
    last.write_bytes(b"newer weights")
    logger.finalize("success")
    assert stored() == b"newer weights"
    assert {path for path in artifacts(client, logger.run_id) if path.startswith("checkpoints/")} == {
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    }


def test_how_busy_the_machine_is_belongs_to_a_run_also_when_the_server_was_away(
    output_dir, tracking_uri, client, monkeypatch
):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    logger = open_logger(output_dir, tracking_uri)
    send, away = logger._outbox._send, threading.Event()

    def send_but_be_away_once(message):
        if "system/cpu_utilization_percentage" in message.get("metrics", {}) and not away.is_set():
            away.set()
            raise ConnectionError("nobody answers")
        send(message)

    logger._outbox._send = send_but_be_away_once
    logger.log_metrics({"valid/loss": 0.5}, step=1)
    assert away.wait(60)  # seconds; a busy machine starts a thread late
    logger.finalize("success")
    history = client.get_metric_history(logger.run_id, "system/cpu_utilization_percentage")
    assert [each.step for each in history] == list(range(len(history)))
    assert history


def test_an_injected_run_is_used_and_left_open_for_its_owner(output_dir, tracking_uri, client, monkeypatch):
    owned = client.create_run(client.create_experiment(f"owned {output_dir.name}")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", owned)
    logger = open_logger(output_dir, tracking_uri)
    logger.log_metrics({"valid/loss": 0.5}, step=1)
    logger.finalize("success")

    assert logger.run_id == owned
    assert client.get_run(owned).info.status == "RUNNING"
    assert client.get_run(owned).data.metrics == {"valid/loss": 0.5}


def test_an_evaluation_is_added_to_the_run_of_the_training(output_dir, tracking_uri, client):
    logger = open_logger(output_dir, tracking_uri)
    report = output_dir / "report.html"
    report.write_text("<html>")
    log_evaluation(output_dir, {"test/seg/dice": 0.8}, [report])

    assert client.get_run(logger.run_id).data.metrics["test/seg/dice"] == 0.8
    assert "evaluation/report.html" in artifacts(client, logger.run_id)


def test_what_an_earlier_process_could_not_send_is_sent_once(output_dir, tracking_uri, client):
    """Some of it may have arrived before that process was killed."""
    first = open_logger(output_dir, tracking_uri)
    arrived = {"metrics": {"valid/loss": 0.5, "valid/nothing": math.nan}, "step": 1, "timestamp_ms": 1_000}
    first._send(arrived)
    preview = output_dir / "cell_seg.png"
    preview.write_bytes(b"png")
    kept = [arrived, {"metrics": {"valid/loss": 0.4}, "step": 2, "timestamp_ms": 2_000}]
    kept.append({"file": preview.name, "folder": "previews/epoch_002"})
    (output_dir / "mlflow_unsent.jsonl").write_text("".join(json.dumps(message) + "\n" for message in kept))

    second = open_logger(output_dir, tracking_uri)
    second.finalize("success")
    history = client.get_metric_history(second.run_id, "valid/loss")
    assert [(each.step, each.timestamp, each.value) for each in history] == [(1, 1_000, 0.5), (2, 2_000, 0.4)]
    assert len(client.get_metric_history(second.run_id, "valid/nothing")) == 1
    assert "previews/epoch_002/cell_seg.png" in artifacts(client, second.run_id)
    assert client.get_run(second.run_id).info.status == "FINISHED"
    assert not (output_dir / "mlflow_unsent.jsonl").exists()


def test_what_mlflow_refuses_is_an_error_at_once_and_is_not_kept(output_dir, tracking_uri, client):
    logger = open_logger(output_dir, tracking_uri)
    client.delete_run(logger.run_id)
    with pytest.raises(StorageError, match=r"MLflow at .* cannot be used"):
        logger.log_metrics({"valid/loss": 0.5}, step=1)
    assert not (output_dir / "mlflow_unsent.jsonl").exists()


def test_a_call_is_made_again_while_the_server_is_away_but_not_when_it_refuses(caplog):
    answers = [MlflowException("no connection"), MlflowException("busy", error_code=TEMPORARILY_UNAVAILABLE)]

    def call():
        if answers:
            raise answers.pop(0)

    call_patiently(call, "http://mlflow")
    assert caplog.text.count("Trying again") == 2
    answers[:] = [MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST)]
    with pytest.raises(StorageError, match="no such run"):
        call_patiently(call, "http://mlflow")


def test_an_evaluation_without_a_tracked_training_is_not_logged(tmp_path):
    log_evaluation(tmp_path, {"test/seg/dice": 0.8}, [])
    assert not list(tmp_path.iterdir())


def test_a_server_that_does_not_answer_is_an_error_at_the_start(output_dir):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(StorageError, match=f"MLflow at http://127.0.0.1:{port} cannot be used"):
        open_logger(output_dir, f"http://127.0.0.1:{port}")
    assert not (output_dir / "mlflow.json").exists()


def test_the_run_file_names_the_store_and_the_run(output_dir, tracking_uri):
    logger = open_logger(output_dir, tracking_uri)
    assert json.loads((output_dir / "mlflow.json").read_text()) == {
        "tracking_uri": tracking_uri,
        "run_id": logger.run_id,
    }
    assert rank_zero_only.rank == 0
