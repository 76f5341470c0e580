"""Every way to ask wrongly: a 4xx whose sentence names the tensor, what came and what is accepted."""

import json
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kserve import InferInput, InferRequest
from kserve.errors import InvalidInput

from serving.messages.dataplane import decode_tensors
from serving.messages.files import FileBody
from serving.messages.requests import read_request
from tests.serving.probes import GOOD, changed
from tests.serving.wire import LENGTH, binary_request, npy

INFER, PREDICT = "/v2/models/cells_2/infer", "/v1/models/cells_2:predict"
PICTURE = np.arange(12, dtype=np.uint16).reshape(1, 3, 4)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", ["not JSON"]),
        (b"{", ["not JSON"]),
        (b"\xff\xfe", ["not JSON"]),
        (b"[]", ["list", "object"]),
        (b"null", ["object"]),
        (json.dumps(changed(GOOD, data=[float("nan")] * 12)).encode(), ["not JSON"]),
        (json.dumps(changed(GOOD)).replace("11.0", "1e999").encode(), ["not JSON"]),
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "application/octet-stream", ""])
def test_a_body_that_is_not_json_is_refused(send, body, words, content_type):
    assert_refused(send("POST", INFER, content=body, headers={"Content-Type": content_type}), words)


IMAGE_FILES = [
    (b"II*\0\x08\0\0\0", "a TIFF file"),
    (b"MM\0+\0\x08\0\0", "a TIFF file"),
    (b"\x89PNG\r\n\x1a\n", "a PNG file"),
    (b"\xff\xd8\xff\xe0", "a JPEG file"),
]
OTHER_FILES = [
    (b"PK\x03\x04", ".npz"),
    (b"--------------------------ab\r\n", "--data-binary"),
    (b"", "empty"),
    (b"raw pixels", "line 1 column 1"),
]


@pytest.mark.parametrize(("body", "looks_like"), OTHER_FILES)
@pytest.mark.parametrize("content_type", ["application/x-npy", "image/tiff", "application/json"])
def test_a_file_of_another_format_is_refused_with_what_it_looks_like_and_what_is_accepted(
    send, body, looks_like, content_type
):
    response = send("POST", PREDICT, content=body, headers={"Content-Type": content_type})
    assert_refused(response, [looks_like, f"sent as {content_type}", "application/x-npy", "TIFF", "application/json"])


@pytest.mark.parametrize(("body", "looks_like"), [*IMAGE_FILES, *OTHER_FILES])
def test_a_file_to_the_route_of_tensors_is_refused(send, body, looks_like):
    response = send("POST", INFER, content=body, headers={"Content-Type": "image/tiff"})
    assert_refused(response, [looks_like, "application/json", "application/octet-stream", LENGTH.lower()])


@pytest.mark.parametrize(("body", "looks_like"), IMAGE_FILES)
def test_an_image_file_that_is_only_a_beginning_is_refused_without_a_path(send, body, looks_like):
    response = send("POST", PREDICT, content=body)
    assert_refused(response, ["the body"])
    assert "/" not in response.json()["error"]


def test_a_npy_file_to_the_route_of_tensors_is_refused_as_such(send):
    response = send("POST", INFER, content=npy(PICTURE), headers={"Content-Type": "application/x-npy"})
    assert_refused(response, ["looks like a .npy file", "application/octet-stream"])


