"""What holds for the compiled package of every pipeline."""

import difflib
import re
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
from tests.pipelines.graph import all_tasks, containers, dangling, normalized, steps

COMPILED = Path(__file__).resolve().parents[2] / "pipelines" / "compiled"


@pytest.fixture(scope="module", params=PIPELINES)
def package(request, tmp_path_factory) -> Path:
    return compile_pipeline(request.param, tmp_path_factory.mktemp("compiled") / f"{request.param}.yaml")


@pytest.fixture(scope="module")
def documents(package) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline's specification, and what it asks of Kubernetes."""
    specification, platform = yaml.safe_load_all(package.read_text())
    return specification, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_the_committed_package_is_what_the_pipeline_compiles_to(package):
    committed, compiled = normalized(COMPILED / package.name), normalized(package)
    difference = "\n".join(difflib.unified_diff(committed, compiled, "committed", "compiled", lineterm="", n=1))
    assert not difference, f"write it anew: python -m pipelines compile --all --output pipelines/compiled\n{difference}"


def test_every_pipeline_has_a_committed_package_and_no_package_lacks_a_pipeline():
    assert sorted(path.stem for path in COMPILED.iterdir()) == sorted(PIPELINES)


def test_compiling_twice_gives_the_same_bytes(package, tmp_path):
    assert compile_pipeline(package.stem, tmp_path / "again.yaml").read_bytes() == package.read_bytes()


def test_the_package_holds_what_the_api_server_reads(package, documents):
    specification, platform = yaml.safe_load_all(package.read_text())
    json_format.ParseDict(specification, PipelineSpec())
    json_format.ParseDict(platform, PlatformSpec())
    for executor in documents[1].values():
        json_format.ParseDict(executor, KubernetesExecutorConfig())
    name = f"cyto-dl-{package.stem.replace('_', '-')}"
    assert components.load_component_from_file(str(package)).component_spec.name == name


def test_every_reference_in_the_package_resolves(documents):
    specification, platform = documents
    assert dangling(specification) == []
    assert set(platform) <= set(specification["deploymentSpec"]["executors"])


def test_no_step_installs_anything_when_it_starts(documents):
    for container in containers(documents[0]).values():
        assert "pip install" not in " ".join(container["command"])


def test_every_step_runs_in_one_versioned_image(documents):
    (image,) = {container["image"] for container in containers(documents[0]).values()}
    assert re.fullmatch(r".+:(?!latest$).+|.+@sha256:.+", image)


def test_every_step_says_what_processors_and_memory_it_needs(documents):
    for container in containers(documents[0]).values():
        resources = container["resources"]
        for name in ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"):
            assert resources[name]
        assert "accelerator" not in resources  # GPUs are asked for when compiling


def test_every_step_gets_credentials_and_addresses_where_the_operator_made_them(documents):
    assert set(documents[1]) == set(containers(documents[0]))
    for executor in documents[1].values():
        secrets, (environment,) = executor["secretAsEnv"], executor["configMapAsEnv"]
        assert {each["secretName"]: each["optional"] for each in secrets} == {
            "cyto-dl-s3": True,
            "cyto-dl-mlflow": True,
        }
        (label,) = executor["fieldPathAsEnv"]
        assert (label["name"], label["fieldPath"]) == ("CYTO_DL_PIPELINE_RUN", "metadata.labels['pipeline/runid']")
        assert (environment["configMapName"], environment["optional"]) == ("cyto-dl-environment", True)
        assert "MLFLOW_TRACKING_URI" in [entry["envVar"] for entry in environment["keyToEnv"]]


def test_every_step_has_a_name_for_people_and_all_but_a_deployment_are_tried_again(documents):
    """A deployment that failed has brought the former model back, and would fail again."""
    for name, task in steps(documents[0]).items():
        assert re.match(r"[A-Z]", task["taskInfo"]["name"])
        assert ("retryPolicy" in task) == (name != "deploy")


def test_the_cluster_ends_a_run_that_hangs_and_clears_away_one_that_ended(package):
    _, platform = yaml.safe_load_all(package.read_text())
    config = platform["platforms"]["kubernetes"]["pipelineConfig"]
    assert config["resourceTtlOnCompletion"] < config["resourceTtlOnFailure"]
    assert config["activeDeadlineSeconds"] > 0
    assert "workspace" not in config  # whose folder the local runner deletes


def test_conditions_and_loops_look_only_at_outputs_that_the_local_runner_can_resolve(documents):
    """It takes a condition on a named output for false without a word, and refuses a loop over one (kfp 2.17)."""
    parameters = documents[0]["root"]["inputDefinitions"]["parameters"]
    for _, task in all_tasks(documents[0]):
        condition = task.get("triggerPolicy", {}).get("condition", "")
        items = task.get("parameterIterator", {}).get("items", {}).get("inputParameter", "")
        for channel in re.findall(r"pipelinechannel--[\w-]+", f"{condition} {items}"):
            assert channel.endswith("-Output") or channel.removeprefix("pipelinechannel--") in parameters


def test_every_parameter_is_documented(documents):
    parameters = documents[0]["root"]["inputDefinitions"]["parameters"]
    assert [name for name, parameter in parameters.items() if not parameter.get("description")] == []


def test_the_package_is_small_enough_for_the_cluster(package):
    assert package.stat().st_size < 1_000_000  # etcd refuses objects above 1.5 MB, and Argo adds to it
