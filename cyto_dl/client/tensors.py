"""Images as V2 tensors and back: what goes over the wire, whichever protocol carries it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cyto_dl.client.patience import EndpointError
from cyto_dl.errors import ImageError

DTYPES = {
    "BOOL": np.dtype("?"),
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Question:
    """One prediction that is asked for.

    Args:
        name: Of the input.
        batch: N C (Z) Y X with one image, as `sendable` makes it.
        heads: That are wanted; empty: all.
        parameters: Of the request.
    """

    name: str
    batch: np.ndarray
    heads: Sequence[str] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def datatype(self) -> str:
        """Of the batch, in the protocol's words."""
        return _DATATYPES[self.batch.dtype]


def sendable(array: np.ndarray) -> np.ndarray:
    """The array contiguous, with numbers of at most 32 bits, which is what servers take and networks compute with.

    Raises:
        ImageError: It holds something else than numbers, or numbers of more bits.
    """
    if array.dtype.kind not in "buif":
        raise ImageError(f"the image is of type {array.dtype}; whole or floating point numbers are wanted.")
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    elif array.dtype.kind == "f" and array.dtype.itemsize > 4:
        with np.errstate(over="ignore"):  # what overflows is infinite, and the server refuses it as such
            array = array.astype(np.float32)
    elif array.dtype.itemsize > 4:
        array = _in_32_bits(array)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def array_of(name: str, datatype: str, shape: Sequence[int], content: bytes | memoryview) -> np.ndarray:
    """One image C (Z) Y X of an answer's tensor N C (Z) Y X.

    Raises:
        EndpointError: The bytes are not those of the tensor.
    """
    dtype = DTYPES.get(datatype)
    if dtype is None or len(shape) < 2 or shape[0] != 1 or int(np.prod(shape)) * dtype.itemsize != len(content):
        raise EndpointError(
            f"the server's answer cannot be understood: {name} is {datatype} {list(shape)} with {len(content)} bytes"
        )
    return np.frombuffer(content, dtype).reshape(tuple(shape)[1:]).copy()  # one that may be written to


def _in_32_bits(array: np.ndarray) -> np.ndarray:
    smaller = np.dtype(np.int32 if array.size and array.min() < 0 else np.uint32)
    limits = np.iinfo(smaller)
    if array.size and not limits.min <= array.min() <= array.max() <= limits.max:
        raise ImageError(f"the image has whole numbers up to {array.max()}; at most those of 32 bits are taken.")
    return array.astype(smaller)
