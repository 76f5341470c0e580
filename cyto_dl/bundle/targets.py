"""Which code a bundle may name: `_target_` nodes are checked against a list before they are built.

    node --check_targets--> every `_target_` at any depth is allowed --instantiate--> object

A bundle comes from somewhere else, and building an object by its dotted name runs code. So the name must lie in a
listed package before anything is imported, and the object that is found must itself, by its own `__module__` and
`__qualname__`, be an nn.Module, a MONAI transform or a postprocessing function of a listed module. (The name alone
proves nothing: `torch.nn.modules.lazy.torch.load` begins well.) An operator adds own code by its exact dotted name.

Values must be resolved: where a checkpoint's experiment goes on to hydra, `${oc.create:...}` would become a node.
"""

import functools
import importlib
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import packages_distributions
from typing import Any

from cyto_dl.errors import BundleError, list_problems

ALLOWED_TARGETS_VARIABLE = "CYTO_DL_ALLOWED_TARGETS"  # dotted names, separated by commas

# Only these are imported on a bundle's behalf, with what lies below them.
_IMPORTABLE = (
    "cyto_dl.data",
    "cyto_dl.metrics",
    "cyto_dl.model",
    "monai.losses",
    "monai.networks",
    "monai.transforms",
    "torch.nn",
)
# Where an allowed object is defined: modules, transforms, and functions.
_MODULE_HOMES = (
    "cyto_dl.metrics",
    "cyto_dl.model",
    "monai.losses",
    "monai.networks.blocks",
    "monai.networks.layers",
    "monai.networks.nets",
    "torch.nn.modules",
)
_TRANSFORM_HOMES = (
    "cyto_dl.data.blind_spot",
    "cyto_dl.data.flips",
    "cyto_dl.data.transforms",
    "monai.transforms.compose",
    "monai.transforms.croppad",
    "monai.transforms.intensity",
    "monai.transforms.meta_utility",
    "monai.transforms.post",
    "monai.transforms.spatial",
    "monai.transforms.utility",
)
_FUNCTION_HOMES = ("cyto_dl.model.utils.postprocessing",)
# Names (array and dictionary versions alike) that run code, read or write files, download or print.
_REFUSED = (
    "CuCIM",  # calls what its `name` argument finds in another package, as do TorchIO and TorchVision
    "DataStats",
    "GaussianMixtureModel",  # compiles with flags made of its arguments
    "Lambda",
    "Load",
    "MedicalNetPerceptual",  # torch.hub, which runs the code that it downloads
    "MultiModal",  # Transchex and it download BERT
    "Perceptual",
    "RadImageNetPerceptual",
    "RandCuCIM",
    "RandLambda",
    "RandTorchIO",
    "RandTorchVision",
    "Save",
    "SimulateDelay",
    "TextEncoder",  # downloads its embedding
    "TorchIO",
    "TorchVision",
    "TorchvisionModelPerceptual",  # unpickles a file
    "Transchex",
)
# Arguments through which networks fetch weights. A bundle has its own, so these are switched off.
_WEIGHT_SOURCES: dict[str, Any] = {"pretrained": False, "pretrained_url": None, "checkpoint": None}
_NODE_KEYS = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}


def instantiate(node: Any, *, allow: Iterable[str] = (), where: str = "bundle") -> Any:
    """The object that a node describes, after every `_target_` in it was found to be allowed.

    Args:
        node: `{_target_: dotted.name, _partial_: bool, argument: value, ...}`; lists and mappings may hold nodes.
        allow: Further dotted names; those in CYTO_DL_ALLOWED_TARGETS count as well.
        where: Where the node stands, for messages, e.g. "bundle.yaml: model.backbone".

    Raises:
        BundleError: Code that is not allowed (all of it is named), or arguments that do not fit.
    """
    check_targets(node, allow=allow, where=where)
    return _build(node, _operators_list(allow), where)


def check_targets(node: Any, *, allow: Iterable[str] = (), where: str = "bundle") -> None:
    """Refuse a node that names code which is not allowed; nothing is built.

    Raises:
        BundleError: Names every such target and interpolation, where it stands, and how an operator allows it.
    """
    allowed = _operators_list(allow)
    problems = []
    for target, place in _targets(node, where):
        try:
            _resolve(target, allowed)
        except _RefusedTarget as reason:
            problems.append(f"{target!r} at {place}: {reason}")
    problems += [
        f"{value!r} at {place}: an interpolation, not a value" for value, place in _interpolations(node, where)
    ]
    if problems:
        raise BundleError(
            f"code that this model asks for is not allowed here:\n{list_problems(problems)}\n"
            "If you trust it, allow each by its exact name: --allow-target NAME, or "
            f"{ALLOWED_TARGETS_VARIABLE}=NAME,NAME in the environment."
        )


