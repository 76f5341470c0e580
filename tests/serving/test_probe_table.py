"""Every fault of a client is a 4xx over REST, and its own code over gRPC, with a sentence that names the field.

The probes are those of which KServe's own server answers 28 of 65 with a 500, or with a 200 and wrong data.
"""

import grpc
import numpy as np
import pytest
from kserve.protocol.grpc.grpc_predict_v2_pb2 import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelReadyRequest,
)

from tests.serving.probes import GOOD, WRONG_TENSORS
from tests.serving.test_grpc import PICTURE, request, stub_of
from tests.serving.wire import binary_request, npy, tensor

INFER, PREDICT = "/v2/models/cells_2/infer", "/v1/models/cells_2:predict"
CONTENTS = {"FP32": "fp32_contents", "FP64": "fp64_contents", "UINT8": "uint_contents", "INT64": "int64_contents"}
MISTAKES = (TypeError, ValueError, AttributeError, KeyError)  # that protobuf itself does not let through


def as_message(body):
    """A wrong request as a gRPC message, or None: what protobuf cannot hold cannot be asked wrongly."""
    if "parameters" in str(body) or "True" in str(body):  # protobuf has them as a map, and takes booleans for numbers
        return None
    try:
        inputs = [
            ModelInferRequest.InferInputTensor(
                name=each.get("name"),
                shape=each.get("shape"),
                datatype=each.get("datatype"),
                contents={CONTENTS[each["datatype"]]: each["data"]} if each.get("data") is not None else None,
            )
            for each in body.get("inputs", [])
        ]
        outputs = [ModelInferRequest.InferRequestedOutputTensor(name=each["name"]) for each in body.get("outputs", [])]
        return ModelInferRequest(model_name="cells_2", inputs=inputs, outputs=outputs)
    except MISTAKES:
        return None


MESSAGES = {name: message for name, (body, _) in WRONG_TENSORS.items() if (message := as_message(body)) is not None}


@pytest.fixture(scope="module")
def stub(server):
    with stub_of(server) as stub:
        yield stub


@pytest.mark.parametrize(("body", "words"), WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_a_wrong_tensor_is_refused_over_rest(send, body, words):
    assert_refused(send("POST", INFER, json=body), 400, words)


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_a_wrong_tensor_is_an_invalid_argument_over_grpc(stub, message):
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(message)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert [word for word in ("raw", "inputs", "outputs") if word in refused.value.details()]


def test_enough_of_the_table_can_be_asked_over_grpc():
    assert len(MESSAGES) >= 20


BINARY = binary_request(np.zeros((1, 1, 3, 4), np.float32))
IMAGE = npy(np.zeros((1, 3, 4), np.uint8))
# Method, address, what is sent, and the status with words that its answer must have.
WRONG_ADDRESSES = {
    "unknown model": ("POST", "/v2/models/zz/infer", {"json": {"inputs": [GOOD]}}, 404, ["zz"]),
    "unknown model, V1": ("POST", "/v1/models/zz:predict", {"content": IMAGE}, 404, ["zz"]),
    "unknown model's metadata": ("GET", "/v2/models/zz", {}, 404, ["zz"]),
    "unknown model's readiness": ("GET", "/v2/models/zz/ready", {}, 404, ["zz"]),
    "a version": ("POST", "/v2/models/cells_2/versions/1/infer", {"json": {"inputs": [GOOD]}}, 404, ["/versions/"]),
    "a version's metadata": ("GET", "/v2/models/cells_2/versions/1", {}, 404, ["/versions/"]),
    "a version's readiness": ("GET", "/v2/models/cells_2/versions/1/ready", {}, 404, ["/versions/"]),
    "GET of a prediction": ("GET", INFER, {}, 405, []),
    "GET of a prediction, V1": ("GET", PREDICT, {}, 404, ["cells_2:predict"]),
    "unknown address": ("POST", "/v2/modells/cells_2/infer", {"json": {}}, 404, []),
    "explanation": ("POST", "/v1/models/cells_2:explain", {"json": {"instances": [[[1]]]}}, 404, ["explain"]),
    "load": ("POST", "/v2/repository/models/cells_2/load", {}, 403, ["operator"]),
    "unload": ("POST", "/v2/repository/models/cells_2/unload", {}, 403, ["operator"]),
    "V2 body to V1": ("POST", PREDICT, {"json": {"inputs": [GOOD]}}, 400, ["instances", "inputs"]),
    "V1 body to V2": ("POST", INFER, {"json": {"instances": [[[1]]]}}, 400, ["inputs", "required"]),
    "binary body without its length": ("POST", INFER, {"content": BINARY[0]}, 400, ["inference-header-content-length"]),
    "a file to V2": ("POST", INFER, {"content": IMAGE}, 400, [".npy", "application/octet-stream"]),
    "parameter in the address": ("POST", f"{INFER}?overlap=0.5", {"json": {"inputs": [GOOD]}}, 400, ["overlap"]),
    "unknown parameter": ("POST", f"{PREDICT}?overlapp=0.5", {"content": IMAGE}, 400, ["overlapp", "augment"]),
    "unknown format": ("POST", PREDICT, {"content": IMAGE, "headers": {"Accept": "text/html"}}, 406, ["text/html"]),
    "unknown head": ("POST", PREDICT, {"content": IMAGE, "headers": {"X-Outputs": "zz"}}, 400, ["zz", "seg"]),
}


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "words"), WRONG_ADDRESSES.values(), ids=WRONG_ADDRESSES
)
def test_a_request_to_a_wrong_place_is_refused_over_rest(send, method, path, content, status, words):
    assert_refused(send(method, path, **content), status, words)


