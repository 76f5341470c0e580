"""The weights of a bundle: one safetensors file for each network, one network but for ensembles."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from cyto_dl.bundle.format import WEIGHTS
from cyto_dl.errors import BundleError
from cyto_dl.model.network import Ensemble, TaskNetwork


def member_prefix(number: int) -> str:
    """How the weights of an ensemble's member (0, 1, ...) begin among those of the ensemble."""
    return f"members.{number}."


def member_files(num_members: int) -> list[str]:
    """The files of an ensemble: weights.safetensors, weights_2.safetensors, ..."""
    stem, dot, suffix = WEIGHTS.partition(".")
    return [WEIGHTS, *(f"{stem}_{number}{dot}{suffix}" for number in range(2, num_members + 1))]


def write_weights(folder: Path, network: TaskNetwork | Ensemble) -> None:
    """Write the weights of a network, or of each member of an ensemble."""
    members = list(network.members) if isinstance(network, Ensemble) else [network]
    for name, member in zip(member_files(len(members)), members, strict=True):
        _write(folder / name, member)
        (folder / name).chmod(0o644)  # safetensors makes it for its owner alone; a server is another user


def read_weights(folder: Path, document: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of the network or the ensemble that a document describes, by name.

    Raises:
        BundleError: A file does not hold weights.
    """
    if not (files := document.get("ensemble")):
        return _read(folder / WEIGHTS)
    return {
        f"{member_prefix(number)}{name}": value
        for number, file in enumerate(files)
        for name, value in _read(folder / file).items()
    }


def _write(path: Path, network: nn.Module) -> None:
    """Write each weight once, and the further names of weights that a network such as DynUNet registers twice.

    safetensors' own save_model does so only for weights whose channels come first in memory; TaskNetwork's do not.
    """
    names: dict[int, str] = {}
    weights, second_names = {}, {}
    for name, value in network.state_dict(keep_vars=True).items():
        kept = names.setdefault(id(value), name)
        if kept == name:
            weights[name] = value.detach().contiguous()
        else:
            second_names[name] = kept
    # an empty mapping spoils the header of a file without tensors (safetensors 0.8)
    save_file(weights, str(path), metadata=second_names or None)


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The weights under every name that the network knows them by.

    (safetensors' own load_model refuses batch normalisation: torch fills in a counter whose second name is absent.)
    """
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # a file, not a mapping
            second_names = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} cannot be read: {error}. Download or export the bundle again.") from error
    return weights | {name: weights[kept] for name, kept in second_names.items() if kept in weights}
