"""KServe's data plane without its slow and its untrue parts.

KServe turns a binary tensor into a Python list and back (36 times the work for a 512 x 512 image), reads JSON with
pydantic, and calls a server ready that serves no model. This one keeps views of the received bytes.
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson
from kserve import InferInput, InferRequest
from kserve.constants.constants import INFERENCE_CONTENT_LENGTH_HEADER, PredictorProtocol
from kserve.errors import InvalidInput
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.infer_type import RequestedOutput
from pydantic import BaseModel, StrictInt, ValidationError

from serving.messages.files import FILE_BEGINNINGS, NPY_MAGIC, FileBody
from serving.messages.metadata import without_parameters

# What people send instead, by how it begins.
_BEGINNINGS = {
    b"II*\0": "a TIFF file",
    b"MM\0*": "a TIFF file",
    b"II+\0": "a TIFF file",  # beyond 4 GB
    b"MM\0+": "a TIFF file",
    b"\x89PNG": "a PNG file",
    b"\xff\xd8\xff": "a JPEG file",
    b"PK\x03\x04": "an .npz or another zip file",
    b"\x1f\x8b": "a gzip file",
    b"\x89HDF": "an HDF5 file",
    b"--": "a form, as curl -F sends it (use --data-binary)",
    NPY_MAGIC: "a .npy file",
}
_V1_ACCEPTS = (
    "Accepted are an image as numpy.save writes it (Content-Type application/x-npy), TIFF, PNG, JPEG and JSON "
    "(application/json)."
)
_V2_ACCEPTS = (
    "Accepted are JSON (Content-Type application/json), and JSON followed by binary tensors "
    f"(application/octet-stream, the length of the JSON part in the header {INFERENCE_CONTENT_LENGTH_HEADER})."
)


class InputHeader(BaseModel):
    """One tensor as the JSON part of a request describes it."""

    name: str
    shape: list[StrictInt]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: Any = None


class OutputHeader(BaseModel):
    """One requested output."""

    name: str
    parameters: dict[str, Any] | None = None


class RequestHeader(BaseModel):
    """The JSON part of a V2 request. Everything else in it is ignored, as the protocol asks."""

    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: list[InputHeader]
    outputs: list[OutputHeader] | None = None


class ImageDataPlane(DataPlane):
    """Decodes requests to arrays' bytes, and is ready only while every model is, and the server does not stop."""

    is_stopping = False

    def decode(
        self,
        body: bytes,
        headers: Mapping[str, str],
        protocol_version: str = PredictorProtocol.REST_V1.value,
        model_name: str | None = None,
    ) -> tuple[InferRequest | dict[str, Any] | FileBody, dict[str, Any]]:
        """The tensors of a V2 request; of a V1 request its JSON object, or its file."""
        if protocol_version == PredictorProtocol.REST_V2.value:
            return decode_tensors(body, headers, model_name or ""), {}
        if body.startswith(FILE_BEGINNINGS):
            return FileBody(body), {}
        return _json_object(body, headers, hint=_V1_ACCEPTS), {}

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """What the protocol has fields for, over gRPC too."""
        return without_parameters(self.get_model_from_registry(model_name).metadata())

    def metadata(self) -> dict[str, Any]:
        """What the server is. Versions of libraries are nobody's business; a model's metadata has the bundle's."""
        return {"name": "cyto-dl", "version": "", "extensions": ["model_repository", "binary_tensor_data"]}

    async def model_ready(self, model_name: str, disable_predictor_health_check: bool = False) -> bool:
        """Whether requests for a model should be sent here; those that come are answered as long as it listens."""
        return await super().model_ready(model_name, disable_predictor_health_check) and not self.is_stopping

    async def ready(self) -> bool:
        """Whether there is a model, and every model can predict."""
        models = self.model_registry.get_models().values()
        return not self.is_stopping and bool(models) and all([await model.healthy() for model in models])


def decode_tensors(body: bytes, headers: Mapping[str, str], model_name: str) -> InferRequest:
    """The tensors of a V2 REST request, binary ones as views of `body`.

    Raises:
        InvalidInput: The JSON is malformed, or the binary part is shorter or longer than the JSON says.
    """
    length = headers.get(INFERENCE_CONTENT_LENGTH_HEADER)
    start = len(body) if length is None else _header_length(length, body)
    hint = f"{INFERENCE_CONTENT_LENGTH_HEADER} says that the JSON part has {length} bytes." if length else _V2_ACCEPTS
    document = _json_object(body[:start], headers, hint=hint)
    try:
        header = RequestHeader.model_validate(document)
    except ValidationError as error:
        raise InvalidInput("; ".join(_explain(problem) for problem in error.errors()[:3])) from error
    return InferRequest(
        model_name,
        [
            InferInput(tensor.name, tensor.shape, tensor.datatype, data=tensor.data, parameters=tensor.parameters)
            for tensor in header.inputs
        ],
        header.id,
        raw_inputs=_binary_parts(header.inputs, memoryview(body)[start:]),
        parameters=header.parameters,
        request_outputs=[RequestedOutput(output.name, output.parameters) for output in header.outputs or []],
    )


def _header_length(text: str, body: bytes) -> int:
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) > len(body):
        raise InvalidInput(
            f"{INFERENCE_CONTENT_LENGTH_HEADER} is {text!r}; it must be the number of bytes of the JSON part, "
            f"at most the {len(body)} of the body"
        )
    return int(text)


def _json_object(text: bytes, headers: Mapping[str, str], *, hint: str) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        kind = next((kind for beginning, kind in _BEGINNINGS.items() if text.startswith(beginning)), None)
        found = f"looks like {kind}" if kind else f"is not JSON: {error if text else 'it is empty'}"
        sent_as = f", sent as {headers['content-type']}" if "content-type" in headers else ""
        raise InvalidInput(f"the body {found}{sent_as}. {hint}") from error
    if not isinstance(document, dict):
        raise InvalidInput(f"the body is a JSON {type(document).__name__}; it must be an object")
    return document


def _binary_parts(tensors: list[InputHeader], rest: memoryview) -> list[memoryview | None]:
    parts: list[memoryview | None] = []
    for tensor in tensors:
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is None:
            parts.append(None)
            continue
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise InvalidInput(f"{tensor.name}: binary_data_size is {size!r}; it must be a number of bytes")
        if tensor.data is not None:
            raise InvalidInput(f"{tensor.name}: has both data and binary_data_size; send one of them")
        if size > len(rest):
            raise InvalidInput(f"{tensor.name}: binary_data_size is {size}, but only {len(rest)} bytes follow")
        parts.append(rest[:size])
        rest = rest[size:]
    if rest:
        raise InvalidInput(f"{len(rest)} bytes follow after the last tensor; the sizes in the JSON part do not fit")
    return parts


def _explain(problem: Mapping[str, Any]) -> str:
    return f"{'.'.join(str(key) for key in problem['loc'])}: {problem['msg']}"
