"""The training pipeline as a user starts it on a laptop: every step a process of KFP's local runner."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient

from cyto_dl.bundle import load_bundle
from cyto_dl.bundle.checkpoint import find_checkpoint, read_checkpoint
from cyto_dl.data import read_image
from tests.integration.process import run

pytestmark = pytest.mark.integration
OVERRIDES = [
    "data.patch_shape=[32,32]",
    "data.patches_per_image=2",
    "data.batch_size=2",
    "model.backbone.filters=[4,4,8,8]",
    "trainer.max_epochs=1",
]
UNTRAINED = ["model.optimizer.generator.lr=1e-9"]
TRAINED = ["trainer.max_epochs=15"]  # bright blobs are found after some 60 steps


def run_training(manifest, workspace, *extra, overrides=()):
    return run_pipeline("training", manifest, workspace, f"overrides={json.dumps([*OVERRIDES, *overrides])}", *extra)


def run_pipeline(name, manifest, workspace, *extra):
    arguments = [f"manifest={manifest}", "source_col=raw", 'target_cols=["seg"]', *extra]
    command = [sys.executable, "-m", "pipelines", "run", name, *arguments, "--workspace", workspace]
    ended = run(command)
    return ended, json.loads((workspace / "latest" / "summary.json").read_text())


def test_a_run_leaves_a_bundle_that_predicts_a_report_and_its_metrics(manifest_folder, tmp_path):
    folder = manifest_folder()
    ended, summary = run_training(folder / "manifest.csv", tmp_path / "runs")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr

    assert summary["status"] == "succeeded"
    assert list(summary["steps"]) == ["check-settings", "prepare-data", "train", "evaluate", "export", "finish"]
    assert {"valid/seg/dice", "test/seg/dice"} <= set(summary["metrics"])
    assert Path(summary["report"]).read_text().startswith("<!doctype html>")
    (measured,) = pd.read_csv(Path(summary["dataset"]) / "manifest.csv").query("split == 'test'")["raw"]

    image = read_image(measured, spatial_dims=2)
    prediction = load_bundle(summary["bundle"]).predict(image)["seg"]
    assert (prediction.shape, prediction.dtype) == (image.array.shape, np.uint8)
    client = MlflowClient(summary["mlflow"]["tracking_uri"])
    tracked = client.get_run(summary["mlflow"]["run_id"]).data
    assert tracked.metrics["test/seg/dice"] == pytest.approx(summary["metrics"]["test/seg/dice"], rel=1e-6)
    assert tracked.tags["pipeline_state"] == "SUCCEEDED"
    assert summary["mlflow"]["run_id"] in Path(summary["outcome"]).read_text()

    ended, tuned = run_training(
        folder / "manifest.csv", tmp_path / "runs", f"start_model={summary['bundle']}", overrides=[*UNTRAINED, "seed=7"]
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"starting from the weights of {summary['bundle']}" in ended.stdout
    before, after = (read_checkpoint(find_checkpoint(each["model"]))["state_dict"] for each in (summary, tuned))
    learned = [name for name in before if name.startswith("network.") and "running" not in name and "num_" not in name]
    # a few steps at a rate of 1e-9 move a weight by some 1e-9; random weights of another start differ by 0.1
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in learned)


def test_a_wrong_manifest_ends_the_run_with_2_and_every_problem(manifest_folder, tmp_path):
    manifest = manifest_folder() / "manifest.csv"
    table = pd.read_csv(manifest)
    table.loc[0, "split"] = "Train"
    table.loc[1, "raw"] = "absent.tif"
    table.to_csv(manifest, index=False)
    ended, summary = run_training(manifest, tmp_path / "runs")

    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert (summary["status"], summary["failed_step"]) == ("failed", "prepare-data")
    assert "bundle" not in summary
    assert list(summary["steps"]) == ["check-settings", "prepare-data", "finish"]
    assert "Run failed" in Path(summary["outcome"]).read_text()
    for words in ("prepare-data failed: ManifestError", str(manifest), "'Train'", "absent.tif", "manifest.csv:3"):
        assert words in ended.stderr, words
    assert "Traceback" not in ended.stdout + ended.stderr


def champion_and_challenger(workspace):
    aliases = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}").get_registered_model("blobs").aliases
    return {alias: int(number) for alias, number in aliases.items()}


def test_a_better_model_is_promoted_and_a_worse_one_is_not(manifest_folder, tmp_path):
    manifest, workspace = manifest_folder(train=4, test=4) / "manifest.csv", tmp_path / "runs"
    register = ["model_name=blobs", "comparison_metric=test/seg/dice", "minimal_gain=0.01"]

    ended, summary = run_training(manifest, workspace, *register, overrides=UNTRAINED)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert list(summary["steps"])[5:] == ["compare", "register", "finish"]
    assert "blobs has no champion yet" in ended.stdout
    assert champion_and_challenger(workspace) == {"champion": 1, "challenger": 1}

    ended, summary = run_training(manifest, workspace, *register, overrides=TRAINED)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert champion_and_challenger(workspace) == {"champion": 2, "challenger": 2}, ended.stdout
    client = MlflowClient(summary["mlflow"]["tracking_uri"])
    tracked = client.get_run(summary["mlflow"]["run_id"])
    assert tracked.data.metrics["comparison/gain_low"] > 0.01
    version = client.get_model_version_by_alias("blobs", "champion")
    assert version.run_id == summary["mlflow"]["run_id"]
    assert float(version.tags["test/seg/dice"]) == pytest.approx(summary["metrics"]["test/seg/dice"], rel=1e-5)

    ended, summary = run_training(manifest, workspace, *register, overrides=UNTRAINED)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert list(summary["steps"])[5:] == ["compare", "register-2", "finish"]
    assert champion_and_challenger(workspace) == {"champion": 2, "challenger": 3}, ended.stdout


def test_a_sweep_exports_the_best_of_its_variants(manifest_folder, tmp_path):
    manifest, workspace = manifest_folder(train=4, valid=2, test=2) / "manifest.csv", tmp_path / "runs"
    variants = [[*OVERRIDES, *UNTRAINED], [*OVERRIDES, *TRAINED]]
    ended, summary = run_pipeline("sweep", manifest, workspace, f"variants={json.dumps(variants)}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert summary["status"] == "succeeded"

    table = pd.read_csv(summary["comparison"])
    assert [json.loads(overrides) for overrides in table["overrides"]] == variants
    assert list(table["chosen"]) == [False, True], table["valid/seg/dice"]
    assert summary["metrics"]["variant"] == 1
    assert {"valid/seg/dice", "test/seg/dice"} <= set(summary["metrics"])
    assert load_bundle(summary["bundle"]).outputs["seg"]["kind"] == "segmentation"
