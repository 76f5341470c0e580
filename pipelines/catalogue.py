"""The pipelines that exist, and how their arguments are written on a command line."""

import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cyto_dl.errors import ConfigError, list_problems

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

# A pipeline is the function of this name in the module of this name: pipelines/training.py defines `training`.
PIPELINES = ("training", "sweep", "batch_prediction")

# Arguments that do nothing without another one: a condition in the pipeline would leave out their step without a word.
_NEEDS = {"deploy_target": "model_name"}


def load_pipeline(name: str) -> "BaseComponent":
    """The pipeline called `name`.

    Raises:
        ConfigError: There is none; lists those that exist.
    """
    if name not in PIPELINES:
        raise ConfigError(f"there is no pipeline '{name}'. Pipelines: {', '.join(PIPELINES)}.")
    pipeline: BaseComponent = getattr(importlib.import_module(f"pipelines.{name}"), name)
    return pipeline


def describe(pipeline: "BaseComponent") -> str:
    """A pipeline's purpose and its arguments with type, default and meaning, as text."""
    lines = [pipeline.description or ""]
    for name, spec in _inputs(pipeline).items():
        default = json.dumps(pipeline.component_spec.inputs[name].default)
        lines.append(f"  {name}  ({_type_name(spec)}, {f'default {default}' if spec.is_optional else 'required'})")
        lines.append(f"      {' '.join(spec.description.split())}")
    return "\n".join(lines)


def parse_arguments(pipeline: "BaseComponent", words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as the pipeline's arguments, each of the type that the pipeline declares.

    Lists and mappings are written as JSON: target_cols='["nuclei"]'.

    Raises:
        ConfigError: Unknown or missing arguments, values of another type, arguments that do nothing without another
            one; all problems at once.
    """
    inputs = _inputs(pipeline)
    arguments: dict[str, Any] = {}
    problems = []
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            problems.append(f"'{word}': write name=value")
        elif name not in inputs:
            problems.append(f"'{name}': no such argument")
        elif name in arguments:
            problems.append(f"'{name}': given twice")
        else:
            try:
                arguments[name] = _parse(inputs[name], text)
            except ValueError:
                problems.append(f"'{name}': {text!r} is not {_type_name(inputs[name])}")
    given = {word.partition("=")[0] for word in words}
    problems += [f"'{name}': required" for name, spec in inputs.items() if not spec.is_optional and name not in given]
    for name, other in _NEEDS.items():
        if arguments.get(name) and not arguments.get(other):
            problems.append(f"'{name}': does nothing without '{other}'; give that too")
    if problems:
        names = ", ".join(f"{name} ({_type_name(spec)})" for name, spec in inputs.items())
        raise ConfigError(f"arguments of the pipeline:\n{list_problems(problems)}\nArguments: {names}.")
    return arguments


def _inputs(pipeline: "BaseComponent") -> Mapping[str, Any]:
    """The pipeline's parameters as protobuf describes them, in the order of its signature."""
    parameters = pipeline.pipeline_spec.root.input_definitions.parameters
    return {name: parameters[name] for name in pipeline.component_spec.inputs or ()}


def _type_of(spec: Any) -> str:
    from kfp.pipeline_spec.pipeline_spec_pb2 import ParameterType

    return ParameterType.ParameterTypeEnum.Name(spec.parameter_type)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # KFP's messages hold no NaN and no infinity
        raise ValueError(text)
    return number


def _json_of(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = json.loads(text, parse_constant=_number)
        if not isinstance(value, kind):
            raise ValueError(text)
        return value

    return parse


# What KFP calls a type: what a user calls it, and how it is read.
_TYPES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "STRING": ("text", str),
    "NUMBER_INTEGER": ("an integer", int),
    "NUMBER_DOUBLE": ("a number", _number),
    "BOOLEAN": ("true or false", _boolean),
    "LIST": ("a list as JSON", _json_of(list)),
    "STRUCT": ("a mapping as JSON", _json_of(dict)),
}


def _type_name(spec: Any) -> str:
    return _TYPES[_type_of(spec)][0]


def _parse(spec: Any, text: str) -> Any:
    return _TYPES[_type_of(spec)][1](text)
