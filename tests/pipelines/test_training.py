import difflib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import components
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PlatformSpec

from pipelines.catalogue import PIPELINES
from pipelines.compiler import compile_pipeline

ROOT = Path(__file__).resolve().parents[2]
COMPILED = ROOT / "pipelines" / "compiled"
STEPS = ("prepare-data", "train", "evaluate", "export", "compare", "register", "register-2")
EXECUTORS = [f"exec-{step}" for step in STEPS]
NETWORK = {"exec-train", "exec-evaluate", "exec-compare"}  # the steps that run it


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return compile_pipeline("training", tmp_path_factory.mktemp("compiled") / "training.yaml")


@pytest.fixture(scope="module")
def documents(package) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline's specification, and what it asks of Kubernetes."""
    specification, platform = yaml.safe_load_all(package.read_text())
    return specification, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_the_committed_package_is_what_the_pipeline_compiles_to(package):
    committed, compiled = _normalized(COMPILED / "training.yaml"), _normalized(package)
    difference = "\n".join(difflib.unified_diff(committed, compiled, "committed", "compiled", lineterm="", n=1))
    assert not difference, f"write it anew: python -m pipelines compile --all --output pipelines/compiled\n{difference}"


def test_every_pipeline_has_a_committed_package_and_no_package_lacks_a_pipeline():
    assert sorted(path.stem for path in COMPILED.iterdir()) == sorted(PIPELINES)


def test_compiling_twice_gives_the_same_bytes(package, tmp_path):
    assert compile_pipeline("training", tmp_path / "again.yaml").read_bytes() == package.read_bytes()


def test_the_package_holds_what_the_api_server_reads(package, documents):
    specification, platform = yaml.safe_load_all(package.read_text())
    json_format.ParseDict(specification, PipelineSpec())
    json_format.ParseDict(platform, PlatformSpec())
    for executor in documents[1].values():
        json_format.ParseDict(executor, KubernetesExecutorConfig())
    assert components.load_component_from_file(str(package)).component_spec.name == "cyto-dl-training"


def test_every_reference_in_the_package_resolves(documents):
    specification, platform = documents
    assert list(_dangling(specification)) == []
    assert set(platform) <= set(specification["deploymentSpec"]["executors"])


def test_the_walker_finds_references_that_do_not_resolve(documents):
    broken = yaml.safe_load(yaml.safe_dump(documents[0]))
    broken["components"]["comp-train"]["executorLabel"] = "exec-gone"
    broken["root"]["dag"]["tasks"]["export"]["dependentTasks"].append("gone")
    del broken["components"]["comp-evaluate"]
    assert len(list(_dangling(broken))) >= 4  # the three, and the executors that nothing uses any more


def test_no_step_installs_anything_when_it_starts(documents):
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        assert "pip install" not in " ".join(executor["container"]["command"])


def test_every_step_runs_in_one_versioned_image(documents):
    (image,) = {executor["container"]["image"] for executor in documents[0]["deploymentSpec"]["executors"].values()}
    assert re.fullmatch(r".+:(?!latest$).+|.+@sha256:.+", image)


@pytest.mark.parametrize("step", EXECUTORS)
def test_every_step_says_what_processors_and_memory_it_needs(documents, step):
    resources = documents[0]["deploymentSpec"]["executors"][step]["container"]["resources"]
    for name in ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"):
        assert resources[name]
    assert "accelerator" not in resources  # GPUs are asked for when compiling


@pytest.mark.parametrize("step", EXECUTORS)
def test_every_step_gets_credentials_and_addresses_where_the_operator_made_them(documents, step):
    executor = documents[1][step]
    (secret,), (environment,) = executor["secretAsEnv"], executor["configMapAsEnv"]
    assert (secret["secretName"], secret["optional"]) == ("cyto-dl-s3", True)
    assert (environment["configMapName"], environment["optional"]) == ("cyto-dl-environment", True)
    assert "MLFLOW_TRACKING_URI" in [entry["envVar"] for entry in environment["keyToEnv"]]


def test_the_steps_that_run_the_network_have_shared_memory_for_the_data_loader(documents):
    mounts = {step: executor.get("emptyDirMounts", []) for step, executor in documents[1].items()}
    with_mount = {step for step, found in mounts.items() if [m["mountPath"] for m in found] == ["/dev/shm"]}
    assert with_mount == NETWORK


def test_only_steps_whose_inputs_decide_their_outputs_are_cached(documents):
    """A manifest changes behind its address, and so do the registry and its champion."""
    cached = {name for name, task in _named_tasks(documents[0]).items() if task["cachingOptions"].get("enableCache")}
    assert cached == {"train", "evaluate", "export"}


def test_every_step_may_be_tried_again(documents):
    tasks = _named_tasks(documents[0])
    assert {name: task["retryPolicy"]["maxRetryCount"] for name, task in tasks.items()} == {
        "prepare-data": 2,
        "train": 2,
        "evaluate": 1,
        "export": 1,
        "compare": 1,
        "register": 2,
        "register-2": 2,
    }


def test_the_better_model_becomes_the_champion_and_another_one_the_challenger(documents):
    """Without a model's name nothing is compared."""
    triggers = {
        _only_step(documents[0], name): task["triggerPolicy"]["condition"]
        for name, task in _all_tasks(documents[0])
        if "condition" in task.get("triggerPolicy", {})
    }
    better = "inputs.parameter_values['pipelinechannel--compare-Output'] == true"
    named = "inputs.parameter_values['pipelinechannel--model_name'] != ''"
    assert triggers == {"compare": named, "register": better, "register-2": f"!({better})"}
    tasks = _named_tasks(documents[0])
    promoted = {name: tasks[name]["inputs"]["parameters"]["champion"] for name in ("register", "register-2")}
    assert [each["runtimeValue"]["constant"] for each in promoted.values()] == [True, False]


