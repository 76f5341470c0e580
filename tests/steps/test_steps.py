import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from mlflow.tracking import MlflowClient

from cyto_dl.config import compose_experiment
from cyto_dl.errors import ConfigError
from cyto_dl.steps import (
    compare_step,
    evaluate_step,
    export_step,
    prepare_step,
    register_step,
    train_step,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Calls train_step with a training that composes its experiment and stops; returns (config, metrics)."""

    def run(**changes):
        seen = {}

        def compose_only(experiment, overrides, *, manifest, output_dir):
            given = [f"experiment={experiment}", f"data.path='{manifest}'", *overrides]
            seen["config"] = compose_experiment(given, output_dir=output_dir)
            seen["cache_existed"] = Path(seen["config"]["paths"]["cache_dir"]).is_dir()
            return {"train/loss": 0.5, "valid/seg/dice": math.nan}

        monkeypatch.setattr("cyto_dl.train.train_experiment", compose_only)
        settings = {"source_col": "raw", "target_cols": ["nuclei"], "spatial_dims": 2, "num_channels": 1}
        settings |= {"overrides": [], **changes}
        paths = {"model_dir": str(tmp_path / "model"), "metrics_path": str(tmp_path / "metrics")}
        metrics = train_step(str(tmp_path / "dataset"), "im2im/segmentation", **settings, **paths)
        assert seen["cache_existed"] and not Path(seen["config"]["paths"]["cache_dir"]).exists()
        return seen["config"], metrics

    return run


def test_training_sees_the_prepared_manifest_and_the_pipelines_parameters(trained, tmp_path):
    config, _ = trained(source_col="it's a, [column]", target_cols=["cells"], spatial_dims=3, num_channels=2)
    assert config["data"]["path"] == str(tmp_path / "dataset" / "manifest.csv")
    assert config["paths"]["output_dir"] == str(tmp_path / "model")
    assert (config["source_col"], config["target_col"]) == ("it's a, [column]", "cells")
    assert (config["spatial_dims"], config["raw_im_channels"]) == (3, 2)


def test_training_reads_the_channels_that_were_prepared(trained):
    config, _ = trained(source_channel=[2.0, 0.0], target_channel=[1], num_channels=2)  # KFP's numbers may be floats
    source, target = config["data"]["transforms"]["load"][:2]
    assert (source["channels"], source["num_channels"], target["channels"]) == ([2, 0], 2, [1])


def test_overrides_win_over_the_pipelines_parameters(trained):
    config, _ = trained(num_channels=4, overrides=["raw_im_channels=1", "source_channel=2", "trainer.max_epochs=3"])
    assert (config["raw_im_channels"], config["source_channel"], config["trainer"]["max_epochs"]) == (1, 2, 3)


def test_zero_channels_and_several_targets_leave_what_the_experiment_says(trained):
    untouched = compose_experiment(["experiment=im2im/segmentation"], output_dir="anywhere")
    config, _ = trained(num_channels=0, target_cols=["a", "b"])
    assert config["raw_im_channels"] == untouched["raw_im_channels"]
    assert config["target_col"] == untouched["target_col"]


def test_a_step_only_trains_because_the_next_one_evaluates(trained):
    config, _ = trained()
    assert (config["train"], config["test"]) == (True, False)


@pytest.mark.parametrize("uri", [None, "http://mlflow:5000"])
def test_training_logs_to_mlflow_where_there_is_one(trained, monkeypatch, uri):
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    config, _ = trained()
    assert ("mlflow" in config["logger"]) == (uri is not None)


def test_metrics_are_returned_and_written_without_what_json_cannot_say(trained, tmp_path):
    _, metrics = trained()
    assert metrics == {"train/loss": 0.5}
    assert json.loads((tmp_path / "metrics").read_text()) == {"train/loss": 0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"fractions": [0.8, 0.2]}, "fractions has 2 values"), ({"fractions": []}, "fractions has 0 values")],
)
def test_preparing_refuses_parameters_that_cannot_work(tmp_path, changes, message):
    settings = {"source_col": "raw", "target_cols": ["seg"], "spatial_dims": 2, **changes}
    with pytest.raises(ConfigError, match=message):
        prepare_step("m.csv", str(tmp_path / "dataset"), **settings)
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_preparing_writes_the_manifest_and_the_fingerprint_without_torch(manifest_folder, tmp_path, spatial_dims):
    manifest = manifest_folder(spatial_dims) / "manifest.csv"
    code = (
        "import sys\nfrom cyto_dl.steps import prepare_step\n"
        f"prepare_step({str(manifest)!r}, 'dataset', source_col='raw', target_cols=['seg'],"
        f" spatial_dims={spatial_dims}.0, num_channels=1.0, fractions=[0.7, 0.15, 0.15], seed=0.0)\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert sorted(path.name for path in (tmp_path / "dataset").iterdir()) == ["fingerprint.json", "manifest.csv"]


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory):
    """An sqlite store; MLflow makes its tables on first use, which takes seconds: once for all tests here."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


def test_comparing_and_registering_ask_for_an_mlflow(tmp_path):
    settings = {"model_name": "nuclei", "metric": "", "split": "test", "minimal_gain": 0.0, "report_path": "page"}
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI is not set"):
        compare_step("dataset", "model", "images.csv", **settings)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI is not set"):
        register_step("bundle", "nuclei", champion=True)


def test_the_first_model_becomes_the_champion_without_torch(tmp_path, tracking_uri):
    (tmp_path / "images.csv").write_text("path,seg/dice,seconds\na.tif,0.5,1\n")
    code = (
        "import sys\nfrom cyto_dl.steps import compare_step\n"
        "settings = {'model_name': 'nobody', 'metric': '', 'split': 'test', 'minimal_gain': 0.0}\n"
        "settings['report_path'] = 'page.html'\n"
        "assert compare_step('dataset', 'model', 'images.csv', **settings) is True\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": tracking_uri}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_steps_hand_their_folders_on(manifest_folder, tmp_path, spatial_dims, tracking_uri, monkeypatch, caplog):
    caplog.set_level("INFO")
    dataset, model, bundle = (str(tmp_path / name) for name in ("dataset", "model", "bundle"))
    described = {"source_col": "raw", "target_cols": ["seg"], "spatial_dims": spatial_dims, "num_channels": 1}
    patch = {2: "[32,32]", 3: "[8,16,16]"}[spatial_dims]
    overrides = ["trainer=cpu", "trainer.max_epochs=1", f"data.patch_shape={patch}", "data.patches_per_image=1"]
    overrides += ["callbacks.previews=null", "model.backbone.filters=[4,8,8,8]", f"model.inference.roi_size={patch}"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    prepare_step(str(manifest_folder(spatial_dims, test=2) / "manifest.csv"), dataset, **described)
    train_step(
        dataset,
        "im2im/segmentation",
        overrides,
        model_dir=model,
        metrics_path=str(tmp_path / "train.json"),
        **described,
    )
    made = {f"{name}_path": str(tmp_path / name) for name in ("report", "metrics", "images", "confusion")}
    measured, confusion = evaluate_step(dataset, model, "test", **made)
    export_step(dataset, model, made["metrics_path"], bundle)
    document = yaml.safe_load((tmp_path / "bundle" / "bundle.yaml").read_text())
    assert {"test/seg/dice", "test/seg/otsu_dice"} <= set(measured)
    assert document["metrics"] == measured == json.loads(Path(made["metrics_path"]).read_text())
    assert document["fingerprint"] == json.loads((tmp_path / "dataset" / "fingerprint.json").read_text())
    report = (tmp_path / "report").read_text()
    assert "1 epoch, " in report and "over epochs, training" in report  # its learning curves
    assert "raw, trained on" in report and "raw, split test" in report  # the data's fingerprint beside what was seen
    assert confusion[0] == ["seg: outside", "seg: inside"]
    (_, false), (missed, true) = confusion[1]
    assert 2 * true / (2 * true + false + missed) == pytest.approx(measured["test/seg/dice_pooled"])

    page = tmp_path / "comparison"
    settings = {"model_name": f"steps {spatial_dims}", "metric": "", "split": "test", "minimal_gain": 0.0}
    settings["report_path"] = str(page)
    assert compare_step(dataset, model, made["images_path"], **settings)  # there is no champion yet
    assert "has no champion yet" in page.read_text()
    uri = register_step(bundle, settings["model_name"], champion=True)
    assert uri == f"models:/steps {spatial_dims}/1"
    assert not compare_step(dataset, model, made["images_path"], **settings)  # the champion against itself
    assert f"models:/steps {spatial_dims}/1" in page.read_text() and "The candidate is not better" in page.read_text()
    frozen = tmp_path / f"blobs_{spatial_dims}d" / "frozen.csv"
    table = pd.read_csv(frozen.with_name("manifest.csv"))
    table.assign(split="test").to_csv(frozen, index=False)
    assert not compare_step(dataset, model, made["images_path"], **settings, frozen_manifest=str(frozen))
    assert f"{len(table)} images" in caplog.text and str(frozen) in caplog.text
    Path(made["images_path"]).write_text("path\n")
    assert not compare_step(dataset, model, made["images_path"], **settings)  # nobody measured the candidate
    assert "has a target" in page.read_text()

    run = json.loads((Path(model) / "mlflow.json").read_text())
    client = MlflowClient(run["tracking_uri"])
    logged = {file.path for file in client.list_artifacts(run["run_id"], "evaluation")}
    pages = ("report.html", "comparison.html", "confusion.json", "images.csv", "intervals.json")
    assert logged == {f"evaluation/{name}" for name in pages}
    assert client.get_run(run["run_id"]).data.metrics["comparison/gain"] == 0


def test_a_run_keeps_its_checkpoints_under_its_own_name(trained, monkeypatch):
    monkeypatch.setenv("CYTO_DL_PIPELINE_RUN", "r1")
    config, _ = trained(checkpoint_folder="s3://runs/nuclei/", start_model="s3://models/it's mine", num_processes=2)
    assert config["callbacks"]["remote"]["address"] == "s3://runs/nuclei/r1/checkpoints"
    assert config["start_from"] == "s3://models/it's mine"
    assert (config["trainer"]["strategy"], config["trainer"]["devices"]) == ("ddp", 2)


@pytest.mark.parametrize(
    ("folder", "run", "says"),
    [("/data/runs", "r1", "'/data/runs': give an address s3://"), ("s3://runs", "", "CYTO_DL_PIPELINE_RUN does not")],
)
def test_a_place_for_checkpoints_that_is_none_is_refused(trained, monkeypatch, folder, run, says):
    monkeypatch.setenv("CYTO_DL_PIPELINE_RUN", run)
    with pytest.raises(ConfigError, match=says):
        trained(checkpoint_folder=folder)
