"""Load a bundle:  check every file -> build what is allowed -> weights -> replay the sample -> Predictor"""

import logging
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from cyto_dl.bundle.build import build_predictor
from cyto_dl.bundle.format import SAMPLE, WEIGHTS, read_document, verify_files
from cyto_dl.bundle.sample import read_sample
from cyto_dl.bundle.sample import replay as replay_sample
from cyto_dl.errors import BundleError
from cyto_dl.inference.predictor import Predictor
from cyto_dl.storage import localize

logger = logging.getLogger(__name__)


def load_bundle(
    path: str | PathLike[str],
    *,
    allow: Iterable[str] = (),
    replay: bool = True,
    device: str = "cpu",
) -> Predictor:
    """The Predictor of a bundle, after its files were checked and its sample replayed.

    Args:
        path: The bundle's folder, local or s3://.
        allow: Dotted names of code beyond the list that this bundle may use; see `cyto_dl.bundle.targets`.
        replay: Predict the sample and compare with what was recorded at export.
        device: Where the network runs, e.g. "cuda".

    Raises:
        BundleError: A file is missing, truncated or changed; the format is newer; code is not allowed; the sample's
            predictions differ.
    """
    folder = localize(path)
    document = read_document(folder)
    verify_files(folder, document)
    predictor = build_predictor(document, allow=allow, device=device)
    try:
        predictor.network.load_state_dict(_read_weights(folder / WEIGHTS))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise BundleError(f"{folder / WEIGHTS} does not hold the weights of this network: {error}") from error
    if replay:
        replay_sample(predictor, read_sample(folder / SAMPLE))
    logger.info("loaded %s from %s", predictor.name, path)
    return predictor


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights under every name that the network knows them by.

    A network such as DynUNet registers its blocks twice; safetensors keeps one copy and says which names it left out.
    (Its own load_model refuses batch normalisation then: torch fills in a counter whose second name is absent.)
    """
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # a file, not a mapping
        second_names = file.metadata() or {}
    return weights | {name: weights[kept] for name, kept in second_names.items() if kept in weights}
