"""The bundle's network for other engines: export it as ONNX, and measure that ONNX Runtime gives the same numbers."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cyto_dl.bundle.engines import start_onnxruntime
from cyto_dl.bundle.format import ONNX
from cyto_dl.data.image import Image
from cyto_dl.inference.predictor import Predictor
from cyto_dl.model.network import Ensemble, TaskNetwork

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3  # of logits; measured on U-Nets: 1e-5 to 8e-5, no pixel of a mask changed
_CHATTY = ("onnxscript", "onnx_ir", "torch.onnx")


def export_onnx(predictor: Predictor, folder: Path, image: Image) -> dict[str, Any]:
    """Write the network (backbone and heads, from a window to logits) as model.onnx.

    Batch size is free; so are the sides of the window where the network allows it.

    Args:
        predictor: On the CPU.
        folder: Receives model.onnx.
        image: The sample, on which ONNX Runtime is compared with torch.

    Returns:
        {file, input, max_difference} for bundle.yaml, or {error} if the network cannot be exported: the bundle is
        complete without it.
    """
    windows = _windows(predictor, image)
    path = folder / ONNX
    network = predictor.network
    assert isinstance(network, TaskNetwork | Ensemble)  # an engine's network came from an export
    try:
        _export(network, windows, path, name=predictor.input.name)
        difference = _max_difference(network, windows, path)
    except Exception as error:  # noqa: BLE001  # ONNX Runtime's own errors are bare Exceptions
        return _without(path, f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}")
    if not difference <= TOLERANCE:
        return _without(path, f"ONNX Runtime differs from torch by {difference:.2g}")
    return {"file": ONNX, "input": predictor.input.name, "max_difference": difference}


def _without(path: Path, reason: str) -> dict[str, Any]:
    path.unlink(missing_ok=True)
    logger.warning("the bundle has no %s, torch serves it: %s", ONNX, reason)
    return {"error": reason}


def _windows(predictor: Predictor, image: Image) -> Tensor:
    """The first two windows that the network sees of an image; one is given twice, so that the batch is not 1."""
    seen: list[Tensor] = []

    def network(windows: Tensor) -> Mapping[str, Tensor]:
        seen.extend(windows.clone())
        return predictor.network(windows)

    window = replace(predictor.window, augment=None)  # turned windows may have another shape
    window(predictor.preprocessed(image).as_tensor()[None], network)
    return torch.stack((seen * 2)[:2])


def _export(network: TaskNetwork | Ensemble, windows: Tensor, path: Path, *, name: str) -> None:
    from torch.export import Dim

    # AUTO leaves a side free unless the network fixes it; the batch must stay free.
    free = {0: Dim.DYNAMIC, **dict.fromkeys(range(2, windows.ndim), Dim.AUTO)}
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            _Renamed(network),
            (windows,),
            path,
            input_names=[name],
            output_names=list(network.heads),
            dynamic_shapes=(free,),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


class _Renamed(nn.Module):
    """The network with its outputs in order instead of by name, which ONNX keeps as `output_names`."""

    def __init__(self, network: TaskNetwork | Ensemble) -> None:
        super().__init__()
        self.network = network

    def forward(self, source_BCZYX: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(source_BCZYX).values())


@torch.inference_mode()
def _max_difference(network: TaskNetwork | Ensemble, windows: Tensor, path: Path) -> float:
    run = start_onnxruntime(path)
    differences = []
    for batch in (windows, windows[:1]):
        outputs = run(batch.numpy(), list(network.heads))
        expected = network(batch)
        differences += [
            float(np.abs(expected[head].numpy() - output).max())
            for head, output in zip(network.heads, outputs, strict=True)
        ]
    return max(differences)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx logs and warns about its own inner workings; what matters to a user is the result."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
