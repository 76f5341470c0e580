"""What the components of batch_prediction pass to their steps, and log."""

from typing import Any

import pytest
from kfp import dsl

from components.collect import collect
from components.plan_shards import plan_shards
from components.predict import predict


@pytest.fixture
def artifact(tmp_path):
    """Makes an artifact as KFP's launcher hands it to a step."""

    def make(kind: type[dsl.Artifact], name: str) -> Any:
        return kind(name=name, uri=str(tmp_path / name), metadata={})

    return make


def test_the_names_of_the_shards_are_the_output_that_a_loop_can_go_through(artifact, monkeypatch):
    """KFP's local runner finds no output of another name."""
    arguments = {"manifest": "m.csv", "bundle": "b", "output": "o", "column": "raw", "num_shards": 3}
    plan, call = artifact(dsl.Dataset, "plan"), {}
    monkeypatch.setattr(
        "cyto_dl.steps.plan_step",
        lambda *given, **named: call.update(given=given, **named) or ["shard-0000.csv"],
    )
    assert plan_shards.python_func(**arguments, plan=plan) == ["shard-0000.csv"]
    assert call == {"given": ("m.csv", "b", "o"), "column": "raw", "num_shards": 3, "plan_dir": plan.path}
    assert plan_shards.component_spec.outputs["Output"].type == "List[String]"


def test_predict_passes_every_argument_on(artifact, monkeypatch):
    call: dict[str, Any] = {}
    monkeypatch.setattr("cyto_dl.steps.predict_step", lambda *given, **named: call.update(given=given, **named))
    plan, table = artifact(dsl.Dataset, "plan"), artifact(dsl.Dataset, "table")
    predict.python_func(plan=plan, shard="s.csv", bundle="b", output="o", engine="torch", table=table)
    assert call == {"given": (plan.path, "s.csv", "b", "o"), "engine": "torch", "table_path": table.path}


def test_collect_logs_the_counts(artifact, monkeypatch):
    call: dict[str, Any] = {}
    counts = {"images": 3, "predicted": 2, "kept": 0, "failed": 1}
    monkeypatch.setattr(
        "cyto_dl.steps.collect_step",
        lambda *given, **named: call.update(given=given, **named) or counts,
    )
    tables = [artifact(dsl.Dataset, name) for name in ("a", "b")]
    predictions, metrics = artifact(dsl.Dataset, "predictions"), artifact(dsl.Metrics, "metrics")
    collect.python_func(tables=tables, output="o", predictions=predictions, metrics=metrics)
    assert metrics.metadata == counts
    assert call["given"] == ([table.path for table in tables], "o")
    assert (call["table_path"], call["metrics_path"]) == (predictions.path, metrics.path)
