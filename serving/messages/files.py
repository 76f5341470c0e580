"""The image in a V1 body that is a file: .npy, TIFF (also OME, ImageJ), PNG or JPEG, whatever its Content-Type says.

    .npy                 the numbers as they are, C (Z) Y X or as `axes` says; where the bundle picks channels or a
                         plane of its files, it picks them here as well
    TIFF, PNG, JPEG      what `cyto-dl predict` reads of the same file: channels, plane, scene, pixel size

Nothing is unpickled, nothing is written to the disk, and a header that promises more voxels than the server takes is
refused before anything is decoded.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from tokenize import TokenError

import numpy as np
from kserve.errors import InvalidInput

from cyto_dl.data.formats import BEGINNINGS, FileInMemory, TooManyValuesError
from cyto_dl.data.image import Image, select_array
from cyto_dl.errors import ImageError
from cyto_dl.inference import Predictor
from serving.errors import TooLarge
from serving.limits import Limits
from serving.messages.axes import axes_of, in_order
from serving.messages.parameters import Asked
from serving.messages.values import check_values

NPY_MAGIC = b"\x93NUMPY"
FILE_BEGINNINGS = (NPY_MAGIC, *BEGINNINGS)

# Version 3.0 is for the names of fields, which an image does not have.
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# What numpy lets through from the tokenizer and the literal parser on a damaged header.
NPY_HEADER_ERRORS = (KeyError, MemoryError, RecursionError, SyntaxError, TokenError, TypeError, ValueError)
_NPY = ".npy body"  # what messages call it


@dataclass(frozen=True)
class FileBody:
    """A body that is a file, and the parameters in the request's address."""

    content: bytes
    parameters: Mapping[str, str] = field(default_factory=dict)


def read_file(content: bytes, asked: Asked, *, predictor: Predictor, limits: Limits, name: str = "the body") -> Image:
    """The image in the content of a file, which messages call `name`.

    Raises:
        InvalidInput: It is damaged, or holds another kind of image than the model takes.
        TooLarge: It has too many voxels, by its header.
    """
    try:
        if content.startswith(NPY_MAGIC):
            image = _read_npy(content, asked, predictor=predictor, limits=limits)
        else:
            image = _read_picture(FileInMemory(content, name, max_values=limits.voxels), asked, predictor)
    except TooManyValuesError as error:
        raise TooLarge(str(error)) from error
    except ImageError as error:
        raise InvalidInput(str(error)) from error
    return replace(image, spacing_um=asked.spacing_um or image.spacing_um or predictor.input.spacing_um)


def _read_picture(file: FileInMemory, asked: Asked, predictor: Predictor) -> Image:
    if asked.axes is not None:
        raise InvalidInput("parameters: axes: this file says itself what its axes are; leave the parameter out")
    return predictor.read(file)


def _read_npy(content: bytes, asked: Asked, *, predictor: Predictor, limits: Limits) -> Image:
    spec = predictor.input
    picked = {key: spec.load[key] for key in ("channels", "z") if spec.load.get(key) is not None}
    array = _view(content, limits)
    if picked and asked.axes is None:
        image = select_array(array, name=_NPY, spatial_dims=spec.spatial_dims, **picked)
        return predictor.checked(replace(image, array=check_values(image.array, name=_NPY)))
    axes = axes_of(array.shape, spec, name=_NPY, batch=False, asked=asked.axes)
    return Image(check_values(in_order(array, axes, spec, batch=False), name=_NPY), None, _NPY)


def _view(content: bytes, limits: Limits) -> np.ndarray:
    """The array in a .npy file, as a view; the header is read without unpickling anything."""
    file = io.BytesIO(content)
    try:
        shape, is_fortran, dtype = NPY_HEADERS[np.lib.format.read_magic(file)](file)
    except NPY_HEADER_ERRORS as error:
        raise InvalidInput(f"{_NPY}: its header cannot be read. Write it with numpy.save.") from error
    if dtype.kind not in "iuf":
        raise InvalidInput(f"{_NPY}: dtype {dtype} is not a whole or floating point number")
    if any(size < 1 for size in shape):
        raise InvalidInput(f"{_NPY}: shape {list(shape)} has no pixel; all sizes must be at least 1")
    limits.check_voxels(shape, name=_NPY)
    num_bytes, rest = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
    if rest != num_bytes:
        raise InvalidInput(f"{_NPY}: shape {list(shape)} of {dtype} needs {num_bytes} bytes, but {rest} follow")
    flat = np.frombuffer(content, dtype, offset=file.tell())
    array = flat.reshape(shape[::-1]).T if is_fortran else flat.reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)
