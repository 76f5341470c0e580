"""What the document at /openapi.json says of the bodies that our routes take.

The routes read bodies themselves, without a copy, so FastAPI cannot tell what is in them.
"""

from typing import Any

from serving.messages.media_types import JSON, NPY
from serving.messages.requests import DATATYPES

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
