"""Refuse an experiment that cannot work, before its first step and before anything is written.

config --what is missing? is a value of another type than its class asks for?--> data module --are the images right?-->
"""

import contextlib
import inspect
import json
import pydoc
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import NoneType, SimpleNamespace, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from cyto_dl.config import experiments
from cyto_dl.errors import ConfigError, list_problems

if TYPE_CHECKING:
    from lightning import LightningDataModule, LightningModule

# Keys that no class takes; those of configs/train.yaml and configs/eval.yaml, and those that all experiments share
_OWN_KEYS: dict[str, Any] = {
    "train": bool,
    "test": bool,
    "resume": bool,
    "ckpt_path": str | None,
    "split": str | None,
    "seed": int,
    "optimized_metric": str,
    "optimized_mode": Literal["min", "max"],
    "spatial_dims": Literal[2, 3],
    "raw_im_channels": int,
    "source_channel": int | list[int] | None,
    "target_channel": int | list[int] | None,
}
_EXTRAS: dict[str, Any] = {"print_config": bool, "matmul_precision": Literal["highest", "high", "medium"]}
_CHECKED_GROUPS = ("data", "model", "callbacks", "trainer")

# Whose signature says what a class takes beyond its own
_PASSES_ON = {"cyto_dl.data.datamodule.DataframeDatamodule": "torch.utils.data.DataLoader"}

_IN_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
_PLURALS = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts", "a mapping": "mappings"}
_ABSTRACT_LISTS = (Collection, Iterable, Sequence)


def check_experiment(config: Mapping[str, Any]) -> None:
    """Refuse an experiment that cannot work, all problems at once.

    Raises:
        ConfigError: Lists what is missing or wrong, by key.
    """
    if not config.get("data") or not config.get("model"):
        raise ConfigError(
            "no experiment is chosen: add experiment=NAME, where NAME is one of "
            f"{', '.join(experiments())}, or a file of your own in --config-dir DIR (DIR/experiment/NAME.yaml)."
        )
    problems = []
    for group in ("data", "model", "trainer"):
        if "_target_" not in (config.get(group) or {}):
            problems.append(f"{group}._target_: the class to build is missing")
    model = config["model"]
    for key in ("optimizer", "lr_scheduler"):
        if key in model and not (model[key] or {}).get("generator"):
            problems.append(f"model.{key}.generator: required, e.g. {{_target_: ..., _partial_: true}}")
    for name, task in (model.get("task_heads") or {}).items():
        problems += [
            f"model.task_heads.{name}.{part}: required" for part in ("head", "loss") if not (task or {}).get(part)
        ]
        if name not in config["data"].get("columns", {name: None}):
            problems.append(f"data.columns: no column is named for the head '{name}', e.g. {{{name}: my_column}}")
    problems += _half_denormalized(model)
    problems += wrong_types(config)
    if problems:
        raise ConfigError(f"the experiment is wrong:\n{list_problems(problems)}")


def wrong_types(config: Mapping[str, Any]) -> list[str]:
    """Values of another type than the class that receives them asks for, a sentence a key.

    The types are those of the classes' signatures. What is not annotated, or by names that only a type checker knows,
    passes; so do objects, as of images in memory.
    """
    own = {**_OWN_KEYS, **{f"extras.{key}": kind for key, kind in _EXTRAS.items()}}
    values = {**config, **{f"extras.{key}": value for key, value in (config.get("extras") or {}).items()}}
    problems = [
        f"{key} is {values[key]!r}; give {_in_words(kind)}"
        for key, kind in own.items()
        if key in values and not _takes(kind, values[key])
    ]
    return problems + [each for group in _CHECKED_GROUPS for each in _wrong_arguments(config.get(group), group)]


def check_accelerator(trainer: Mapping[str, Any]) -> None:
    """Refuse an accelerator that this machine does not have.

    Args:
        trainer: The configuration's group `trainer`.

    Raises:
        ConfigError: Names those that there are.
    """
    from lightning.pytorch.accelerators import AcceleratorRegistry

    there = [
        name
        for name in AcceleratorRegistry.available_accelerators()
        if AcceleratorRegistry[name]["accelerator"].is_available()
    ]
    there += ["gpu"] if {"cuda", "mps"} & set(there) else []
    asked = trainer.get("accelerator", "auto")
    if isinstance(asked, str) and asked not in ("auto", *there):
        raise ConfigError(
            f"trainer.accelerator is {asked!r}, which this machine does not have: it has {', '.join(sorted(there))}. "
            "Choose e.g. trainer=cpu."
        )


def check_data(config: Mapping[str, Any], datamodule: "LightningDataModule") -> None:
    """Look at every image's header before the network is built: wrong data then leaves no files and no MLflow run.

    Raises:
        ManifestError: With everything that is wrong with the table and its images.
    """
    from cyto_dl.data import DataframeDatamodule

    if config["train"] and isinstance(datamodule, DataframeDatamodule):
        validates = config["trainer"].get("limit_val_batches") != 0
        datamodule.require("train", *["valid"] * validates)
        datamodule.setup("fit")
        if config["test"]:
            datamodule.setup("test")  # else a training ends with test images that turn out to be damaged


