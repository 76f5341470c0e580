"""The steps of the pipeline batch_prediction, on tiny bundles and images."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyto_dl.bundle import export_bundle
from cyto_dl.bundle.format import read_document, write_document
from cyto_dl.errors import ConfigError, ImageError
from cyto_dl.steps.predict import balanced_shards, collect_step, plan_step, predict_step
from tests.bundle.tiny import checkpoint_of, experiment, write_images

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=[2, 3], ids=["2d", "3d"])
def bundle(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = experiment(write_images(folder, request.param), request.param)
    checkpoint_of(config, folder / "run/checkpoints/best.ckpt")
    return export_bundle(folder / "run", folder / "bundle", metrics={})


@pytest.fixture
def manifest(bundle, tmp_path):
    """Three images of which one does not exist."""
    paths = [bundle.parent / "raw_0.ome.tif", tmp_path / "missing.tif", bundle.parent / "raw_1.ome.tif"]
    pd.DataFrame({"image": paths}).to_csv(tmp_path / "images.csv", index=False)
    return str(tmp_path / "images.csv")


def test_from_a_manifest_to_one_table_in_its_order(bundle, manifest, tmp_path):
    output, plan = str(tmp_path / "out"), str(tmp_path / "plan")
    shards = plan_step(manifest, str(bundle), output, column="image", num_shards=2, plan_dir=plan)
    tables = [str(tmp_path / f"table-{number}") for number in range(2)]
    counted = [
        predict_step(plan, shard, str(bundle), output, table_path=table)
        for shard, table in zip(shards, tables, strict=True)
    ]
    paths = {"table_path": str(tmp_path / "all.csv"), "metrics_path": str(tmp_path / "metrics.json")}
    counts = collect_step(tables[::-1], output, **paths)
    assert sum(each["predicted"] for each in counted) == 2
    assert counts == {"images": 3, "predicted": 2, "kept": 0, "failed": 1}
    assert json.loads((tmp_path / "metrics.json").read_text()) == counts
    table = pd.read_csv(tmp_path / "out/predictions.csv")
    assert table["path"].tolist() == pd.read_csv(manifest)["image"].tolist()
    assert list(table["status"]) == ["ok", "failed", "ok"]
    assert all(Path(table[head][row]).is_file() for head in ("seg", "dist") for row in (0, 2))
    assert (tmp_path / "all.csv").read_text() == (tmp_path / "out/predictions.csv").read_text()


def test_a_finished_shard_started_again_imports_no_torch(bundle, manifest, tmp_path):
    output, plan = str(tmp_path / "out"), str(tmp_path / "plan")
    pd.read_csv(manifest).drop(index=1).to_csv(manifest, index=False)
    (shard,) = plan_step(manifest, str(bundle), output, column="image", num_shards=1, plan_dir=plan)
    predict_step(plan, shard, str(bundle), output, table_path=str(tmp_path / "table"))
    code = (
        "import sys; from cyto_dl.steps.predict import plan_step, predict_step\n"
        f"plan_step({manifest!r}, {str(bundle)!r}, {output!r}, column='image', plan_dir={plan + '2'!r})\n"
        f"print(predict_step({plan!r}, {shard!r}, {str(bundle)!r}, {output!r}, table_path={str(tmp_path / 't')!r}))\n"
        "print([name for name in ('torch', 'monai', 'mlflow') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["{'predicted': 0, 'kept': 2, 'failed': 0}", "[]"]


def test_predictions_name_the_engine_that_auto_meant(bundle, manifest, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    document = read_document(copy)
    document["engines"]["measured"] = {"torch": {"speed": 1.0}, "onnxruntime": {"speed": 2.0}}
    write_document(copy, document)
    output, plan = str(tmp_path / "out"), str(tmp_path / "plan")
    (shard,) = plan_step(manifest, str(copy), output, column="image", num_shards=1, plan_dir=plan)
    counts = [
        predict_step(plan, shard, str(copy), output, engine=engine, table_path=str(tmp_path / "table"))
        for engine in ("auto", "onnxruntime", "torch")
    ]
    assert [each["kept"] for each in counts] == [0, 2, 0]  # torch's would have other bits


def test_a_run_without_a_single_prediction_fails_and_leaves_the_table(bundle, tmp_path):
    (tmp_path / "images.csv").write_text("image\nmissing.tif\n")
    output, plan = str(tmp_path / "out"), str(tmp_path / "plan")
    how = {"column": "image", "plan_dir": plan}
    (shard,) = plan_step(str(tmp_path / "images.csv"), str(bundle), output, **how)
    predict_step(plan, shard, str(bundle), output, table_path=str(tmp_path / "table"))
    paths = {"table_path": str(tmp_path / "all.csv"), "metrics_path": str(tmp_path / "metrics.json")}
    with pytest.raises(ImageError, match=r"none of the 1 images[^\n]*\n.*does not exist"):
        collect_step([str(tmp_path / "table")], output, **paths)
    assert list(pd.read_csv(tmp_path / "out/predictions.csv")["status"]) == ["failed"]


def test_no_shards_are_refused(bundle, manifest, tmp_path):
    with pytest.raises(ConfigError, match="num_shards is 0"):
        plan_step(manifest, str(bundle), str(tmp_path / "out"), column="image", num_shards=0, plan_dir="plan")


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.integers(1, 8))
def test_shards_hold_every_image_once_and_none_is_empty_or_much_larger_than_another(sizes, num_shards):
    shards = balanced_shards(sizes, num_shards)
    assert sorted(position for shard in shards for position in shard) == list(range(len(sizes)))
    assert len(shards) == min(num_shards, len(sizes)) and all(shards)
    weights = [sum(max(sizes[position], 1) for position in shard) for shard in shards]
    assert max(weights) - min(weights) <= max(max(sizes), 1)  # the last image dealt to a shard made the difference
