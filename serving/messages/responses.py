"""Turn the heads' images into what the client asked for.

V2 REST    one tensor per head, [N, C, (Z), Y, X]; as JSON, or binary where `binary_data` (of an output) or
           `binary_data_output` (of the request) is true
V2 gRPC    the same, always in raw_output_contents
V1 JSON    {"predictions": [{head: nested list}, ...]}
V1 file    a file: `serving.messages.media_types`

Binary labels (V2 REST, .npy) are sent as gzip to clients that take it: they shrink to a few hundredths.
"""

import gzip
import uuid
from collections.abc import Collection
from typing import Any

import numpy as np
import orjson
from kserve import InferOutput, InferRequest, InferResponse
from kserve.constants.constants import INFERENCE_CONTENT_LENGTH_HEADER
from kserve.protocol.infer_type import RequestedOutput
from kserve.utils.numpy_codec import from_np_dtype

from cyto_dl.data.image import Image
from cyto_dl.inference.batch import spacing_of
from serving.messages.files import FileBody
from serving.messages.media_types import JSON, NPY, write_file
from serving.messages.requests import ImageRequest

Predictions = list[dict[str, np.ndarray]]  # per image: head -> C (Z) Y X
Answer = tuple[InferResponse | bytes, dict[str, str]]
_LEAST_GZIP_BYTES = 2**16  # below, a packet or two more cost less than packing
_FAST = 1  # gzip's level: labels are so repetitive that more effort gains little


def write_response(
    request: ImageRequest, predictions: Predictions, *, model_name: str, labels: Collection[str] = ()
) -> Answer:
    """The answer to `request`: a gRPC message's content, or the REST body, and the HTTP headers.

    Args:
        request: That is answered.
        predictions: Of its images.
        model_name: For V2.
        labels: Heads whose images are labels.
    """
    if isinstance(request.payload, FileBody) and request.media_type != JSON:
        body, headers = _write_file(request.images[0], predictions[0], request.media_type, labels)
        return _packed(body, headers, request, labels) if request.media_type == NPY else (body, headers)
    if not isinstance(request.payload, InferRequest):
        return _to_json({"predictions": predictions}), {"content-type": JSON}
    outputs = {head: np.stack([prediction[head] for prediction in predictions]) for head in request.heads}
    if request.payload.from_grpc:
        return _write_grpc(request.payload, outputs, model_name), {}
    body, headers = _write_rest(request.payload, outputs, model_name)
    is_binary = INFERENCE_CONTENT_LENGTH_HEADER in headers
    return _packed(body, headers, request, labels) if is_binary else (body, headers)


def _write_file(
    image: Image, prediction: dict[str, np.ndarray], media_type: str, labels: Collection[str]
) -> tuple[bytes, dict[str, str]]:
    first = next(iter(prediction.values()))
    spacing_um = spacing_of(first, image.array, image.spacing_um)
    body = write_file(prediction, media_type, spacing_um=spacing_um, labels=labels)
    return body, {"content-type": media_type}


def _packed(body: bytes, headers: dict[str, str], request: ImageRequest, labels: Collection[str]) -> Answer:
    """The body as gzip where that is worth its time."""
    if not set(request.heads) <= set(labels) or len(body) < _LEAST_GZIP_BYTES:
        return body, headers
    headers = headers | {"vary": "Accept-Encoding"}
    if not request.takes_gzip:
        return body, headers
    return gzip.compress(body, _FAST), headers | {"content-encoding": "gzip"}


def _write_grpc(request: InferRequest, outputs: dict[str, np.ndarray], model_name: str) -> InferResponse:
    tensors = []
    for head, array in outputs.items():
        tensor = InferOutput(head, list(array.shape), from_np_dtype(array.dtype))
        tensor.set_data_from_numpy(array, binary_data=True)
        tensors.append(tensor)
    return InferResponse(_id(request), model_name, tensors)


def _write_rest(request: InferRequest, outputs: dict[str, np.ndarray], model_name: str) -> tuple[bytes, dict[str, str]]:
    requested = {output.name: output for output in request.request_outputs or []}
    tensors, binary = [], []
    for head, array in outputs.items():
        tensor: dict[str, Any] = {"name": head, "shape": array.shape, "datatype": from_np_dtype(array.dtype)}
        if _is_binary(requested.get(head), request):
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            binary.append(array.data.cast("B"))
        else:
            tensor["data"] = array.ravel()
        tensors.append(tensor)
    header = _to_json({"id": _id(request), "model_name": model_name, "outputs": tensors})
    if not binary:
        return header, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", INFERENCE_CONTENT_LENGTH_HEADER: str(len(header))}
    return b"".join([header, *binary]), headers


def _is_binary(requested: RequestedOutput | None, request: InferRequest) -> bool:
    if requested is not None and requested.binary_data is not None:
        return bool(requested.binary_data)
    return bool((request.parameters or {}).get("binary_data_output", False))


def _id(request: InferRequest) -> str:
    return request.id or str(uuid.uuid4())


def _to_json(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