def check_labels(config: Mapping[str, Any], datamodule: "LightningDataModule", model: "LightningModule") -> None:
    """Look at the labels that the model learns, of all splits: one that is none would end a training late.

    Raises:
        ManifestError: With all label images that cannot be used.
    """
    from cyto_dl.data import DataframeDatamodule

    if config["train"] and isinstance(datamodule, DataframeDatamodule):
        datamodule.check_labels(getattr(model, "labels", ()))  # a model of a user's own may not say


def _half_denormalized(model: Mapping[str, Any]) -> list[str]:
    """Heads whose prediction has a mean without a standard deviation: half of the way back to grey values."""
    drawn = (model.get("postprocessing") or {}).get("prediction") or {}
    return [
        f"model.postprocessing.prediction.{name}: mean is {node['mean']} and std is {node['std']}; give both "
        "(target_mean and target_std, or intensity_offset and intensity_scale), or neither"
        for name, node in drawn.items()
        if node and {"mean", "std"} <= set(node) and (node["mean"] is None) != (node["std"] is None)
    ]


def _wrong_arguments(node: Any, key: str) -> Iterator[str]:
    """What is wrong in the arguments of all targets in a node."""
    if isinstance(node, list):
        for index, child in enumerate(node):
            yield from _wrong_arguments(child, f"{key}[{index}]")
    if not isinstance(node, Mapping):
        return
    for name, child in node.items():
        yield from _wrong_arguments(child, f"{key}.{name}")
    if isinstance(node.get("_target_"), str):
        kinds = _parameters(node["_target_"])
        for name in kinds.keys() & node.keys():
            annotation, default = kinds[name]
            if not _takes(annotation, node[name]) and node[name] != default:  # tables, which are taken, do not compare
                target = node["_target_"].rpartition(".")[2]
                yield f"{key}.{name} is {node[name]!r}; {target} takes {_in_words(annotation)}"


def _parameters(target: str) -> dict[str, tuple[Any, Any]]:
    """The annotation and the default of every parameter of a class or a function, by name."""
    try:
        found: Any = pydoc.locate(target)
        signature = inspect.signature(found)
    except (pydoc.ErrorDuringImport, TypeError, ValueError):  # explained when the object is built
        return {}
    made_by = found.__init__ if inspect.isclass(found) else found
    function = inspect.unwrap(made_by)
    names = getattr(function, "__globals__", {})
    kinds = {
        name: (_resolved(parameter.annotation, names), parameter.default)
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    further = _PASSES_ON.get(f"{found.__module__}.{found.__qualname__}")
    return {**_parameters(further), **kinds} if further else kinds


def _resolved(annotation: Any, names: dict[str, Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"it": annotation}), names)["it"]
    except (NameError, AttributeError, TypeError, SyntaxError):  # a name that only a type checker imports
        return Any


def _takes(annotation: Any, value: Any) -> bool:
    """Whether a value as YAML gives it is what an annotation asks for."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

    if _holds_objects(value) or (_names_arrays(annotation) and isinstance(value, list | int | float)):
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


def _holds_objects(value: Any) -> bool:
    """Whether something in a value is an object already, or will be one (`_target_`)."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(_holds_objects(each) for each in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_objects(each) for each in value)
    return not isinstance(value, str | int | float | bool | None)


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, unions inside it opened; an annotation that is none, alone."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(each for member in get_args(annotation) for each in _members(member))
    return (annotation,)


def _names_arrays(annotation: Any) -> bool:
    """Whether arrays or tensors are taken, which are made of numbers and lists."""
    return any(getattr(each, "__module__", "").partition(".")[0] in ("numpy", "torch") for each in _members(annotation))


def _in_words(annotation: Any) -> str:
    """What an annotation accepts, for a scientist, e.g. "a whole number or null"."""
    members = _members(annotation)
    choices = [str(value) for each in members if get_origin(each) is Literal for value in get_args(each)]
    said = [f"one of {', '.join(dict.fromkeys(choices))}"] if choices else []
    said += [_one_in_words(each) for each in members if not (each is int and float in members)]
    # an object cannot be written as a value, so it is named only where nothing else is accepted
    return " or ".join(dict.fromkeys(each for each in said if each)) or inspect.formatannotation(annotation)


def _one_in_words(member: Any) -> str:
    origin, arguments = get_origin(member) or member, get_args(member)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    if origin in (list, tuple, *_ABSTRACT_LISTS):
        inner = " or ".join(dict.fromkeys(_in_words(each) for each in arguments if each is not Ellipsis))
        return f"a list of {_PLURALS.get(inner, inner)}" if inner else "a list"
    return _IN_WORDS.get(member, "")