def test_conditions_look_only_at_outputs_that_the_local_runner_can_resolve(documents):
    """It takes a condition on a named output for false without a word (kfp 2.17)."""
    for _, task in _all_tasks(documents[0]):
        condition = task.get("triggerPolicy", {}).get("condition", "")
        if "pipelinechannel--model_name" in condition:
            continue  # a parameter of the pipeline, which it resolves too
        assert not re.search(r"-(?!Output\b)\w+'\]", condition)


def test_every_parameter_is_documented_and_all_but_the_manifest_have_defaults(documents):
    parameters = documents[0]["root"]["inputDefinitions"]["parameters"]
    assert [name for name, parameter in parameters.items() if not parameter.get("description")] == []
    assert [name for name, parameter in parameters.items() if not parameter.get("isOptional")] == ["manifest"]


def test_artifacts_have_the_types_that_the_server_draws(documents):
    found = {
        name: {key: value["artifactType"]["schemaTitle"] for key, value in outputs["artifacts"].items()}
        for name, component in documents[0]["components"].items()
        if "executorLabel" in component and (outputs := component.get("outputDefinitions", {})).get("artifacts")
    }
    assert found == {
        "comp-prepare-data": {"dataset": "system.Dataset"},
        "comp-train": {"model": "system.Model", "metrics": "system.Metrics"},
        "comp-evaluate": {"report": "system.HTML", "metrics": "system.Metrics", "images": "system.Dataset"},
        "comp-export": {"bundle": "system.Model"},
    }


def test_the_package_is_small_enough_for_the_cluster(package):
    assert package.stat().st_size < 1_000_000  # etcd refuses objects above 1.5 MB, and Argo adds to it


def test_image_and_gpus_are_chosen_when_compiling(tmp_path):
    output = tmp_path / "gpu.yaml"
    target = ["--image", "registry.example/cyto-dl:1.2", "--gpus", "2"]
    command = [sys.executable, "-m", "pipelines", "compile", "training", "--output", str(output), *target]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=os.environ)
    specification, platform = yaml.safe_load_all(output.read_text())
    executors = specification["deploymentSpec"]["executors"]
    assert {executor["container"]["image"] for executor in executors.values()} == {"registry.example/cyto-dl:1.2"}
    gpus = {
        step: executor["container"]["resources"]["accelerator"]
        for step, executor in executors.items()
        if "accelerator" in executor["container"]["resources"]
    }
    assert set(gpus) == NETWORK
    assert {(each["resourceType"], each["resourceCount"]) for each in gpus.values()} == {("nvidia.com/gpu", "2")}
    assert platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]["tolerations"]


def _normalized(path: Path) -> list[str]:
    """Lines of a package without what differs by choice: the image, and the SDK's patch version."""
    text = re.sub(r"^( *image:).*$", r"\1 IMAGE", path.read_text(), flags=re.MULTILINE)
    return re.sub(r"^(sdkVersion:).*$", r"\1 VERSION", text, flags=re.MULTILINE).splitlines()


def _all_tasks(specification: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every task by its name: steps, conditions and their branches."""
    nodes = [specification["root"], *specification["components"].values()]
    return [item for node in nodes if "dag" in node for item in node["dag"]["tasks"].items()]


def _named_tasks(specification: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The steps' tasks by the names of their components."""
    found = {task["componentRef"]["name"].removeprefix("comp-"): task for _, task in _all_tasks(specification)}
    return {step: found[step] for step in STEPS}


def _only_step(specification: dict[str, Any], condition: str) -> str:
    """The step directly inside a condition."""
    tasks = specification["components"][f"comp-{condition}"]["dag"]["tasks"].values()
    names = [task["componentRef"]["name"].removeprefix("comp-") for task in tasks]
    (step,) = [name for name in names if name in STEPS]
    return step


def _dangling(specification: dict[str, Any]) -> "list[str]":
    """References to components, executors and tasks that do not exist, and components and executors without use.

    KFP's own loader accepts them all.
    """
    components_, executors = specification["components"], specification["deploymentSpec"]["executors"]
    problems, used, labels = [], set(), set()
    for name, node in [("root", specification["root"]), *components_.items()]:
        if "executorLabel" in node:
            labels.add(node["executorLabel"])
        tasks = node.get("dag", {}).get("tasks", {})
        for key, task in tasks.items():
            used.add(task["componentRef"]["name"])
            before = set(task.get("dependentTasks", []))
            sources = task.get("inputs", {})
            for source in [*sources.get("parameters", {}).values(), *sources.get("artifacts", {}).values()]:
                producer = source.get("taskOutputArtifact", source.get("taskOutputParameter"))
                before |= {producer["producerTask"]} if producer else set()
            problems += [f"{name}.{key}: no task {missing}" for missing in before - set(tasks)]
    problems += [f"no component {missing}" for missing in used - set(components_)]
    problems += [f"no executor {missing}" for missing in labels - set(executors)]
    problems += [f"component {unused} is not used" for unused in set(components_) - used]
    problems += [f"executor {unused} is not used" for unused in set(executors) - labels]
    return problems