BINARY = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda body, headers: (body[:-1], headers), ["raw", "48", "47"]),
        (lambda body, headers: (body + b"\0", headers), ["1 bytes"]),
        (lambda body, headers: (body, headers | {LENGTH: "abc"}), ["abc", "number of bytes"]),
        (lambda body, headers: (body, headers | {LENGTH: "-5"}), ["-5"]),
        (lambda body, headers: (body, headers | {LENGTH: ""}), ["number of bytes"]),
        (lambda body, headers: (body, headers | {LENGTH: "9" * 5000}), ["number of bytes"]),
        (lambda body, headers: (body, headers | {LENGTH: str(len(body) + 1)}), ["number of bytes"]),
        (lambda body, headers: (body, headers | {LENGTH: "0"}), ["not JSON", "0 bytes"]),
        (lambda body, headers: (body, headers | {LENGTH: "7"}), ["not JSON", "7 bytes"]),
        (lambda body, headers: (body, {"Content-Type": headers["Content-Type"]}), ["inference-header-content-length"]),
    ],
    ids=["short", "long", "word", "negative", "no digits", "huge", "beyond", "zero", "early", "missing"],
)
def test_a_spoilt_binary_body_is_refused(send, spoil, words):
    body, headers = spoil(*binary_request(BINARY))
    assert_refused(send("POST", INFER, content=body, headers=headers), words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameters": {"binary_data_size": -1}}, ["raw", "binary_data_size", "-1"]),
        ({"parameters": {"binary_data_size": "48"}}, ["raw", "binary_data_size"]),
        ({"parameters": {"binary_data_size": True}}, ["raw", "binary_data_size"]),
        ({"parameters": {"binary_data_size": 47}}, ["1 bytes"]),
        ({"parameters": {}}, ["48 bytes"]),
        ({"data": [1.0] * 12}, ["raw", "data", "binary_data_size"]),
        ({"shape": [1, 1, 3, 5]}, ["raw", "15", "FP32"]),
        ({"datatype": "UINT8"}, ["raw", "12", "UINT8"]),
        ({"datatype": "BYTES"}, ["raw", "BYTES", "FP32"]),
        ({"name": "image"}, ["'raw'", "image"]),
    ],
)
def test_a_binary_tensor_that_does_not_fit_its_description_is_refused(send, changes, words):
    body, headers = binary_request(BINARY, **changes)
    assert_refused(send("POST", INFER, content=body, headers=headers), words)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_that_are_not_finite_are_counted_and_refused(send, value, dtype):
    array = BINARY.astype(dtype)
    array[0, 0, 1, 1:3] = value
    body, headers = binary_request(array)
    assert_refused(send("POST", INFER, content=body, headers=headers), ["raw", "2 of 12"])
    assert_refused(send("POST", PREDICT, content=npy(array[0])), ["2 of 12"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, ["instances", "[1, Y, X]"]),
        ({"inputs": [GOOD]}, ["instances", "inputs"]),
        ({"instances": 3}, ["instances", "[1, Y, X]"]),
        ({"instances": []}, ["instances", "at least one"]),
        ({"instances": [3]}, ["instances[0]", "[1, Y, X]"]),
        ({"instances": ["abc"]}, ["instances[0]", "number"]),
        ({"instances": [{"raw": PICTURE.tolist()}]}, ["instances[0]", "number"]),
        ({"instances": [PICTURE.tolist(), PICTURE[0, 0].tolist()]}, ["instances[1]", "[4]", "[1, Y, X]", "[Y, X]"]),
        ({"instances": [[PICTURE.tolist()]]}, ["instances[0]", "[1, 1, 3, 4]"]),
        ({"instances": [[*PICTURE.tolist(), *PICTURE.tolist()]]}, ["instances[0]", "[2, 3, 4]", "1 channel"]),
        ({"instances": [[[[1, 2], [3]]]]}, ["instances[0]", "nested lists"]),
        ({"instances": [[[[], []]]]}, ["instances[0]", "[1, 2, 0]"]),
        ({"instances": [[[[1e300]]]]}, ["instances[0]", "1 of 1"]),
        ({"instances": [PICTURE.tolist()], "outputs": ["masks"]}, ["masks", "seg"]),
        ({"instances": [PICTURE.tolist()], "outputs": "seg"}, ["outputs", "list"]),
    ],
)
def test_a_wrong_v1_body_is_refused(send, body, words):
    assert_refused(send("POST", PREDICT, json=body), words)


@pytest.mark.parametrize("body", [b"", b"{", b"\x89PNG", b"[1]"])
def test_a_v1_body_that_is_neither_json_nor_npy_is_refused(send, body):
    assert_refused(send("POST", PREDICT, content=body, headers={"Content-Type": "image/png"}), ["body"])


