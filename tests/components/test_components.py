import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

import cyto_dl
from components.compare import compare
from components.evaluate import evaluate
from components.export import export
from components.image import DEFAULT_IMAGE
from components.prepare_data import prepare_data
from components.register import register
from components.train import train
from cyto_dl.steps import Measured

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted({path.stem for path in (ROOT / "components").glob("*.py")} - {"__init__", "image"})
COMPONENTS = {name: getattr(importlib.import_module(f"components.{name}"), name) for name in NAMES}
HEAVY = ("torch", "monai", "lightning", "mlflow", "skimage")


@pytest.fixture
def artifact(tmp_path):
    """Makes an artifact as KFP's launcher hands it to a step."""

    def make(kind: type[dsl.Artifact], name: str) -> Any:
        return kind(name=name, uri=str(tmp_path / name), metadata={})

    return make


@pytest.fixture
def step(monkeypatch):
    """Replaces the function that a step calls by one that records its call."""

    def replace(name: str, answer: Any, *, module: str = "cyto_dl.steps") -> dict[str, Any]:
        call: dict[str, Any] = {}
        signature = inspect.signature(getattr(importlib.import_module(module), name))

        def record(*args: Any, **kwargs: Any) -> Any:
            call.update(signature.bind(*args, **kwargs).arguments)
            return answer

        monkeypatch.setattr(f"{module}.{name}", record)
        return call

    return replace


# these two speak to the cluster
@pytest.mark.parametrize("name", [name for name in COMPONENTS if name not in ("check_settings", "deploy")])
def test_a_body_is_one_import_and_one_call(name):
    function = ast.parse(textwrap.dedent(inspect.getsource(COMPONENTS[name].python_func))).body[0]
    imports = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [len(node.names) for node in imports] == [1]
    assert re.fullmatch(r"cyto_dl\.steps|components\.cluster\.nodes", imports[0].module)
    called = [node.func.id for node in ast.walk(function) if isinstance(node, ast.Call) and hasattr(node.func, "id")]
    assert [call for call in called if call != "component"] == [imports[0].names[0].name]


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_input_and_output_is_described(name):
    specification = COMPONENTS[name].component_spec
    assert specification.description
    for description in [*specification.inputs.values(), *(specification.outputs or {}).values()]:
        assert description.description


def test_components_and_pipelines_import_nothing_but_kfp_and_the_standard_library():
    code = (
        "import sys, pkgutil, importlib, components, pipelines.training, pipelines.batch_prediction\n"
        "names = [module.name for module in pkgutil.iter_modules(components.__path__)]\n"
        "for name in names: importlib.import_module('components.' + name)\n"
        f"print([name for name in {(*HEAVY, 'cyto_dl')} if name in sys.modules])\n"
    )
    assert _printed(code) == "[]"


def test_the_command_imports_nothing_that_computes():
    code = (
        "import sys, pkgutil, importlib, pipelines\n"
        "names = {module.name for module in pkgutil.iter_modules(pipelines.__path__)} - {'__main__'}\n"
        "for name in names: importlib.import_module('pipelines.' + name)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
    )
    assert _printed(code) == "[]"


@pytest.mark.parametrize("path", sorted([*ROOT.glob("components/*.py"), *ROOT.glob("pipelines/*.py")]), ids=str)
def test_annotations_stay_objects_for_kfp_to_read(path):
    futures = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
    assert "__future__" not in [node.module for node in futures]


def test_the_default_image_is_the_one_of_this_version():
    assert DEFAULT_IMAGE.rpartition(":")[2] == cyto_dl.__version__


def test_prepare_data_passes_every_argument_on(step, artifact):
    call = step("prepare_step", {"num_images": 3})
    arguments = {
        "manifest": "m.csv",
        "source_col": "raw",
        "target_cols": ["nuclei"],
        "spatial_dims": 3,
        "num_channels": 0,
        "source_channel": [2],
        "target_channel": [],
        "split_column": "split",
        "group_column": "donor",
        "stratify_column": "treatment",
        "fractions": [0.8, 0.1, 0.1],
        "seed": 7,
        "evaluation_split": "valid",
    }
    dataset = artifact(dsl.Dataset, "dataset")
    prepare_data.python_func(**arguments, dataset=dataset)
    assert call == {**arguments, "dataset_dir": dataset.path}


