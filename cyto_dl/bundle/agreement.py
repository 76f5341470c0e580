"""How closely and how fast every engine computes a bundle's network, measured on its sample at export.

    sample's windows --torch--> logits, masks, CPU time     what is recorded: the largest difference of the logits, the
                     --engine-> logits, masks, CPU time     part of the pixels that change, the speed, the version

An engine beyond its tolerance is refused by name, and so is one that cannot run the network.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cyto_dl.bundle.engines import PACKAGES, start_engine
from cyto_dl.bundle.format import ONNX
from cyto_dl.bundle.sample import changed_part, tolerance_of
from cyto_dl.data.image import Image
from cyto_dl.errors import BundleError, ConfigError
from cyto_dl.inference.predictor import HeadsNetwork, Predictor

logger = logging.getLogger(__name__)

_SECONDS, _CALLS = 1.0, 5  # per engine, after the comparison; a large window gets one call


def measure_engines(predictor: Predictor, folder: Path, image: Image) -> dict[str, dict[str, Any]]:
    """What bundle.yaml records of every engine that runs model.onnx and is installed here.

    Args:
        predictor: On the CPU, with torch.
        folder: That has model.onnx.
        image: The sample.

    Returns:
        Engine -> {version, speed, max_difference, changed_labels}, the speed as a multiple of torch's by CPU time; with
        {refused: why} where it is beyond its tolerance, or alone where it cannot run.
    """
    source = predictor.preprocessed(image).as_tensor()[None]
    expected, torch_s = _computed(predictor, source, predictor.network)
    found: dict[str, dict[str, Any]] = {"torch": {"version": version("torch"), "speed": 1.0}}
    for engine in PACKAGES:
        try:
            network = start_engine(engine, folder / ONNX, list(predictor.outputs))
            logits, seconds = _computed(predictor, source, network)
        except ConfigError as error:  # not installed, or not for this processor: elsewhere it may be
            logger.info("%s is not measured: %s", engine, error)
            continue
        except BundleError as error:
            found[engine] = {"refused": str(error).replace(str(folder / ONNX), ONNX)}
            continue
        agreement = _compare(predictor, logits, expected)
        found[engine] = {"version": version(PACKAGES[engine]), "speed": round(torch_s / seconds, 2), **agreement}
        if reason := _beyond_tolerance(engine, agreement, expected):
            found[engine]["refused"] = reason
            logger.warning("the bundle refuses engine %s: %s", engine, reason)
    return found


@torch.inference_mode()
def _computed(predictor: Predictor, source: Tensor, network: HeadsNetwork) -> tuple[dict[str, Tensor], float]:
    """Logits of the sample, and the CPU seconds of its windows; what is slow once has then been done."""
    window = replace(predictor.window, augment=None)  # views multiply all times alike
    logits = window(source, network)
    begin = time.monotonic()
    seconds: list[float] = []
    while not seconds or (len(seconds) < _CALLS and time.monotonic() - begin < _SECONDS):
        seconds.append(_cpu_seconds(lambda: window(source, network)))
    return logits, max(min(seconds), 1e-6)  # least: other work on the machine only adds


def _cpu_seconds(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _compare(predictor: Predictor, logits: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    difference = max(float((logits[head] - expected[head]).abs().max()) for head in expected)
    changed = [0.0]
    for head, output in predictor.outputs.items():
        if output.get("values") == "labels" and bool(logits[head].isfinite().all()):
            drawn = [predictor.postprocess[head](each[head][0]).numpy() for each in (logits, expected)]
            changed.append(changed_part(drawn[0], drawn[1], output["kind"]))
    return {"max_difference": difference, "changed_labels": max(changed)}


def _beyond_tolerance(engine: str, agreement: Mapping[str, float], expected: Mapping[str, Tensor]) -> str:
    tolerance = tolerance_of(engine)
    limit = tolerance.floats * max(1.0, *(float(each.abs().max()) for each in expected.values()))
    if not agreement["max_difference"] <= limit:  # NaN is not
        return f"logits differ from torch by up to {agreement['max_difference']:.3g} ({limit:.3g} is allowed)"
    if agreement["changed_labels"] > tolerance.labels:
        return f"{agreement['changed_labels']:.3%} of the pixels change sides ({tolerance.labels:.3%} are allowed)"
    return ""
