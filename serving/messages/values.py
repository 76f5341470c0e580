"""The numbers of an image as they come in JSON, in bytes or in a file: finite, and of at most 32 bits."""

from typing import Any

import numpy as np
from kserve.errors import InvalidInput


def check_values(array: np.ndarray, *, name: str) -> np.ndarray:
    """The array with finite numbers of at most 32 bits, which is what networks compute with.

    Raises:
        InvalidInput: Some are not finite.
    """
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        with np.errstate(over="ignore"):  # what overflows is infinite, and is refused as such
            array = array.astype(np.float32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():  # counting takes four times as long
        num_bad = int(array.size - np.isfinite(array).sum())
        raise InvalidInput(
            f"{name}: {num_bad} of {array.size} values are NaN, infinite or too large for float32; replace them"
        )
    return array


def to_array(values: Any, *, name: str) -> np.ndarray:
    """Nested lists as an array.

    Raises:
        InvalidInput: They are ragged, or hold something that is not a number.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InvalidInput(f"{name}: the nested lists do not have the shape of an array: {error}") from error
    if array.dtype.kind not in "iuf":
        raise InvalidInput(f"{name}: holds something that is not a number")
    return array


def as_dtype(array: np.ndarray, dtype: np.dtype, *, name: str, datatype: str) -> np.ndarray:
    """The numbers of a list in the datatype that it declares.

    Raises:
        InvalidInput: The datatype cannot hold them; they would wrap.
    """
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.dtype.kind == "f" or array.min() < limits.min or array.max() > limits.max:
            raise InvalidInput(
                f"{name}: {datatype} holds whole numbers from {limits.min} to {limits.max}; data has "
                f"{'fractions' if array.dtype.kind == 'f' else f'{array.min()} to {array.max()}'}"
            )
    with np.errstate(over="ignore"):  # as above
        return array.astype(dtype)
