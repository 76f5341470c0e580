import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compiler import compile_pipeline
from tests.pipelines.graph import all_tasks, containers, dangling

ROOT = Path(__file__).resolve().parents[2]
TRAINED = ("check-settings", "prepare-data", "train", "evaluate", "export")
STEPS = (*TRAINED, "compare", "register", "register-2", "deploy", "finish")
NETWORK = {"exec-train", "exec-evaluate", "exec-compare"}  # the steps that run it


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return compile_pipeline("training", tmp_path_factory.mktemp("compiled") / "training.yaml")


@pytest.fixture(scope="module")
def documents(package) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline's specification, and what it asks of Kubernetes."""
    specification, platform = yaml.safe_load_all(package.read_text())
    return specification, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_the_walker_finds_references_that_do_not_resolve(documents):
    broken = yaml.safe_load(yaml.safe_dump(documents[0]))
    broken["components"]["comp-train"]["executorLabel"] = "exec-gone"
    broken["components"]["comp-exit-handler-1"]["dag"]["tasks"]["export"]["dependentTasks"].append("gone")
    del broken["components"]["comp-evaluate"]
    assert len(list(dangling(broken))) >= 4  # the three, and the executors that nothing uses any more


def test_the_steps_that_run_the_network_have_shared_memory_for_the_data_loader(documents):
    mounts = {step: executor.get("emptyDirMounts", []) for step, executor in documents[1].items()}
    with_mount = {step for step, found in mounts.items() if [m["mountPath"] for m in found] == ["/dev/shm"]}
    assert with_mount == NETWORK


def test_only_steps_whose_inputs_decide_their_outputs_are_cached(documents):
    """A manifest changes behind its address, and so do the registry and its champion."""
    cached = {name for name, task in _named_tasks(documents[0]).items() if task["cachingOptions"].get("enableCache")}
    assert cached == {"train", "evaluate", "export"}


def test_every_step_but_the_deployment_may_be_tried_again(documents):
    """A deployment that failed has brought the former model back, and would fail again."""
    tasks = _named_tasks(documents[0])
    assert {name: task.get("retryPolicy", {}).get("maxRetryCount", 0) for name, task in tasks.items()} == {
        "check-settings": 2,
        "prepare-data": 2,
        "train": 2,
        "evaluate": 1,
        "export": 1,
        "compare": 1,
        "register": 2,
        "register-2": 2,
        "deploy": 0,
        "finish": 2,
    }


def test_the_better_model_becomes_the_champion_and_is_deployed_and_another_one_the_challenger(documents):
    """Without a model's name nothing is compared, without a target nothing deployed."""
    triggers = {
        _step(documents[0], name): task["triggerPolicy"]["condition"]
        for name, task in all_tasks(documents[0])
        if "condition" in task.get("triggerPolicy", {})
    }
    better = "inputs.parameter_values['pipelinechannel--compare-Output'] == true"
    named = "inputs.parameter_values['pipelinechannel--model_name'] != ''"
    wanted = "inputs.parameter_values['pipelinechannel--deploy_target'] != ''"
    start = "inputs.parameter_values['pipelinechannel--start_model'] != ''"
    assert triggers == {
        "importer": start,
        "compare": named,
        "register": better,
        "register-2": f"!({better})",
        "deploy": wanted,
    }
    tasks = _named_tasks(documents[0])
    promoted = {name: tasks[name]["inputs"]["parameters"]["champion"] for name in ("register", "register-2")}
    assert [each["runtimeValue"]["constant"] for each in promoted.values()] == [True, False]


def test_every_parameter_is_documented_and_all_but_the_manifest_have_defaults(documents):
    parameters = documents[0]["root"]["inputDefinitions"]["parameters"]
    assert [name for name, parameter in parameters.items() if not parameter.get("description")] == []
    assert [name for name, parameter in parameters.items() if not parameter.get("isOptional")] == ["manifest"]


def test_the_last_step_runs_whatever_happened_and_is_told_what_did(documents):
    last = documents[0]["root"]["dag"]["tasks"]["finish"]
    assert last["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert last["inputs"]["parameters"]["status"] == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}
    assert set(documents[0]["root"]["dag"]["tasks"]) == {"exit-handler-1", "finish"}


def test_artifacts_have_the_types_that_the_server_draws(documents):
    found = {
        name: {key: value["artifactType"]["schemaTitle"] for key, value in outputs["artifacts"].items()}
        for name, component in documents[0]["components"].items()
        if "executorLabel" in component and (outputs := component.get("outputDefinitions", {})).get("artifacts")
    }
    assert found == {
        "comp-prepare-data": {"dataset": "system.Dataset"},
        "comp-train": {"model": "system.Model", "metrics": "system.Metrics"},
        "comp-finish": {"outcome": "system.HTML"},
        "comp-evaluate": {
            "report": "system.HTML",
            "metrics": "system.Metrics",
            "images": "system.Dataset",
            "confusion": "system.ClassificationMetrics",
        },
        "comp-export": {"bundle": "system.Model"},
        "comp-compare": {"comparison": "system.HTML"},
        "comp-importer": {"artifact": "system.Model"},
    }


def test_image_and_gpus_are_chosen_when_compiling(tmp_path):
    output = tmp_path / "gpu.yaml"
    target = ["--image", "registry.example/cyto-dl:1.2", "--gpus", "2"]
    command = [sys.executable, "-m", "pipelines", "compile", "training", "--output", str(output), *target]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=os.environ)
    specification, platform = yaml.safe_load_all(output.read_text())
    found = containers(specification)
    assert {container["image"] for container in found.values()} == {"registry.example/cyto-dl:1.2"}
    gpus = {
        step: container["resources"]["accelerator"]
        for step, container in found.items()
        if "accelerator" in container["resources"]
    }
    assert set(gpus) == NETWORK
    assert {(each["resourceType"], each["resourceCount"]) for each in gpus.values()} == {("nvidia.com/gpu", "2")}
    assert platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]["tolerations"]


@pytest.mark.parametrize(
    "target",
    [
        ["--image", "registry.example:5000/cyto-dl"],
        ["--image", "registry.example/cyto-dl:latest"],
        ["--gpus", "-1"],
    ],
)
def test_an_image_that_changes_and_gpus_that_are_none_are_refused(tmp_path, target):
    output = tmp_path / "training.yaml"
    command = [sys.executable, "-m", "pipelines", "compile", "training", "--output", str(output), *target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 2
    assert "ConfigError: " in done.stderr and target[1] in done.stderr
    assert not output.exists()


def _named_tasks(specification: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The steps' tasks by the names of their components."""
    found = {task["componentRef"]["name"].removeprefix("comp-"): task for _, task in all_tasks(specification)}
    return {step: found[step] for step in STEPS}


def _step(specification: dict[str, Any], condition: str) -> str:
    """The one step directly inside a condition."""
    tasks = specification["components"][f"comp-{condition}"]["dag"]["tasks"].values()
    (step,) = {task["componentRef"]["name"].removeprefix("comp-") for task in tasks} & {*STEPS, "importer"}
    return step
