from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from components.cluster.deployment import DeploymentError, deploy_service
from components.cluster.inference_service import Target, inference_service
from components.cluster.launcher import run_train_job
from components.cluster.train_job import Nodes, train_job

ROLE = Path(__file__).resolve().parents[2] / "deploy/pipeline/role.yaml"
VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}


def right(method, address):
    """(group, resource, verb) that Kubernetes asks for at a request."""
    parts = urlsplit(address).path.strip("/").split("/")
    group, rest = ("", parts[4:]) if parts[0] == "api" else (parts[1], parts[5:])
    resource = "/".join([rest[0], *rest[2:]])
    return group, resource, "list" if method == "GET" and len(rest) == 1 else VERBS[method]


def test_the_steps_have_the_rights_that_they_use_and_no_other(cluster):
    def bring(uri):
        service = inference_service(Target("nuclei", "imaging"), uri)
        deploy_service(service, timeout_s=0.1, poll_s=0.01)

    with pytest.raises(DeploymentError, match="is deleted"):
        bring("s3://models/1")
    cluster.look = lambda service: service.update(status={"conditions": [{"type": "Ready", "status": "True"}]})
    bring("s3://models/1")
    cluster.look = lambda service: service.pop("status", None)
    with pytest.raises(DeploymentError, match="not ready either"):
        bring("s3://models/2")

    job = train_job("r1", "imaging", "cyto-dl:0.1.0", ["experiment=im2im/segmentation"], Nodes(2))
    name = job["metadata"]["name"]
    labels = {"jobset-name": name, "replicatedjob-name": "node"}
    pod = {
        "name": f"{name}-node-0-0",
        "labels": {f"jobset.sigs.k8s.io/{key}": value for key, value in labels.items()}
        | {"batch.kubernetes.io/job-completion-index": "0"},
    }
    cluster.objects[f"/api/v1/namespaces/imaging/pods/{pod['name']}"] = {
        "metadata": pod,
        "status": {"phase": "Running"},
    }
    cluster.logs[pod["name"]] = "epoch 0\n"
    cluster.look = lambda job: job.update(status={"conditions": [{"type": "Complete", "status": "True"}]})
    assert run_train_job(job, poll_s=0.01, say=lambda _: None) == 0

    (role,) = [one for one in yaml.safe_load_all(ROLE.read_text()) if one["kind"] == "Role"]
    given = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    used = {right(method, address) for method, address, _ in cluster.requests}
    assert used == given