def test_train_logs_what_the_training_returns(step, artifact):
    values = {"valid/seg/dice": 0.9, "train/loss": 0.1}
    call = step("train_anywhere", values, module="components.cluster.nodes")
    dataset, model = artifact(dsl.Dataset, "dataset"), artifact(dsl.Model, "model")
    metrics = artifact(dsl.Metrics, "metrics")
    settings = {
        "experiment": "im2im/segmentation",
        "overrides": ["trainer=gpu"],
        "source_col": "raw",
        "target_cols": ["nuclei"],
        "spatial_dims": 2,
        "num_channels": 1,
        "source_channel": [],
        "target_channel": [1],
        "start_model": "s3://models/nuclei",
        "checkpoint_folder": "s3://runs",
        "num_nodes": 2,
        "gpus_per_node": 4,
    }
    train.python_func(dataset=dataset, model=model, metrics=metrics, **settings)
    assert metrics.metadata == values
    paths = {"dataset_dir": dataset.path, "model_dir": model.path, "metrics_path": metrics.path}
    described = call.pop("described")
    assert call | described == settings | paths


@pytest.mark.parametrize("has_categories", [True, False])
def test_evaluate_logs_what_the_evaluation_returns(step, artifact, has_categories):
    matrix = (["seg: outside", "seg: inside"], [[90, 4], [1, 5]]) if has_categories else None
    call = step("evaluate_step", Measured({"test/seg/dice": 0.9}, matrix))
    dataset, model = artifact(dsl.Dataset, "dataset"), artifact(dsl.Model, "model")
    report, metrics = artifact(dsl.HTML, "report"), artifact(dsl.Metrics, "metrics")
    images, confusion = artifact(dsl.Dataset, "images"), artifact(dsl.ClassificationMetrics, "confusion")
    outputs = {"report": report, "metrics": metrics, "images": images, "confusion": confusion}
    evaluate.python_func(dataset=dataset, model=model, split="test", **outputs)
    assert metrics.metadata == {"test/seg/dice": 0.9}
    assert confusion.metadata == (
        {
            "confusionMatrix": {
                "annotationSpecs": [{"displayName": "seg: outside"}, {"displayName": "seg: inside"}],
                "rows": [{"row": [90, 4]}, {"row": [1, 5]}],
            }
        }
        if has_categories
        else {}
    )
    assert call == {
        "dataset_dir": dataset.path,
        "model_dir": model.path,
        "split": "test",
        "report_path": report.path,
        "metrics_path": metrics.path,
        "images_path": images.path,
        "confusion_path": confusion.path,
    }


@pytest.mark.parametrize("answer", [True, False])
def test_compare_returns_the_answer_under_the_name_that_conditions_read(step, artifact, answer):
    """A condition on any other output would be skipped without a word."""
    call = step("compare_step", answer)
    dataset, model = artifact(dsl.Dataset, "dataset"), artifact(dsl.Model, "model")
    images = artifact(dsl.Dataset, "images")
    settings = {"model_name": "nuclei", "metric": "test/seg/dice", "split": "test", "minimal_gain": 0.01}
    settings["frozen_manifest"] = "s3://images/frozen.csv"
    page = artifact(dsl.HTML, "comparison")
    assert compare.python_func(dataset=dataset, model=model, images=images, comparison=page, **settings) is answer
    paths = {"dataset_dir": dataset.path, "model_dir": model.path, "images_path": images.path}
    assert call == {**settings, **paths, "report_path": page.path}
    outputs = {name: output.type for name, output in compare.component_spec.outputs.items()}
    assert outputs == {"Output": "Boolean", "comparison": "system.HTML@0.0.1"}


def test_register_returns_the_version(step, artifact):
    call = step("register_step", "models:/nuclei/3")
    bundle = artifact(dsl.Model, "bundle")
    assert register.python_func(bundle=bundle, model_name="nuclei", champion=True) == "models:/nuclei/3"
    assert call == {"bundle_dir": bundle.path, "model_name": "nuclei", "champion": True}


def test_export_says_what_the_bundle_is(step, artifact):
    step("export_step", {"framework": "cyto-dl bundle"})
    bundle = artifact(dsl.Model, "bundle")
    inputs = {"dataset": dsl.Dataset, "model": dsl.Model, "metrics": dsl.Metrics}
    export.python_func(**{name: artifact(kind, name) for name, kind in inputs.items()}, bundle=bundle)
    assert json.loads(json.dumps(bundle.metadata)) == {"framework": "cyto-dl bundle"}


def _printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