def foreign_targets(node: Any) -> list[dict[str, str | None]]:
    """Targets in `node` that an operator must allow, each with the package that provides it (None: not installed)."""
    found = {}
    for target, _ in _targets(node, ""):
        try:
            _resolve(target, frozenset())
        except _RefusedTarget:
            providers = packages_distributions().get(str(target).split(".")[0])
            found[str(target)] = providers[0] if providers else None
    return [{"target": target, "package": package} for target, package in sorted(found.items())]


class _RefusedTarget(Exception):
    """Why a target may not be used."""


def _operators_list(allow: Iterable[str]) -> frozenset[str]:
    from_environment = os.environ.get(ALLOWED_TARGETS_VARIABLE, "").split(",")
    return frozenset(name.strip() for name in (*allow, *from_environment) if name.strip())


def _targets(node: Any, where: str) -> Iterator[tuple[Any, str]]:
    """Every `_target_` at any depth, with its place."""
    for value, place in _values(node, where):
        if isinstance(value, Mapping) and "_target_" in value:
            yield value["_target_"], place


def _interpolations(node: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every text that OmegaConf would resolve, with its place."""
    for value, place in _values(node, where):
        if isinstance(value, str) and "${" in value:
            yield value, place


def _values(node: Any, where: str) -> Iterator[tuple[Any, str]]:
    """The node and everything in it, each with its place."""
    yield node, where
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _values(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _values(value, f"{where}[{index}]")


def _resolve(target: Any, operators_list: frozenset[str]) -> Any:
    """The object behind an allowed dotted name.

    Raises:
        _RefusedTarget: With the reason.
    """
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")) or "." not in target:
        raise _RefusedTarget("not a dotted name such as monai.networks.nets.DynUNet")
    module_name, _, name = target.rpartition(".")
    listed_by_operator = target in operators_list
    if not listed_by_operator and not _lies_in(module_name, _IMPORTABLE):
        raise _RefusedTarget(f"only code of {', '.join(_IMPORTABLE)} is on the list")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise _RefusedTarget(f"it cannot be found ({error})") from error
    if not listed_by_operator:
        _check_object(found)
    return found


def _check_object(found: Any) -> None:
    """Judge an object by what it is, whatever name it was reached by."""
    from monai.transforms import Transform
    from torch import nn

    if not inspect.isclass(found) and not inspect.isfunction(found):
        raise _RefusedTarget("it is neither a class nor a function")
    home, name = found.__module__, found.__qualname__
    if inspect.isclass(found):
        allowed = (issubclass(found, nn.Module) and _lies_in(home, _MODULE_HOMES)) or (
            issubclass(found, Transform) and _lies_in(home, _TRANSFORM_HOMES)
        )
    else:
        allowed = home in _FUNCTION_HOMES and not name.startswith("_")
    if not allowed or name.startswith(_REFUSED):
        raise _RefusedTarget(f"{home}.{name} is not a network, transform or postprocessing function of the list")


def _lies_in(module_name: str, packages: tuple[str, ...]) -> bool:
    return any(module_name == package or module_name.startswith(f"{package}.") for package in packages)


def _build(node: Any, operators_list: frozenset[str], where: str) -> Any:
    if isinstance(node, (list, tuple)):
        return [_build(value, operators_list, f"{where}[{index}]") for index, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    inside = {key: _build(value, operators_list, f"{where}.{key}") for key, value in node.items()}
    if "_target_" not in node:
        return inside
    target = _resolve(node["_target_"], operators_list)
    positional = inside.get("_args_", [])
    arguments = {key: value for key, value in inside.items() if key not in _NODE_KEYS}
    try:
        arguments |= {name: value for name, value in _WEIGHT_SOURCES.items() if name in _parameters(target)}
        prepared = functools.partial(target, *positional, **arguments)
        return prepared if node.get("_partial_") else prepared()
    except Exception as error:  # constructors raise anything for arguments that a damaged document holds
        raise BundleError(f"{node['_target_']} at {where} does not take these arguments: {error}") from error


def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except ValueError:  # functions written in C, as torch.tensor, do not say
        return {}
