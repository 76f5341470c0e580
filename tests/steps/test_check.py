"""What would fail only after hours of training is refused at the run's beginning, all of it at once."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cyto_dl.config import compose_experiment, experiments
from cyto_dl.errors import ConfigError, StorageError
from cyto_dl.steps import check_step, check_sweep_step

ROOT = Path(__file__).parents[2]
ASKED = {
    "overrides": [],
    "source_col": "raw",
    "target_cols": ["nuclei"],
    "spatial_dims": 2,
    "evaluation_split": "test",
    "model_name": "",
    "comparison_metric": "",
    "comparison_manifest": "",
    "minimal_gain": 0.0,
    "deploy_target": "",
}


def check(experiment="im2im/segmentation", **changes):
    check_step(experiment, **{**ASKED, **changes})


@pytest.fixture
def registry(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture
def table(tmp_path):
    """Writes a table of images that need not be there; returns its address."""

    def write(**columns):
        path = tmp_path / "frozen.csv"
        pd.DataFrame(columns).to_csv(path, index=False)
        return str(path)

    return write


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("metric", ["", "test/seg/dice", "seg/dice", "test/seg/dice_1"])
def test_what_can_work_passes(registry, table, metric, spatial_dims):
    frozen = table(raw=["a.tif"], nuclei=["b.tif"], split=["test"])
    for name in ("a.tif", "b.tif"):
        Path(frozen).with_name(name).touch()
    asked = {"model_name": "nuclei", "comparison_metric": metric, "comparison_manifest": frozen}
    check(spatial_dims=spatial_dims, **asked, minimal_gain=0.01, deploy_target="imaging/nuclei")


UNDIRECTED = "+model.task_heads.seg.metrics={own: {_target_: torchmetrics.MeanMetric}}"


def test_a_metric_of_ones_own_decides_where_it_is_said_or_asked_which_way():
    check_sweep([UNDIRECTED], metric="valid/seg/own", mode="min")
    with pytest.raises(ConfigError, match="comparison_metric is 'test/seg/own'"):
        check(overrides=[UNDIRECTED], comparison_metric="test/seg/own")


@pytest.mark.parametrize("name", experiments())
def test_every_shipped_experiment_can_be_compared(name):
    dims = 3 if name.endswith("projection") else 2
    config = compose_experiment([f"experiment={name}", f"spatial_dims={dims}", "data.path=m.csv"], output_dir=".")
    head = next(iter(config["model"]["task_heads"]))
    targets = ["nuclei"] if "target_col" in config else []  # some name several themselves
    with pytest.raises(ConfigError, match=f"test/{head}/nothing'; choose one of test/{head}/"):
        check(name, spatial_dims=dims, target_cols=targets, comparison_metric=f"test/{head}/nothing")


def test_an_experiment_that_makes_its_own_targets_needs_no_column_for_them(table):
    frozen = table(raw=["a.tif"], split=["test"])
    Path(frozen).with_name("a.tif").touch()
    check("im2im/denoise_blind_spot", target_cols=[], comparison_manifest=frozen)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"comparison_metric": "valid/seg/dice"},
            "write test/<head>/<metric> with one of the experiment's heads (seg)",
        ),
        ({"comparison_metric": "test/nuclei/dice"}, "heads (seg), e.g. test/seg/dice, or leave it empty"),
        ({"comparison_metric": "dice"}, "comparison_metric is 'dice'"),
        ({"comparison_metric": "test/seg/dcie"}, "choose one of test/seg/dice, test/seg/iou, or leave it empty"),
        ({"comparison_metric": "test/seg"}, "choose one of test/seg/dice, test/seg/iou"),
        ({"comparison_metric": "test/seg/dice_pooled"}, "choose one of test/seg/dice, test/seg/iou"),
        ({"minimal_gain": float("nan")}, "minimal_gain is nan"),
        ({"deploy_target": "imaging/nuclei"}, "deploy_target needs a model_name"),
        ({"model_name": "lab/nuclei"}, "takes names without /, : and '"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(registry, changes, says):
    with pytest.raises(ConfigError) as error:
        check(**changes)
    assert says in str(error.value)
    assert "this run would fail later" in str(error.value)


def test_an_override_that_means_nothing_is_refused(registry):
    with pytest.raises(ConfigError, match="max_epoch"):
        check(overrides=["trainer.max_epoch=3"])


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"raw": ["a.tif"], "split": ["test"]}, "nuclei"),
        ({"raw": ["a.tif"], "nuclei": ["b.tif"], "split": ["valid"]}, "no image of the split 'test'"),
        ({"raw": ["gone.tif"], "nuclei": ["b.tif"], "split": ["test"]}, "gone.tif"),
    ],
)
def test_a_frozen_manifest_that_cannot_be_used_is_refused(table, columns, says):
    frozen = table(**columns)
    for name in ("a.tif", "b.tif"):
        Path(frozen).with_name(name).touch()
    with pytest.raises(ConfigError) as error:
        check(comparison_manifest=frozen)
    assert says in str(error.value)


def test_all_faults_are_told_at_once(registry, tmp_path):
    with pytest.raises(ConfigError) as error:
        check(comparison_metric="dice", comparison_manifest=str(tmp_path / "none.csv"), minimal_gain=float("inf"))
    assert str(error.value).count("\n  - ") == 3


def test_further_checks_are_told_beside_the_others():
    def refuse():
        raise ConfigError("canary_percent 200")

    with pytest.raises(ConfigError) as error:
        check(comparison_metric="dice", further=[refuse])
    assert str(error.value).count("\n  - ") == 2


def test_a_registry_that_nobody_has_named_is_refused():
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI is not set"):
        check(model_name="nuclei")


def test_a_registry_that_does_not_answer_may_answer_later(tmp_path, monkeypatch):
    """An error that a second attempt of the step may cure."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")
    with pytest.raises(StorageError, match="MLflow at sqlite"):
        check(model_name="nuclei")


def test_checking_needs_no_torch(tmp_path):
    code = (
        "import sys\nfrom tests.steps.test_check import check\n"
        "check(minimal_gain=0.1, model_name='nuclei')\nassert 'torch' not in sys.modules\n"
    )
    values = {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=values, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def check_sweep(*variants, metric="", mode="max"):
    described = {name: ASKED[name] for name in ("source_col", "target_cols", "spatial_dims")}
    check_sweep_step("im2im/segmentation", variants, metric=metric, mode=mode, **described)


def test_a_sweep_that_can_work_passes():
    check_sweep(["trainer.max_epochs=2"], ["data.batch_size=4"], metric="valid/seg/dice_pooled", mode="min")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"metric": "test/seg/dice"}, "metric is 'test/seg/dice'; write valid/<head>/<metric>"),
        ({"metric": "valid/seg/dcie"}, "choose one of valid/seg/dice, valid/seg/dice_pooled"),
        ({"mode": "best"}, "mode is 'best'"),
    ],
)
def test_a_sweep_that_cannot_choose_is_refused(given, says):
    with pytest.raises(ConfigError) as error:
        check_sweep([], **given)
    assert says in str(error.value)


def test_every_variant_that_is_no_experiment_is_named():
    with pytest.raises(ConfigError) as error:
        check_sweep(["trainer.max_epoch=2"], ["data.batch_size=4"], ["modell.x=1"])
    assert str(error.value).count("\n  - variant") == 2
    with pytest.raises(ConfigError, match="variants is empty"):
        check_sweep()
