"""Turn what a client sent into images, or say what is wrong with it.

    V2 tensor   [N, C, (Z), Y, X], named as the bundle's input; `outputs` names the heads     ─┐
    V1 JSON     {"instances": [image, ...], "outputs": ["head", ...]}, images as nested lists  ├─> ImageRequest
    V1 file     .npy, TIFF, PNG (`serving.messages.files`); the header X-Outputs: head,head    ─┘

An image is C (Z) Y X with the numbers that the camera gave; normalisation is the bundle's. Without a choice of heads
all are computed. `axes` says which other orders are taken, `parameters` what may be asked beside, and
`responses` what each of the three gets back. Everything is checked before anything is computed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from kserve import InferInput, InferRequest
from kserve.errors import InvalidInput, ModelNotFound
from kserve.utils.numpy_codec import to_np_dtype

from cyto_dl.data.image import Image
from cyto_dl.inference import InputSpec, Predictor
from serving.limits import DEFAULTS, Limits
from serving.messages.axes import accepted_axes, axes_of, in_order, in_words
from serving.messages.files import FileBody, read_file
from serving.messages.media_types import choose_media_type
from serving.messages.parameters import Asked, check_tensor_parameters, read_asked
from serving.messages.values import as_dtype, check_values, to_array

# What cameras and readers give. 64-bit integers and booleans are not intensities.
DATATYPES = ("UINT8", "UINT16", "UINT32", "INT8", "INT16", "INT32", "FP16", "FP32", "FP64")

Payload: TypeAlias = InferRequest | dict[str, Any] | FileBody


@dataclass(frozen=True)
class ImageRequest:
    """One request, understood.

    Args:
        images: Each C (Z) Y X.
        heads: That are wanted, in this order.
        asked: Its parameters.
        payload: The request itself.
        media_type: Of the answer to a file.
        takes_gzip: Whether the client unpacks a compressed body.
    """

    images: list[Image]
    heads: list[str]
    asked: Asked
    payload: Payload
    media_type: str = "application/json"
    takes_gzip: bool = False


def read_request(
    payload: Payload, headers: Mapping[str, str], *, predictor: Predictor, limits: Limits = DEFAULTS
) -> ImageRequest:
    """The images of a V2 request, a V1 JSON object or a V1 file, and what is asked of them.

    Args:
        payload: What the data plane decoded.
        headers: The HTTP headers, names in lower case.
        predictor: That is to predict.
        limits: Of the images' size.

    Raises:
        TooLarge: The images have too many voxels.
        NotAcceptable: The answer does not come in any format that the client takes.
        InvalidInput: The request is wrong; the message names the tensor, what came and what is accepted.
        ModelNotFound: A version was asked for.
    """
    known = list(predictor.outputs)
    takes_gzip = "gzip" in headers.get("accept-encoding", "")
    if isinstance(payload, InferRequest):
        if payload.model_version:
            raise ModelNotFound(f"{payload.model_name} (version {payload.model_version})")
        for tensor in (*payload.inputs, *(payload.request_outputs or [])):
            check_tensor_parameters(tensor.parameters, name=tensor.name)
        heads = choose_heads([output.name for output in payload.request_outputs or []], known)
        asked = read_asked(payload.parameters, predictor, limits)
        images = _as_images(_read_tensor(payload.inputs, predictor.input, limits, asked), predictor, asked)
        return ImageRequest(images, heads, asked, payload, takes_gzip=takes_gzip)
    if isinstance(payload, FileBody):
        wanted = [name.strip() for name in headers.get("x-outputs", "").split(",") if name.strip()]
        heads = choose_heads(wanted, known)
        media_type = choose_media_type(headers.get("accept", ""), {head: predictor.outputs[head] for head in heads})
        asked = read_asked(payload.parameters, predictor, limits)
        image = read_file(payload.content, asked, predictor=predictor, limits=limits)
        return ImageRequest([image], heads, asked, payload, media_type, takes_gzip)
    heads = choose_heads(payload.get("outputs") or [], known)
    asked = read_asked(payload.get("parameters"), predictor, limits)
    images = _as_images(_read_instances(payload, predictor.input, limits, asked), predictor, asked)
    return ImageRequest(images, heads, asked, payload)


def _as_images(arrays: Sequence[np.ndarray], predictor: Predictor, asked: Asked) -> list[Image]:
    spec = predictor.input
    return [Image(array, asked.spacing_um or spec.spacing_um, spec.name) for array in arrays]


def choose_heads(wanted: Any, heads: Sequence[str]) -> list[str]:
    """The heads that a request names, or all.

    Raises:
        InvalidInput: There is no such head.
    """
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise InvalidInput(f"outputs: a list of names is wanted, of {', '.join(heads)}")
    unknown = [name for name in wanted if name not in heads]
    if unknown:
        raise InvalidInput(f"outputs: there is no '{unknown[0]}'; this model gives {', '.join(heads)}")
    return list(dict.fromkeys(wanted)) or list(heads)


def _read_tensor(tensors: Sequence[InferInput], spec: InputSpec, limits: Limits, asked: Asked) -> Sequence[np.ndarray]:
    """The images of the one input tensor, each C (Z) Y X."""
    names = [tensor.name for tensor in tensors]
    if names != [spec.name]:
        raise InvalidInput(f"inputs: exactly one tensor named '{spec.name}' is wanted, got {names}")
    tensor = tensors[0]
    if tensor.datatype not in DATATYPES:
        raise InvalidInput(f"{spec.name}: datatype {tensor.datatype} is not one of {', '.join(DATATYPES)}")
    axes = axes_of(tensor.shape, spec, name=spec.name, batch=True, asked=asked.axes)
    limits.check_voxels(tensor.shape, name=spec.name)
    array = _from_list(tensor.data, tensor) if tensor.data else _from_buffer(tensor)
    return list(in_order(check_values(array, name=spec.name), axes, spec, batch=True))


def _from_buffer(tensor: InferInput) -> np.ndarray:
    try:
        return tensor.as_numpy()  # a read-only view of what was received
    except (ValueError, OverflowError) as error:
        raise InvalidInput(
            f"{tensor.name}: shape {tensor.shape} needs {math.prod(tensor.shape)} {tensor.datatype} values: {error}"
        ) from error
    except TypeError as error:  # numpy's, of a list that is None
        raise InvalidInput(
            f"{tensor.name}: shape {tensor.shape} needs {math.prod(tensor.shape)} {tensor.datatype} values, and none "
            "came: send data, or bytes and their binary_data_size"
        ) from error


def _from_list(values: Any, tensor: InferInput) -> np.ndarray:
    """A JSON or gRPC list as an array."""
    array = to_array(values, name=tensor.name)
    shape = tuple(tensor.shape)
    if array.shape != (math.prod(shape),) and array.shape != shape:
        raise InvalidInput(
            f"{tensor.name}: shape {list(shape)} needs {math.prod(shape)} values, flat or nested in that shape; "
            f"data has the shape {list(array.shape)}"
        )
    dtype = np.dtype(to_np_dtype(tensor.datatype))
    return as_dtype(array, dtype, name=tensor.name, datatype=tensor.datatype).reshape(shape)


def _read_instances(body: Mapping[str, Any], spec: InputSpec, limits: Limits, asked: Asked) -> list[np.ndarray]:
    """The images of a V1 JSON body; they may have different sizes."""
    instances = body.get("instances")
    if not isinstance(instances, list) or not instances:
        raise InvalidInput(
            '{"instances": [image, ...]} is wanted with at least one image, a nested list of the shape '
            f"{' or '.join(in_words(axes, spec) for axes in accepted_axes(spec, batch=False))}; the body's keys are "
            f"{sorted(body)}"
        )
    images, num_voxels = [], 0
    for index, instance in enumerate(instances):
        name = f"instances[{index}]"
        array = to_array(instance, name=name)
        axes = axes_of(array.shape, spec, name=name, batch=False, asked=asked.axes)
        num_voxels += array.size
        limits.check_voxels((num_voxels,), name="instances")
        images.append(in_order(check_values(array, name=name), axes, spec, batch=False))
    return images
