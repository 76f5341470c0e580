"""What the document at /openapi.json says of the bodies that our routes take.

The routes read bodies themselves, without a copy, so FastAPI cannot tell what is in them.
"""

from typing import Any

from serving.jobs.folder import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED
from serving.messages.media_types import JSON, NPY, TIFF
from serving.messages.requests import DATATYPES
from serving.references.transfer import FORMATS

_BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_TEXTS = {"type": "array", "items": {"type": "string"}}
_PARAMETERS = {"type": "object", "description": "Those of GET /v2/models/NAME, under parameters.request_parameters."}
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string", "description": "That of the model's input."},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "description": "N C (Z) Y X"},
        "datatype": {"enum": list(DATATYPES)},
        "data": {"type": "array", "items": {"type": "number"}, "description": "Flat, or nested in the shape."},
        "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer", "minimum": 0}}},
    },
}
_OUTPUT = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "description": "A head."},
        "parameters": {"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
    },
}
_TENSORS = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 1},
        "outputs": {"type": "array", "items": _OUTPUT},
        "parameters": _PARAMETERS,
    },
}
_INSTANCES = {
    "type": "object",
    "required": ["instances"],
    "properties": {
        "instances": {"type": "array", "items": {"type": "array"}, "minItems": 1, "description": "Images, C (Z) Y X."},
        "outputs": _TEXTS | {"description": "Heads."},
        "parameters": _PARAMETERS,
    },
}


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "description": description}


INFER: dict[str, Any] = {
    "requestBody": {"required": True, "content": {JSON: {"schema": _TENSORS}, "application/octet-stream": _BYTES}},
    "parameters": [_header("Inference-Header-Content-Length", "Bytes of JSON before binary tensors.")],
}
PREDICT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": _INSTANCES},
            **dict.fromkeys((NPY, "image/tiff", "image/png", "image/jpeg"), _BYTES),
        },
    },
    "parameters": [_header("X-Outputs", "Heads for a file, separated by commas.")],
}

_JOB_REQUEST = {
    "type": "object",
    "required": ["image_uri"],
    "properties": {
        "image_uri": {
            "type": "string",
            "description": "Where the operator allows to read: s3://..., file:///..., /...",
        },
        "output_uri": {"type": "string", "description": "Folder for the results; else they are fetched from here."},
        "format": {"enum": list(FORMATS)},
        "outputs": _TEXTS | {"description": "Heads."},
        "parameters": _PARAMETERS,
    },
    "additionalProperties": False,
}
_NUMBER, _COUNT = {"type": "number"}, {"type": "integer", "minimum": 0}
_RESULT = {
    "type": "object",
    "required": ["name", "uri"],
    "properties": {"name": {"type": "string"}, "uri": {"type": "string"}},
}
_JOB = {
    "type": "object",
    "required": ["id", "model_name", "state", "progress", "outputs"],
    "properties": {
        "id": {"type": "string"},
        "model_name": {"type": "string"},
        "state": {"enum": [QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED]},
        "created": _NUMBER,
        "changed": _NUMBER,
        "progress": {"type": "object", "properties": {"windows": _COUNT, "of": _COUNT | {"type": ["integer", "null"]}}},
        "seconds": _NUMBER,
        "outputs": {"type": "array", "items": _RESULT},
        "error": {"type": "string"},
    },
}
_JOBS = {"type": "object", "required": ["jobs"], "properties": {"jobs": {"type": "array", "items": _JOB}}}


def _answers(status: str, description: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"responses": {status: {"description": description, "content": content}}}


SUBMIT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {JSON: {"schema": _JOB_REQUEST}} | dict.fromkeys((NPY, TIFF, "image/png", "image/jpeg"), _BYTES),
    },
    "parameters": [
        _header("X-Outputs", "Heads for a file, separated by commas."),
        _header("X-Job-Id", "32 hexadecimal digits, drawn by the client: who asks again with them gets the same job."),
    ],
    **_answers("202", "Taken; Location says where it is.", {JSON: {"schema": _JOB}}),
}
JOBS = _answers("200", "All jobs of the model, the oldest first.", {JSON: {"schema": _JOBS}})
JOB = _answers("200", "The job as it is now.", {JSON: {"schema": _JOB}})
RESULT = _answers("200", "An OME-TIFF.", {TIFF: _BYTES})
