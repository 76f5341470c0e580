"""What the types in a signature say of the values that an experiment gives.

signature of ours ----> a value is of the type, or is refused
signature of others --> only text is refused, where nothing but numbers is taken: much code takes more than it says
"""

import contextlib
import inspect
import json
import pydoc
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# Whose signature says what a class takes beyond its own, and is as exact
_PASSES_ON = {"cyto_dl.data.datamodule.DataframeDatamodule": "torch.utils.data.DataLoader"}

_IN_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
_PLURALS = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts", "a mapping": "mappings"}
_LISTS = (list, tuple, Collection, Iterable, Sequence)
_NO_TEXT = (int, float, bool, NoneType)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a class or a function: `package` is whose annotation it is."""

    annotation: Any
    default: Any
    package: str

    def takes(self, value: Any) -> bool:
        """Whether a value as YAML gives it can be meant; where an annotation of others leaves a doubt, it can."""
        if self.package == "cyto_dl":
            return is_of(self.annotation, value) or value == self.default
        return not self._refuses_text(value)

    def _refuses_text(self, value: Any) -> bool:
        """Whether there is text in a value, and the parameter is known to take none.

        Annotations of numbers whose default is None often hide that text has a meaning too, as `padding: same`, and
        many choices may be written in capitals as well; Lightning's are exact.
        """
        exact = self.package == "lightning"
        if self.default is None and not exact:
            return False
        leaves = set(_leaves(self.annotation))
        choices = {leaf for leaf in leaves if get_origin(leaf) is Literal} if exact else set()
        if not all(leaf in _NO_TEXT or leaf in choices or _is_array(leaf) for leaf in leaves):
            return False
        allowed = [choice for leaf in choices for choice in get_args(leaf)]
        return any(text not in allowed for text in _texts(value))


def parameters(target: str) -> dict[str, Parameter]:
    """The parameters of a class or a function, by name; none where its dotted name cannot be imported."""
    try:
        found: Any = pydoc.locate(target)
        signature = inspect.signature(found)
    except (pydoc.ErrorDuringImport, TypeError, ValueError):  # explained when the object is built
        return {}
    function = inspect.unwrap(found.__init__ if inspect.isclass(found) else found)
    names = getattr(function, "__globals__", {})
    package = (getattr(found, "__module__", None) or "").partition(".")[0]
    own = {
        name: Parameter(_resolved(parameter.annotation, names), parameter.default, package)
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    further = _PASSES_ON.get(f"{found.__module__}.{found.__qualname__}") if package == "cyto_dl" else None
    passed = parameters(further) if further else {}
    return {name: Parameter(each.annotation, each.default, package) for name, each in passed.items()} | own


def is_of(annotation: Any, value: Any) -> bool:
    """Whether a value as YAML gives it is what an annotation asks for."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

    takes_arrays = any(_is_array(each) for each in _members(annotation))
    if _holds_objects(value) or (takes_arrays and isinstance(value, list | int | float)):
        return True
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except (PydanticUserError, PydanticUndefinedAnnotation):  # a kind of annotation that it does not know
        return True
    # In JSON a list is a tuple too, and the text "10" is no number. Some classes are only known as Python's objects.
    for accepts in (
        lambda: adapter.validate_json(json.dumps(value), strict=True),
        lambda: adapter.validate_python(value, strict=True),
    ):
        with contextlib.suppress(ValidationError):
            accepts()
            return True
    return False


def in_words(annotation: Any) -> str:
    """What an annotation accepts, for a scientist, e.g. "a whole number or null"."""
    members = _members(annotation)
    choices = [str(value) for each in members if get_origin(each) is Literal for value in get_args(each)]
    said = [f"one of {', '.join(dict.fromkeys(choices))}"] if choices else []
    # an array is written as numbers; other objects cannot be written, and are named only where nothing else is taken
    said += ["numbers"] if any(_is_array(each) for each in members) and not {int, float} & set(members) else []
    said += [_one_in_words(each) for each in members if not (each is int and float in members)]
    return " or ".join(dict.fromkeys(each for each in said if each)) or inspect.formatannotation(annotation)


def _one_in_words(member: Any) -> str:
    origin, arguments = get_origin(member) or member, get_args(member)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping to {in_words(arguments[1])}" if arguments and arguments[1] is not Any else "a mapping"
    if origin in _LISTS:
        inner = " or ".join(dict.fromkeys(in_words(each) for each in arguments if each is not Ellipsis))
        return f"a list of {_PLURALS.get(inner, inner)}" if inner else "a list"
    return _IN_WORDS.get(member, "")


def _resolved(annotation: Any, names: dict[str, Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"it": annotation}), names)["it"]
    except (NameError, AttributeError, TypeError, SyntaxError):  # a name that only a type checker imports
        return Any


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, unions inside it opened; an annotation that is none, alone."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(each for member in get_args(annotation) for each in _members(member))
    return (annotation,)


def _leaves(annotation: Any) -> Iterator[Any]:
    """What a union is of and lists are of, at any depth; a list that does not say what it holds stays a list."""
    for member in _members(annotation):
        arguments = [each for each in get_args(member) if each is not Ellipsis]
        if (get_origin(member) or member) in _LISTS and arguments:
            for each in arguments:
                yield from _leaves(each)
        else:
            yield member


def _is_array(member: Any) -> bool:
    """Whether this is an array or a tensor, which are made of numbers and lists."""
    kind = get_origin(member) or member
    module, name = getattr(kind, "__module__", ""), getattr(kind, "__name__", "")
    return (module.partition(".")[0], name) in {("numpy", "ndarray"), ("torch", "Tensor")}


def _texts(value: Any) -> Iterator[str]:
    """The text in a value, also in its lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _holds_objects(value: Any) -> bool:
    """Whether something in a value is an object already, or will be one (`_target_`)."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(_holds_objects(each) for each in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_objects(each) for each in value)
    return not isinstance(value, str | int | float | bool | None)
