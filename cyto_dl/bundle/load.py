"""Load a bundle:  check every file -> build what is allowed -> weights -> replay the sample -> Predictor"""

import logging
from collections.abc import Iterable
from dataclasses import replace
from os import PathLike

from cyto_dl.bundle.build import build_predictor
from cyto_dl.bundle.engines import MIXED, MixedPrecisionNetwork, check_engine, choose_engine, load_engine
from cyto_dl.bundle.format import SAMPLE, read_document, verify_files
from cyto_dl.bundle.sample import read_sample, tolerance_of
from cyto_dl.bundle.sample import replay as replay_sample
from cyto_dl.bundle.weights import read_weights
from cyto_dl.inference.predictor import Predictor
from cyto_dl.storage import localize

logger = logging.getLogger(__name__)


def load_bundle(
    path: str | PathLike[str],
    *,
    allow: Iterable[str] = (),
    replay: bool = True,
    device: str = "cpu",
    engine: str = "torch",
) -> Predictor:
    """The Predictor of a bundle, after its files were checked and its sample replayed.

    Args:
        path: The bundle's folder, local or s3://.
        allow: Dotted names of code beyond the list that this bundle may use; see `cyto_dl.bundle.targets`.
        replay: Predict the sample and compare with what was recorded at export.
        device: Where the network runs, e.g. "cuda".
        engine: What runs it: "torch", "torch-mixed" (in half precision where that is safe: for GPUs), or on the CPU
            "onnxruntime", "openvino" (faster for 3-D networks; an extra) or "openvino-bf16" (twice as fast again,
            nearly the same; see `cyto_dl.bundle.engines`). "auto": the fastest that the bundle has measured and agrees
            with, if it is installed.

    Raises:
        BundleError: A file is missing, truncated or changed; the format is newer; code is not allowed; the sample's
            predictions differ; the bundle has nothing for this engine, or refuses it.
        ConfigError: There is no such device or engine.
    """
    check_engine(engine, device)
    folder = localize(path)
    document = read_document(folder)
    engine = choose_engine(engine, document, device)
    verify_files(folder, document)
    if engine in ("torch", MIXED):
        predictor = build_predictor(document, read_weights(folder, document), allow=allow, device=device)
        if engine == MIXED:
            predictor = replace(predictor, network=MixedPrecisionNetwork(predictor.network, predictor.device))
    else:
        predictor = build_predictor(document, allow=allow)
        predictor = replace(predictor, network=load_engine(engine, folder, document))
    if replay:
        replay_sample(predictor, read_sample(folder / SAMPLE), tolerance=tolerance_of(engine))
    logger.info("loaded %s from %s for %s", predictor.name, path, engine)
    return predictor