def pickled_npy():
    return npy(np.array([{"a": 1}], dtype=object))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"\x93NUMPY", ["npy"]),
        (npy(PICTURE)[:40], ["npy"]),
        (npy(PICTURE)[:-1], ["npy", "24", "23"]),
        (npy(PICTURE) + b"\0", ["npy", "24", "25"]),
        (b"\x93NUMPY\x09\x00" + npy(PICTURE)[8:], ["npy"]),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + npy(PICTURE)[10:], ["npy"]),
        (npy(PICTURE).replace(b"'shape': (1, 3, 4)", b"'shape': (1, 3,-4)"), ["npy", "-4"]),
        (npy(PICTURE).replace(b"'shape': (1, 3, 4)", b"'shape': (1,9**99)"), ["npy"]),
        (npy(PICTURE).replace(b"'<u2'", b"'<u9'"), ["npy"]),
        (b"\x93NUMPY\x01\x00\x10\x27" + b"-" * 9999 + b"1", ["npy"]),
        (b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10000, ["npy"]),
        (npy(PICTURE[0, 0]), ["npy", "[4]", "[1, Y, X]"]),
        (npy(np.zeros((2, 3, 4))), ["npy", "[2, 3, 4]", "1 channel"]),
        (npy(np.zeros((1, 0, 4))), ["npy", "[1, 0, 4]"]),
        (npy(np.zeros((1, 3, 4), bool)), ["npy", "bool"]),
        (npy(np.zeros((1, 3, 4), complex)), ["npy", "complex"]),
        (npy(np.zeros((1, 3, 4), "U3")), ["npy", "<U3"]),
        (pickled_npy(), ["npy", "object"]),
    ],
)
def test_a_wrong_npy_body_is_refused(send, body, words):
    assert_refused(send("POST", PREDICT, content=body, headers={"Content-Type": "application/x-npy"}), words)


def test_an_unknown_head_is_refused_before_the_model_runs(send, models, monkeypatch):
    monkeypatch.setattr(models[2], "_predict_images", None)
    assert_refused(send("POST", INFER, json={"inputs": [GOOD], "outputs": [{"name": "masks"}]}), ["masks", "seg"])
    assert_refused(send("POST", PREDICT, content=npy(PICTURE), headers={"X-Outputs": "masks"}), ["masks", "seg"])


@pytest.mark.parametrize(
    "order", ["big endian", "fortran", "long double", "int64", "no channel", "fortran, no channel"]
)
def test_a_npy_image_is_read_in_any_layout(models, order):
    picture = {
        "big endian": PICTURE.astype(">u2"),
        "fortran": np.asfortranarray(PICTURE.transpose(0, 2, 1)).transpose(0, 2, 1),
        "long double": PICTURE.astype(np.longdouble),
        "int64": PICTURE.astype(np.int64),
        "no channel": PICTURE[0],  # as a camera's file is read
        "fortran, no channel": np.asfortranarray(PICTURE[0]),
    }[order]
    request = read_request(FileBody(npy(picture)), {}, predictor=models[2].predictor)
    assert request.images[0].array.dtype.isnative
    np.testing.assert_array_equal(request.images[0].array, PICTURE)


def test_a_binary_image_is_a_view_of_the_received_bytes(models):
    body, headers = binary_request(BINARY)
    tensors = decode_tensors(body, {name.lower(): value for name, value in headers.items()}, "cells_2")
    request = read_request(tensors, {}, predictor=models[2].predictor)
    assert np.shares_memory(request.images[0].array, np.frombuffer(body, np.uint8))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=8,
)
tensors = st.fixed_dictionaries(
    {
        "name": st.just("raw") | json_values,
        "shape": st.lists(st.integers(-1, 4), min_size=3, max_size=5) | json_values,
        "datatype": st.sampled_from(["UINT8", "FP32", "fp64", "BOOL", "BYTES"]) | json_values,
    },
    optional={"data": st.lists(st.integers(0, 300), max_size=16) | json_values, "parameters": json_values},
)


@given(inputs=st.lists(tensors, max_size=2) | json_values, outputs=json_values, rest=st.binary(max_size=8))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_sent_is_an_image_or_refused(models, inputs, outputs, rest):
    text = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    with suppress(InvalidInput):
        payload = decode_tensors(text + rest, {LENGTH.lower(): str(len(text))}, "cells_2")
        request = read_request(payload, {}, predictor=models[2].predictor)
        arrays = [image.array for image in request.images]
        assert all(array.ndim == 3 and array.size and np.isfinite(array).all() for array in arrays)


@given(body=st.binary(max_size=40).map(lambda rest: npy(PICTURE)[:90] + rest) | st.binary(max_size=200))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_sent_as_npy_is_an_image_or_refused(models, body):
    with suppress(InvalidInput):
        request = read_request(FileBody(body), {}, predictor=models[2].predictor)
        assert request.images[0].array.ndim == 3


def test_a_tensor_without_values_is_refused_with_the_number_it_needs(models):
    request = InferRequest("cells_2", [InferInput("raw", [1, 1, 3, 4], "FP32")])
    with pytest.raises(InvalidInput, match="12"):
        read_request(request, {}, predictor=models[2].predictor)


def assert_refused(response, words):
    assert response.status_code == 400, response.text
    message = response.json()["error"]
    assert [word for word in words if word not in message] == [], message
