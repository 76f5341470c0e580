import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from cyto_dl.bundle import export_bundle
from pipelines.batch_prediction import MAX_AT_ONCE
from pipelines.catalogue import load_pipeline
from pipelines.compiler import compile_pipeline
from pipelines.local import run_locally
from tests.bundle.tiny import checkpoint_of, experiment, write_images
from tests.pipelines.graph import steps


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> Any:
    package = compile_pipeline("batch_prediction", tmp_path_factory.mktemp("compiled") / "batch_prediction.yaml")
    return list(yaml.safe_load_all(package.read_text()))


@pytest.fixture
def arguments(tmp_path):
    """A bundle, and a manifest of two images and one that does not exist."""
    config = experiment(write_images(tmp_path))
    checkpoint_of(config, tmp_path / "run/checkpoints/best.ckpt")
    bundle = export_bundle(tmp_path / "run", tmp_path / "bundle", metrics={})
    paths = [tmp_path / name for name in ("raw_0.ome.tif", "missing.tif", "raw_1.ome.tif")]
    pd.DataFrame({"image": paths}).to_csv(tmp_path / "images.csv", index=False)
    where = {"manifest": tmp_path / "images.csv", "bundle": bundle, "output": tmp_path / "out"}
    return {name: str(path) for name, path in where.items()} | {"column": "image", "num_shards": 2}


def test_a_second_run_does_only_what_is_not_done(arguments, tmp_path, capsys):
    pipeline, before_print = load_pipeline("batch_prediction"), print
    first = run_locally(pipeline, arguments, workspace=tmp_path / "runs")
    told = capsys.readouterr().out
    assert print is before_print
    assert (first.exit_code, first.metrics) == (0, {"images": 3, "predicted": 2, "kept": 0, "failed": 1})
    assert set(first.steps) == {"plan-shards", "predict", "predict-2", "collect"}
    assert "executor_input" not in told and "metadata=" not in told and " of " not in told.split("\n")[0]
    before = pd.read_csv(tmp_path / "out/predictions.csv")
    assert list(before["status"]) == ["ok", "failed", "ok"]
    assert all(Path(path).is_file() for path in before["seg"].dropna())
    assert Path(first.places["predictions"]).read_text() == (tmp_path / "out/predictions.csv").read_text()

    second = run_locally(pipeline, arguments, workspace=tmp_path / "runs")
    assert second.metrics == {"images": 3, "predicted": 0, "kept": 2, "failed": 1}
    assert json.loads((second.folder / "summary.json").read_text())["status"] == "succeeded"


def test_nothing_is_taken_from_the_cache(documents):
    """What lies at an address changes, and an output folder may be emptied."""
    tasks = steps(documents[0])
    assert set(tasks) == {"plan-shards", "predict", "collect"}
    assert not [name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")]


def test_shards_are_predicted_at_once_up_to_a_limit(documents):
    loop = documents[0]["root"]["dag"]["tasks"]["for-loop-1"]
    assert loop["iteratorPolicy"]["parallelismLimit"] == MAX_AT_ONCE


def test_only_the_step_that_runs_the_network_is_large(documents):
    executors = documents[0]["deploymentSpec"]["executors"]
    memory = {name: executor["container"]["resources"]["resourceMemoryLimit"] for name, executor in executors.items()}
    assert memory == {"exec-plan-shards": "8Gi", "exec-predict": "32Gi", "exec-collect": "8Gi"}


def test_manifest_bundle_and_output_are_required(documents):
    parameters = documents[0]["root"]["inputDefinitions"]["parameters"]
    required = [name for name, parameter in parameters.items() if not parameter.get("isOptional")]
    assert sorted(required) == ["bundle", "manifest", "output"]
