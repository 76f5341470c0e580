"""Turn the heads' images into what the client asked for.

V2 REST    one tensor per head, [N, C, (Z), Y, X]; as JSON, or binary where `binary_data` (of an output) or
           `binary_data_output` (of the request) is true
V2 gRPC    the same, always in raw_output_contents
V1 JSON    {"predictions": [{head: nested list}, ...]}
V1 .npy    the head's image as .npy (application/x-npy); an .npz with one array per head (application/x-npz)
           where there are several
"""

import io
import uuid
from typing import Any

import numpy as np
import orjson
from kserve import InferOutput, InferRequest, InferResponse
from kserve.constants.constants import INFERENCE_CONTENT_LENGTH_HEADER
from kserve.protocol.infer_type import RequestedOutput
from kserve.utils.numpy_codec import from_np_dtype

from serving.requests import ImageRequest

Predictions = list[dict[str, np.ndarray]]  # per image: head -> C (Z) Y X


def write_response(
    request: ImageRequest, predictions: Predictions, *, model_name: str
) -> tuple[InferResponse | bytes, dict[str, str]]:
    """The answer to `request`: a gRPC message's content, or the REST body, and the HTTP headers."""
    if isinstance(request.payload, bytes):
        return _write_npy(predictions[0])
    if not isinstance(request.payload, InferRequest):
        return _to_json({"predictions": predictions}), {"content-type": "application/json"}
    outputs = {head: np.stack([prediction[head] for prediction in predictions]) for head in request.heads}
    if request.payload.from_grpc:
        return _write_grpc(request.payload, outputs, model_name), {}
    return _write_rest(request.payload, outputs, model_name)


def _write_npy(prediction: dict[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    file = io.BytesIO()
    if len(prediction) > 1:
        np.savez(file, **prediction)  # type: ignore[arg-type]  # numpy's stub takes a head for `allow_pickle`
        return file.getvalue(), {"content-type": "application/x-npz"}
    np.save(file, next(iter(prediction.values())))
    return file.getvalue(), {"content-type": "application/x-npy"}


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
