"""How a pipeline's run ended, on a page and in MLflow."""

import logging

import pytest
from mlflow.tracking import MlflowClient

from cyto_dl.bundle.provenance import PIPELINE_RUN
from cyto_dl.steps.finish import FAILURE, STATE_TAG, finish_step
from cyto_dl.tracking import server


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A training of the pipeline's run r1 in MLflow, and one of another run; returns the client and their ids."""
    tracking_uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.setenv(PIPELINE_RUN, "r1")
    client = MlflowClient(tracking_uri)
    ours, other = (
        client.create_run("0", tags={"pipeline_run": name, "git_commit": "abc"}).info.run_id for name in ("r1", "r2")
    )
    client.log_metric(ours, "test/seg/dice", 0.875)
    client.log_metric(ours, "system/cpu", 99)
    return client, ours, other


@pytest.mark.parametrize(("state", "message"), [("SUCCEEDED", ""), ("FAILED", "Task all-steps <failed>.")])
def test_the_trainings_of_the_run_say_how_it_ended(training, tmp_path, state, message):
    client, ours, other = training
    finish_step(state, message, page_path=str(tmp_path / "page"))
    assert client.get_run(ours).data.tags[STATE_TAG] == state
    assert STATE_TAG not in client.get_run(other).data.tags
    page = (tmp_path / "page").read_text()
    for words in ("r1", state.lower(), ours, "test/seg/dice", "0.875", "abc"):
        assert words in page, words
    assert other not in page and "system/cpu" not in page and "<failed>" not in page
    assert ("&lt;failed&gt;" in page) == (state == "FAILED")


def test_a_run_without_mlflow_has_its_page(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    finish_step("FAILED", "", page_path=str(tmp_path / "page"))
    assert "gives no reason" in (tmp_path / "page").read_text()


def test_what_the_orchestrator_knows_more_is_said_instead(tmp_path, monkeypatch):
    monkeypatch.setenv(FAILURE, "The step train failed: no such column\n  - raw")
    finish_step("FAILED", "Task exit-handler-1 failed.", page_path=str(tmp_path / "page"))
    page = (tmp_path / "page").read_text()
    assert "The step train failed: no such column\n  - raw" in page
    assert "exit-handler-1" not in page and "Retry" not in page


def test_no_database_is_made_to_ask_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv(PIPELINE_RUN, "r1")
    finish_step("FAILED", "wrong table", page_path=str(tmp_path / "page"))
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_an_mlflow_that_does_not_answer_is_named_on_the_page(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv(PIPELINE_RUN, "r1")
    monkeypatch.setattr(server, "PATIENCE_S", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING, logger="cyto_dl.steps.finish"):
        finish_step("SUCCEEDED", "", page_path=str(tmp_path / "page"))
    assert "127.0.0.1:9" in (tmp_path / "page").read_text()
    assert "do not say how the run ended" in caplog.text
