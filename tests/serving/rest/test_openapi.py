"""Requests made of the document that the server gives of itself: whatever they are, none is a fault of the server."""

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from serving.jobs.folder import JobFolder
from serving.jobs.queue import JobQueue
from serving.limits import DEFAULTS
from serving.references.addresses import Addresses
from serving.server import BundleServer
from tests.serving.wire import LENGTH, tensor

GOOD = tensor(np.zeros((1, 1, 3, 4), np.uint8))


@pytest.fixture
def server(models, executor, tmp_path):
    """A server that takes jobs and reads files."""
    addresses = Addresses((str(tmp_path),), (str(tmp_path),))

    def open_jobs(repository):
        return JobQueue(JobFolder(str(tmp_path / "jobs")), repository, limits=DEFAULTS, addresses=addresses)

    made = BundleServer(executor, load=None, addresses=addresses, open_jobs=open_jobs)
    for model in models.values():
        made.register_model(model)
    return made


@pytest.fixture
def document(server, tmp_path):
    """The server's own document, and its routes behind it."""
    found = schemathesis.openapi.from_asgi("/openapi.json", server.app)

    # Three times of four what is made is brought near to what is right: else nothing gets beyond the first check.
    @found.hook
    def map_path_parameters(context, path_parameters):
        if not path_parameters or len(str(path_parameters)) % 4 == 0:
            return path_parameters
        return path_parameters | {"model_name": "cells_2"}

    @found.hook
    def map_headers(context, headers):
        if len(str(headers)) % 4 == 0:
            return headers
        return {name: value for name, value in (headers or {}).items() if name != LENGTH}

    @found.hook
    def map_body(context, body):
        if isinstance(body, dict) and "image_uri" in body and len(str(body)) % 4:
            return {"image_uri": f"{tmp_path}/a.tif"}
        if not isinstance(body, dict) or "inputs" not in body or len(str(body)) % 4 == 0:
            return body
        return {"inputs": [GOOD]}

    return found


def test_no_request_is_a_fault_of_the_server(document):
    asked = set()
    for operation in document.get_all_operations():

        @settings(
            max_examples=20,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(case=operation.ok().as_strategy())
        def ask(case):
            asked.add((case.method, case.path, case.call_and_validate(checks=[not_a_server_error]).status_code))

        ask()
    answered = {(method, path) for method, path, status in asked if status in (200, 202)}
    assert {("GET", "/v2/models/{model_name}"), ("POST", "/v2/models/{model_name}/infer")} <= answered
    assert {(method, "/v2/models/{model_name}/jobs") for method in ("GET", "POST")} <= answered


def test_the_document_tells_what_a_job_takes_and_is(send):
    paths = send("GET", "/openapi.json").json()["paths"]
    every, one = paths["/v2/models/{model_name}/jobs"], paths["/v2/models/{model_name}/jobs/{job_id}"]
    assert {"application/json", "image/tiff"} <= set(every["post"]["requestBody"]["content"])
    assert "X-Job-Id" in [each["name"] for each in every["post"]["parameters"]]
    for answer in (every["post"]["responses"]["202"], one["get"]["responses"]["200"]):
        assert "running" in answer["content"]["application/json"]["schema"]["properties"]["state"]["enum"]


@pytest.mark.parametrize("name", ["infer", "predict"])
def test_the_document_tells_what_a_prediction_takes(send, name):
    paths = send("GET", "/openapi.json").json()["paths"]
    route = {"infer": "/v2/models/{model_name}/infer", "predict": "/v1/models/{model_name}:predict"}[name]
    content = paths[route]["post"]["requestBody"]["content"]
    assert {"infer": "application/octet-stream", "predict": "image/tiff"}[name] in content
    assert not [path for path in paths if "/versions/" in path or ":explain" in path]
