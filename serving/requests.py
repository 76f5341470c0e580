"""Turn what a client sent into images, or say what is wrong with it.

    V2 tensor   [N, C, (Z), Y, X], named as the bundle's input; `outputs` names the heads     ─┐
    V1 JSON     {"instances": [image, ...], "outputs": ["head", ...]}, images as nested lists  ├─> ImageRequest
    V1 .npy     one image as numpy.save writes it; the header X-Outputs: head,head             ─┘

An image is C (Z) Y X with the numbers that the camera gave; normalisation is the bundle's. Without a choice of heads
all are computed. The V1 body is .npy if it begins like one, whatever its Content-Type; `serving.responses` says what
each of the three gets back. Everything is checked before the image waits for the predict thread.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from tokenize import TokenError
from typing import Any

import numpy as np
from kserve import InferInput, InferRequest
from kserve.errors import InvalidInput
from kserve.utils.numpy_codec import to_np_dtype

from cyto_dl.inference import InputSpec
from serving.limits import DEFAULTS, Limits

# What cameras and readers give. 64-bit integers and booleans are not intensities.
DATATYPES = ("UINT8", "UINT16", "UINT32", "INT8", "INT16", "INT32", "FP16", "FP32", "FP64")

# Version 3.0 is for the names of fields, which an image does not have.
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# What numpy lets through from the tokenizer and the literal parser on a damaged header.
NPY_HEADER_ERRORS = (KeyError, MemoryError, RecursionError, SyntaxError, TokenError, TypeError, ValueError)


@dataclass(frozen=True)
class ImageRequest:
    """The images of one request (each C (Z) Y X), the heads wanted for them, and the request itself."""

    images: list[np.ndarray]
    heads: list[str]
    payload: InferRequest | dict[str, Any] | bytes


def read_request(
    payload: InferRequest | dict[str, Any] | bytes,
    headers: Mapping[str, str],
    *,
    spec: InputSpec,
    heads: Sequence[str],
    limits: Limits = DEFAULTS,
) -> ImageRequest:
    """The images of a V2 request, a V1 JSON object or the bytes of a V1 .npy file.

    Args:
        payload: What the data plane decoded.
        headers: The HTTP headers, names in lower case.
        spec: The input that the bundle declares.
        heads: The heads that the bundle has.
        limits: Of the images' size.

    Raises:
        TooLarge: The images have too many voxels.
        InvalidInput: The request is wrong; the message names the tensor, what came and what is accepted.
    """
    if isinstance(payload, InferRequest):
        wanted = [output.name for output in payload.request_outputs or []]
        images = list(_read_tensor(payload.inputs, spec, limits))
    elif isinstance(payload, bytes):
        wanted = [name.strip() for name in headers.get("x-outputs", "").split(",") if name.strip()]
        images = [_read_npy(payload, spec, limits)]
    else:
        wanted = payload.get("outputs") or []
        images = _read_instances(payload, spec, limits)
    return ImageRequest(images, _choose_heads(wanted, heads), payload)


def _choose_heads(wanted: Any, heads: Sequence[str]) -> list[str]:
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise InvalidInput(f"outputs: a list of names is wanted, of {', '.join(heads)}")
    unknown = [name for name in wanted if name not in heads]
    if unknown:
        raise InvalidInput(f"outputs: there is no '{unknown[0]}'; this model gives {', '.join(heads)}")
    return list(dict.fromkeys(wanted)) or list(heads)


def _read_tensor(tensors: Sequence[InferInput], spec: InputSpec, limits: Limits) -> np.ndarray:
    """The one input tensor, N C (Z) Y X."""
    names = [tensor.name for tensor in tensors]
    if names != [spec.name]:
        raise InvalidInput(f"inputs: exactly one tensor named '{spec.name}' is wanted, got {names}")
    tensor = tensors[0]
    if tensor.datatype not in DATATYPES:
        raise InvalidInput(f"{spec.name}: datatype {tensor.datatype} is not one of {', '.join(DATATYPES)}")
    _check_shape(tensor.shape, spec, name=spec.name, leading="N")
    limits.check_voxels(tensor.shape, name=spec.name)
    array = _from_list(tensor.data, tensor) if tensor.data else _from_buffer(tensor)
    return _check_values(array, name=spec.name)


def _from_buffer(tensor: InferInput) -> np.ndarray:
    try:
        return tensor.as_numpy()  # a read-only view of what was received
    except (ValueError, OverflowError) as error:
        raise InvalidInput(
            f"{tensor.name}: shape {tensor.shape} needs {math.prod(tensor.shape)} {tensor.datatype} values: {error}"
        ) from error


def _from_list(values: Any, tensor: InferInput) -> np.ndarray:
    """A JSON or gRPC list as an array; numbers that `datatype` cannot hold are refused rather than wrapped."""
    array = _to_array(values, name=tensor.name)
    shape = tuple(tensor.shape)
    if array.shape != (math.prod(shape),) and array.shape != shape:
        raise InvalidInput(
            f"{tensor.name}: shape {list(shape)} needs {math.prod(shape)} values, flat or nested in that shape; "
            f"data has the shape {list(array.shape)}"
        )
    dtype = np.dtype(to_np_dtype(tensor.datatype))
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.dtype.kind == "f" or array.min() < limits.min or array.max() > limits.max:
            raise InvalidInput(
                f"{tensor.name}: {tensor.datatype} holds whole numbers from {limits.min} to {limits.max}; data has "
                f"{'fractions' if array.dtype.kind == 'f' else f'{array.min()} to {array.max()}'}"
            )
    with np.errstate(over="ignore"):  # what overflows is infinite, and is refused as such
        return array.astype(dtype).reshape(shape)


def _read_instances(body: Mapping[str, Any], spec: InputSpec, limits: Limits) -> list[np.ndarray]:
    """The images of a V1 JSON body; they may have different sizes."""
    instances = body.get("instances")
    if not isinstance(instances, list) or not instances:
        raise InvalidInput(
            f'the body must be {{"instances": [image, ...]}} with at least one image, a nested list of shape '
            f"{_wanted_shape(spec)}; its keys are {sorted(body)}"
        )
    images = []
    for index, instance in enumerate(instances):
        name = f"instances[{index}]"
        image = _to_array(instance, name=name)
        _check_shape(image.shape, spec, name=name)
        limits.check_voxels(image.shape, name=name)
        images.append(_check_values(image, name=name))
    return images


def _read_npy(body: bytes, spec: InputSpec, limits: Limits) -> np.ndarray:
    """The image in a .npy file, as a view; the header is read without unpickling anything."""
    file = io.BytesIO(body)
    try:
        shape, is_fortran, dtype = NPY_HEADERS[np.lib.format.read_magic(file)](file)
    except NPY_HEADER_ERRORS as error:
        raise InvalidInput(f".npy body: its header cannot be read ({error}). Write it with numpy.save.") from error
    if dtype.kind not in "iuf":
        raise InvalidInput(f".npy body: dtype {dtype} is not a whole or floating point number")
    if spec.num_channels == 1 and len(shape) == len(spec.axes) - 1:
        shape = (1, *shape)  # an image of one channel as it comes from a file
    _check_shape(shape, spec, name=".npy body")
    limits.check_voxels(shape, name=".npy body")
    num_bytes = math.prod(shape) * dtype.itemsize
    if len(body) - file.tell() != num_bytes:
        raise InvalidInput(
            f".npy body: shape {list(shape)} of {dtype} needs {num_bytes} bytes, but {len(body) - file.tell()} follow"
        )
    flat = np.frombuffer(body, dtype, offset=file.tell())
    image = flat.reshape(shape[::-1]).T if is_fortran else flat.reshape(shape)
    return _check_values(image.astype(dtype.newbyteorder("="), copy=False), name=".npy body")


def _to_array(values: Any, *, name: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InvalidInput(f"{name}: the nested lists do not have the shape of an array: {error}") from error
    if array.dtype.kind not in "iuf":
        raise InvalidInput(f"{name}: holds something that is not a number")
    return array


def _check_shape(shape: Sequence[int], spec: InputSpec, *, name: str, leading: str = "") -> None:
    channel_axis = 1 if leading else 0
    if (
        len(shape) != len(spec.axes) + channel_axis
        or any(size < 1 for size in shape)
        or shape[channel_axis] != spec.num_channels
    ):
        raise InvalidInput(
            f"{name}: shape {list(shape)} does not fit {_wanted_shape(spec, leading)}, all sizes at least 1 "
            f"({spec.num_channels} {'channel' if spec.num_channels == 1 else 'channels'})"
        )


def _wanted_shape(spec: InputSpec, leading: str = "") -> str:
    return f"[{', '.join([*leading, str(spec.num_channels), *spec.axes[1:]])}]"


def _check_values(array: np.ndarray, *, name: str) -> np.ndarray:
    """The array with finite numbers of at most 32 bits, which is what networks compute with."""
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    if array.dtype.kind == "f":
        num_bad = int(array.size - np.isfinite(array).sum())
        if num_bad:
            raise InvalidInput(
                f"{name}: {num_bad} of {array.size} values are NaN, infinite or too large for float32; replace them"
            )
    return array
