"""Begin a training with the weights of an earlier one:  bundle, run or checkpoint -> what is alike

Optimizer, schedule and epochs begin anew, in contrast to a run that goes on (`cyto_dl.resume`).
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cyto_dl.errors import BundleError, ConfigError, list_problems
from cyto_dl.storage import localize

if TYPE_CHECKING:
    from torch import Tensor

    from cyto_dl.model import MultiTaskIm2Im

logger = logging.getLogger(__name__)

_NUM_SHOWN = 5  # weights that differ: enough to see in what


def start_from(model: "MultiTaskIm2Im", address: str) -> None:
    """Give a model the weights of another one, wherever the two are alike.

    What the other model has not, or has in another shape, keeps its random weights, such as a last layer for another
    number of classes, and so does a discriminator. The log names it.

    Args:
        model: That is about to be trained.
        address: A bundle, the folder of a run (its best checkpoint) or a checkpoint; local or s3://.

    Raises:
        ConfigError: Less than half of the network is alike; says in what they differ.
        BundleError: There is nothing of these, or it is damaged.
    """
    given, own = _read(address), model.network.state_dict()
    alike = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
    new = [f"{name}: {tuple(own[name].shape)} here, {_there(name, given)}" for name in own if name not in alike]
    shown = [*new[:_NUM_SHOWN], *([f"and {len(new) - _NUM_SHOWN} more"] if new[_NUM_SHOWN:] else [])]
    if sum(value.numel() for value in alike.values()) < sum(value.numel() for value in own.values()) / 2:
        raise ConfigError(
            f"start_from: {address} is another network than model:\n{list_problems(shown)}\n"
            "Give model.backbone the values of that training (config.yaml or bundle.yaml has them), or choose another "
            "model to start from."
        )
    model.network.load_state_dict(alike, strict=False)
    logger.info("starting from the weights of %s%s", address, f"; new are\n{list_problems(shown)}" if new else "")


def _read(address: str) -> "dict[str, Tensor]":
    """The weights of a network by their names in a `TaskNetwork`."""
    from cyto_dl.bundle.checkpoint import find_checkpoint, network_weights, read_checkpoint
    from cyto_dl.bundle.format import is_bundle, read_document, verify_files
    from cyto_dl.bundle.weights import read_weights

    path = localize(address)
    if not is_bundle(path):
        return network_weights(read_checkpoint(find_checkpoint(path)))
    document = read_document(path)
    verify_files(path, document)
    if document.get("ensemble"):
        raise BundleError(f"start_from: {address} is an ensemble of several networks. Start from one of its trainings.")
    return read_weights(path, document)


def _there(name: str, given: "Mapping[str, Tensor]") -> str:
    return f"{tuple(given[name].shape)} there" if name in given else "absent there"