def with_parameter(value):
    message = request(PICTURE)
    message.parameters["overlap"].CopyFrom(value)
    return message


def with_extension(part, **parameters):
    message = request(PICTURE, outputs=["seg"])
    for name, value in parameters.items():
        getattr(message, part)[0].parameters[name].CopyFrom(InferParameter(**value))
    return message


def with_both():
    message = request(PICTURE)
    message.inputs[0].contents.fp32_contents.extend([0.0] * 12)
    return message


SERVICE = "/inference.GRPCInferenceService"
INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
# What is asked of the model, the code, and words that the details must have.
WRONG_MESSAGES = {
    "unknown model": (request(PICTURE, model="zz"), MISSING, ["zz"]),
    "no model": (ModelInferRequest(), MISSING, []),
    "a version": (ModelInferRequest(model_name="cells_2", model_version="7"), MISSING, ["version 7"]),
    "raw and typed contents": (with_both(), INVALID, ["contents"]),
    "two raw contents for a tensor": (
        ModelInferRequest(model_name="cells_2", inputs=request(PICTURE).inputs, raw_input_contents=[b"", b""]),
        INVALID,
        ["raw input contents", "1", "2"],
    ),
    "a parameter out of bounds": (with_parameter(InferParameter(string_param="0.9")), INVALID, ["overlap", "0.75"]),
    "a parameter of another kind": (with_parameter(InferParameter(bool_param=True)), INVALID, ["overlap", "True"]),
    "a parameter that gRPC does not know": (with_parameter(InferParameter()), INVALID, ["overlap", "as text"]),
    "an unknown output": (request(PICTURE, outputs=["zz"]), INVALID, ["zz", "seg"]),
    "classes instead of values": (
        with_extension("outputs", classification={"int64_param": 3}),
        INVALID,
        ["seg", "classification"],
    ),
    "an image in shared memory": (
        with_extension("inputs", shared_memory_region={"string_param": "a"}),
        INVALID,
        ["raw", "shared_memory_region"],
    ),
}


@pytest.mark.parametrize(("message", "code", "words"), WRONG_MESSAGES.values(), ids=WRONG_MESSAGES)
def test_a_wrong_message_has_the_code_of_its_mistake(stub, message, code, words):
    assert_code(lambda: stub.ModelInfer(message), code, words)


@pytest.mark.parametrize("content", [b"\xff\xff\xffgarbage", b"\x0a\xff"])
def test_bytes_that_are_no_message_are_an_invalid_argument(server, content):
    with stub_of(server, kind=lambda channel: channel.unary_unary(f"{SERVICE}/ModelInfer")) as call:
        assert_code(lambda: call(content), INVALID, ["ModelInferRequest"])


def test_the_metadata_and_the_readiness_of_an_unknown_model_are_not_found(stub):
    assert_code(lambda: stub.ModelMetadata(ModelMetadataRequest(name="zz")), MISSING, ["zz"])
    assert_code(lambda: stub.ModelReady(ModelReadyRequest(name="zz")), MISSING, ["zz"])


def test_a_model_that_is_not_ready_is_unavailable_over_both(stub, send, models):
    models[2].stop()
    try:
        assert_code(lambda: stub.ModelInfer(request(PICTURE)), grpc.StatusCode.UNAVAILABLE, ["cells_2"])
        assert_refused(send("POST", INFER, json={"inputs": [GOOD]}), 503, ["cells_2"])
    finally:
        models[2].ready = True


def test_the_good_request_that_all_of_these_spoil_is_answered(send, stub):
    assert send("POST", INFER, json={"inputs": [GOOD]}).status_code == 200
    assert send("POST", INFER, content=BINARY[0], headers=BINARY[1]).status_code == 200
    assert send("POST", PREDICT, content=IMAGE).status_code == 200
    assert isinstance(stub.ModelInfer(request(PICTURE)), ModelInferResponse)
    assert stub.ModelInfer(with_parameter(InferParameter(string_param="0.5"))).outputs
    assert as_message({"inputs": [tensor(PICTURE)]}) is not None


def assert_refused(response, status, words):
    assert response.status_code == status, response.text
    message = response.json()["error"]
    assert [word for word in words if word not in message] == [], message
    assert "/site-packages/" not in message


def assert_code(call, code, words):
    with pytest.raises(grpc.RpcError) as refused:
        call()
    assert refused.value.code() == code, refused.value.details()
    assert [word for word in words if word not in refused.value.details()] == [], refused.value.details()


def test_what_is_only_about_the_form_of_a_tensor_is_ignored(send, stub):
    described = GOOD | {"parameters": {"content_type": "np"}}
    asked = {"name": "seg", "parameters": {"classification": 0}}
    assert send("POST", INFER, json={"inputs": [described], "outputs": [asked]}).status_code == 200
    message = with_extension("outputs", binary_data={"bool_param": False}, content_type={"string_param": "np"})
    assert len(stub.ModelInfer(message).raw_output_contents) == 1
