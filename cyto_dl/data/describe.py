"""Describe a python object by its content, so that equal transforms share cached results and changed ones do not."""

import enum
import functools
import hashlib
import inspect
import types
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import torch

from cyto_dl.errors import ConfigError


def describe(value: Any) -> Any:
    """Plain values that are equal for objects of equal content: class, its source code, and attributes.

    Raises:
        ConfigError: The content of an object is out of reach, so a change of it would go unnoticed.
    """
    return _describe(value, ())


def _describe(value: Any, parents: tuple[int, ...]) -> Any:
    if value is None or (isinstance(value, bool | int | float | str | bytes) and not isinstance(value, enum.Enum)):
        return value
    if id(value) in parents:
        return "itself"
    parents = (*parents, id(value))
    if isinstance(value, Mapping):
        return {repr(_describe(key, parents)): _describe(one, parents) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_describe(one, parents) for one in value]
    if isinstance(value, Set):
        return sorted(repr(_describe(one, parents)) for one in value)
    if isinstance(value, torch.Tensor):
        return _describe_array(value.detach().cpu().numpy())
    if isinstance(value, np.ndarray):
        return _describe_array(value)
    return _describe_object(value, parents)


def _describe_array(array: np.ndarray) -> list[Any]:
    if array.dtype == object:
        raise ConfigError("An array of python objects cannot be cached. Use numbers, or set data.cache_dir to null.")
    return [str(array.dtype), list(array.shape), hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()]


def _describe_object(value: Any, parents: tuple[int, ...]) -> Any:
    if isinstance(value, type):
        return [_name(value), _source(value)]
    if isinstance(value, functools.partial):
        return ["partial", *(_describe(part, parents) for part in (value.func, value.args, value.keywords))]
    if isinstance(value, types.MethodType):
        return [_name(value), _describe(value.__self__, parents)]
    if isinstance(value, types.FunctionType):
        return _describe_function(value, parents)
    if isinstance(value, enum.Enum):
        return [_name(type(value)), value.name]
    if hasattr(value, "__dict__"):
        kind: type = type(value)
        return [_name(kind), _source(kind), _describe(vars(value), parents)]
    if " at 0x" not in repr(value):
        return [_name(type(value)), repr(value)]
    raise ConfigError(
        f"The content of {value!r}, which a transform uses, cannot be told, so its results cannot be cached. "
        "Use another object, or set data.cache_dir to null."
    )


def _describe_function(function: types.FunctionType, parents: tuple[int, ...]) -> list[Any]:
    """A function by its code and everything that it carries along."""
    closure = [cell.cell_contents for cell in function.__closure__ or ()]
    carried = (function.__defaults__, function.__kwdefaults__, closure)
    return [_name(function), *_describe_code(function.__code__), _describe(carried, parents)]


def _describe_code(code: types.CodeType) -> list[Any]:
    constants = [_describe_code(one) if isinstance(one, types.CodeType) else repr(one) for one in code.co_consts]
    return [hashlib.sha256(code.co_code).hexdigest(), code.co_names, constants]


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


@functools.cache  # to find a class in its file takes 20 ms
def _source(kind: type) -> str:
    """The hash of a class's source code; classes without one (built in, typed at a prompt) go by their name."""
    try:
        return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()
    except (OSError, TypeError):
        return ""
