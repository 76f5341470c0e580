"""Load a bundle:  check every file -> build what is allowed -> weights -> replay the sample -> Predictor"""

import logging
from collections.abc import Iterable
from os import PathLike

from safetensors import SafetensorError
from safetensors.torch import load_model

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
        load_model(predictor.network, folder / WEIGHTS, device=device)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise BundleError(f"{folder / WEIGHTS} does not hold the weights of this network: {error}") from error
    if replay:
        replay_sample(predictor, read_sample(folder / SAMPLE))
    logger.info("loaded %s from %s", predictor.name, path)
    return predictor
