import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from components.cluster.inference_service import Target, inference_service
from components.image import DEFAULT_IMAGE
from pipelines.resources import S3_SECRET
from serving.__main__ import parse_arguments
from tests.deploy.models import assert_known

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KUSTOMIZATIONS = sorted(path.parent for path in DEPLOY.rglob("kustomization.yaml"))
MANIFESTS = sorted(set(DEPLOY.rglob("*.yaml")) - set(DEPLOY.rglob("kustomization.yaml")))


def objects(text: str) -> list[dict]:
    return [document for document in yaml.safe_load_all(text) if document]


def one(path: str, kind: str) -> dict:
    (found,) = [document for document in objects((DEPLOY / path).read_text()) if document["kind"] == kind]
    return found


def started_with() -> list[str]:
    """The server's arguments, as KServe fills them in."""
    return [word.replace("{{.Name}}", "nuclei") for word in runtime_container()["args"]]


def runtime_container() -> dict:
    (container,) = one("runtime/cluster-serving-runtime.yaml", "ClusterServingRuntime")["spec"]["containers"]
    return container


def resources(folder: Path) -> set[Path]:
    """Files that a kustomization takes in, itself or through another one."""
    found = set()
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        path = (folder / name).resolve()
        assert path.exists(), f"{folder}/kustomization.yaml names {name}"
        found |= resources(path) if path.is_dir() else {path}
    return found


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_manifest_is_what_the_published_models_say_and_loses_no_key(path):
    documents = objects(path.read_text())
    assert documents
    for document in documents:
        assert_known(document)


def test_a_key_that_no_model_has_is_found():
    service = inference_service(Target("nuclei", "imaging"), "s3://models/nuclei")
    service["spec"]["predictor"]["canaryPercent"] = 10
    with pytest.raises(AssertionError, match="canaryPercent"):
        assert_known(service)


def test_every_manifest_belongs_to_the_example():
    assert resources(DEPLOY / "example") == set(MANIFESTS)


def test_no_object_is_there_twice():
    everything = [document for path in MANIFESTS for document in objects(path.read_text())]
    names = [(document["kind"], document["metadata"]["name"]) for document in everything]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: path.name)
def test_bases_name_no_namespace_no_secret_value_and_no_moving_image(path):
    text = path.read_text()
    assert "latest" not in text
    assert "kind: Secret" not in text
    if path.parent.name != "example":
        assert not re.search(r"^\s*namespace:", text, re.MULTILINE)


def test_the_image_of_the_base_is_the_one_that_the_steps_run_in():
    assert runtime_container()["image"] == DEFAULT_IMAGE


def test_the_server_takes_the_arguments_of_the_runtime():
    container = runtime_container()
    assert container["command"] == ["python", "-m", "serving"]
    options = parse_arguments(started_with())
    assert (options.bundle, options.model_name) == ([(None, "/mnt/models")], "nuclei")
    assert [port["containerPort"] for port in container["ports"]] == [options.http_port]


def test_the_container_cannot_become_root_or_write_its_own_files():
    security = runtime_container()["securityContext"]
    assert security["runAsNonRoot"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_accounts_carry_references_to_secrets_and_no_token():
    server = one("serving/service-account.yaml", "ServiceAccount")
    worker = one("pipeline/workers.yaml", "ServiceAccount")
    assert server["secrets"] == [{"name": S3_SECRET}]
    assert not server["automountServiceAccountToken"]
    assert not worker["automountServiceAccountToken"]


def test_no_right_is_a_wildcard():
    for rule in one("pipeline/role.yaml", "Role")["rules"]:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]


def test_the_service_of_the_folder_is_the_one_that_the_step_makes():
    written = one("serving/inference-service.yaml", "InferenceService")
    made = inference_service(Target("nuclei", "imaging"), "s3://models/nuclei")
    del made["metadata"]["namespace"]
    assert written == made
    # Knative's grace period: a request that began just before the pod's end is answered within it
    asked = parse_arguments(started_with())
    assert made["spec"]["predictor"]["timeout"] > asked.timeout_s + asked.drain_s


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: folder.name)
def test_every_kustomization_builds_objects_that_the_models_know(folder):
    documents = built(folder)
    assert documents
    for document in documents:
        assert_known(document)


def built(folder: Path) -> list[dict]:
    """What `kubectl apply -k` would send; where there is no kubectl, the files that it would begin with."""
    if shutil.which("kubectl"):
        made = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True).stdout
        return objects(made)
    return [document for path in resources(folder) for document in objects(path.read_text())]
