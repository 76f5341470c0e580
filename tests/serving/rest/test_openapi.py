"""Requests made of the document that the server gives of itself: whatever they are, none is a fault of the server."""

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from tests.serving.wire import LENGTH, tensor

GOOD = tensor(np.zeros((1, 1, 3, 4), np.uint8))


@pytest.fixture
def document(server):
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
    answered = {(method, path) for method, path, status in asked if status == 200}
    assert {("GET", "/v2/models/{model_name}"), ("POST", "/v2/models/{model_name}/infer")} <= answered


@pytest.mark.parametrize("name", ["infer", "predict"])
def test_the_document_tells_what_a_prediction_takes(send, name):
    paths = send("GET", "/openapi.json").json()["paths"]
    route = {"infer": "/v2/models/{model_name}/infer", "predict": "/v1/models/{model_name}:predict"}[name]
    content = paths[route]["post"]["requestBody"]["content"]
    assert {"infer": "application/octet-stream", "predict": "image/tiff"}[name] in content
    assert not [path for path in paths if "/versions/" in path or ":explain" in path]
