"""Requests made of the document that the server gives of itself: whatever they are, none is a fault of the server."""

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from tests.serving.wire import tensor

GOOD = tensor(np.zeros((1, 1, 3, 4), np.uint8))


@pytest.fixture
def document(server):
    """The server's own document, and its routes behind it."""
    found = schemathesis.openapi.from_asgi("/openapi.json", server.app)

    @found.hook
    def map_path_parameters(context, path_parameters):
        """The model that there is, every other time: what is behind an unknown one is 404 at once."""
        is_known = len(str((path_parameters or {}).get("model_name"))) % 2
        return path_parameters | {"model_name": "cells_2"} if path_parameters and is_known else path_parameters

    @found.hook
    def map_body(context, body):
        """A right image, every other time, so that some requests get beyond the first check."""
        if isinstance(body, dict) and "inputs" in body and len(str(body)) % 2:
            return {"inputs": [GOOD]} if len(body) > 1 else body | {"inputs": [GOOD]}
        return body

    return found


def test_no_request_is_a_fault_of_the_server(document):
    asked = set()
    for operation in document.get_all_operations():

        @settings(
            max_examples=15,
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
