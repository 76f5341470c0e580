"""The requests that a client gets wrong, as JSON of the V2 protocol, and words that the answer must have."""

import json

import numpy as np

from tests.serving.wire import tensor

GOOD = tensor(np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4))
WHOLE = tensor(np.arange(12, dtype=np.uint8).reshape(1, 1, 3, 4))
DROPPED = object()


def of_output(**parameters):
    return {"inputs": [GOOD], "outputs": [{"name": "seg", "parameters": parameters}]}


def changed(description, **changes):
    return {"inputs": [{key: value for key, value in (description | changes).items() if value is not DROPPED}]}


# What is sent as JSON to the infer route, and words that the answer must have.
WRONG_TENSORS = {
    "no inputs": ({}, ["inputs", "required"]),
    "inputs not a list": ({"inputs": GOOD}, ["inputs", "list"]),
    "no input": ({"inputs": []}, ["'raw'", "[]"]),
    "input not an object": ({"inputs": [3]}, ["inputs.0"]),
    "two inputs": ({"inputs": [GOOD, GOOD]}, ["exactly one", "'raw'"]),
    "unknown input": (changed(GOOD, name="image"), ["'raw'", "image"]),
    "no name": (changed(GOOD, name=DROPPED), ["inputs.0.name", "required"]),
    "no shape": (changed(GOOD, shape=DROPPED), ["inputs.0.shape", "required"]),
    "no datatype": (changed(GOOD, datatype=DROPPED), ["inputs.0.datatype", "required"]),
    "no data": (changed(GOOD, data=DROPPED), ["raw", "12"]),
    "no data of whole numbers": (changed(WHOLE, data=DROPPED), ["raw", "12 UINT8 values, and none came"]),
    "data null": (changed(GOOD, data=None), ["raw", "12"]),
    "data of whole numbers null": (changed(WHOLE, data=None), ["raw", "12 UINT8 values, and none came"]),
    "data of one whole number null": (changed(WHOLE, data=None, shape=[1, 1, 1, 1]), ["raw", "none came"]),
    "data empty": (changed(GOOD, data=[]), ["raw", "12"]),
    "data a number": (changed(GOOD, data=3), ["raw", "12"]),
    "data a string": (changed(GOOD, data="abc"), ["raw", "number"]),
    "data an object": (changed(GOOD, data={"a": 1}), ["raw", "number"]),
    "strings": (changed(GOOD, data=["a"] * 12), ["raw", "number"]),
    "nulls": (changed(GOOD, data=[None] * 12), ["raw", "number"]),
    "booleans": (changed(GOOD, data=[True] * 12), ["raw", "number"]),
    "ragged": (changed(GOOD, data=[[1, 2], [3]]), ["raw", "nested lists"]),
    "too deep": (changed(GOOD, data=json.loads("[" * 80 + "1" + "]" * 80)), ["raw"]),
    "unknown datatype": (changed(GOOD, datatype="FLOAT32"), ["raw", "FLOAT32", "FP32", "UINT16"]),
    "text datatype": (changed(GOOD, datatype="BYTES"), ["raw", "BYTES", "FP32"]),
    "64-bit integers": (changed(WHOLE, datatype="INT64"), ["raw", "INT64", "INT32"]),
    "shape too large": (changed(GOOD, shape=[1, 1, 3, 5]), ["raw", "[1, 1, 3, 5]", "15", "12"]),
    "shape too small": (changed(GOOD, shape=[1, 1, 3, 3]), ["raw", "9", "12"]),
    "nested in another shape": (changed(GOOD, data=np.zeros((1, 1, 4, 3)).tolist()), ["raw", "[1, 1, 4, 3]"]),
    "rank 2": (changed(GOOD, shape=[3, 4]), ["raw", "[3, 4]", "[N, 1, Y, X]"]),
    "rank 5": (changed(GOOD, shape=[1, 1, 1, 3, 4]), ["raw", "[N, 1, Y, X]"]),
    "two channels": (changed(GOOD, shape=[1, 2, 2, 3]), ["raw", "[1, 2, 2, 3]", "1 channel"]),
    "minus one": (changed(GOOD, shape=[1, 1, -1, 4]), ["raw", "[1, 1, -1, 4]"]),
    "no pixel": (changed(GOOD, shape=[1, 1, 0, 4], data=[]), ["raw", "[1, 1, 0, 4]"]),
    "no image": (changed(GOOD, shape=[0, 1, 3, 4], data=[]), ["raw", "[0, 1, 3, 4]"]),
    "shape with fractions": (changed(GOOD, shape=[1, 1, 3.5, 4]), ["inputs.0.shape"]),
    "shape of strings": (changed(GOOD, shape=["1", "1", "3", "4"]), ["inputs.0.shape"]),
    "shape a number": (changed(GOOD, shape=12), ["inputs.0.shape"]),
    "300 in 8 bits": (changed(WHOLE, data=[300] * 12), ["raw", "UINT8", "255", "300"]),
    "negative in unsigned": (changed(WHOLE, data=[-1] * 12), ["raw", "UINT8", "-1"]),
    "fractions in integers": (changed(WHOLE, data=[0.5] * 12), ["raw", "UINT8", "fractions"]),
    "beyond 64 bits": (changed(WHOLE, data=[10**30] * 12), ["raw"]),
    "too large for float32": (changed(GOOD, data=[1e300] * 12), ["raw", "12 of 12"]),
    "too large, declared FP64": (changed(GOOD, datatype="FP64", data=[1e300] * 12), ["raw", "12 of 12"]),
    "unknown output": ({"inputs": [GOOD], "outputs": [{"name": "masks"}]}, ["masks", "seg", "distance"]),
    "output without name": ({"inputs": [GOOD], "outputs": [{}]}, ["outputs.0.name"]),
    "outputs not a list": ({"inputs": [GOOD], "outputs": "seg"}, ["outputs"]),
    "parameters not an object": ({"inputs": [GOOD], "parameters": []}, ["parameters"]),
    "binary size without binary part": (
        changed(GOOD, data=DROPPED, parameters={"binary_data_size": 48}),
        ["raw", "48", "0 bytes"],
    ),
    "classes instead of values": (of_output(classification=3), ["seg", "classification"]),
    "an answer into shared memory": (of_output(shared_memory_region="a"), ["seg", "shared_memory_region"]),
    "an image in shared memory": (
        changed(GOOD, data=DROPPED, parameters={"shared_memory_region": "a", "shared_memory_byte_size": 48}),
        ["raw", "shared_memory_region"],
    ),
    "binary as text": (of_output(binary_data="false"), ["seg", "binary_data", "'false'"]),
    "all binary as text": (
        {"inputs": [GOOD], "parameters": {"binary_data_output": "false"}},
        ["binary_data_output", "'false'"],
    ),
    "a sequence": ({"inputs": [GOOD], "parameters": {"sequence_id": 7, "sequence_start": True}}, ["sequence_id"]),
    "Triton's timeout": ({"inputs": [GOOD], "parameters": {"timeout": 7}}, ["timeout", "timeout_s"]),
}
