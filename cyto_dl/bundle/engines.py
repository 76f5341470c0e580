"""Engines that run a bundle's network in another way than torch in single precision, the reference.

    windows -> engine(model.onnx: backbone -> heads) -> logits per head     on the CPU
    windows -> torch, in half precision where that is safe -> logits        torch-mixed, for GPUs

Everything around the network stays the same: preprocessing, sliding window, blending, postprocessing.

openvino-bf16 computes in bfloat16 where the processor can: half the time, and logits that differ by about 1 % of their
range. Of the nuclei that examples/bundles/nuclei finds in twelve test images, none came or went, and at most 0.03 % of
the pixels changed sides (docs/lab-notebook.md).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cyto_dl.bundle.format import ONNX
from cyto_dl.errors import BundleError, ConfigError
from cyto_dl.inference.predictor import HeadsNetwork

if TYPE_CHECKING:
    import openvino

MIXED = "torch-mixed"
ENGINES = ("torch", MIXED, "onnxruntime", "openvino", "openvino-bf16")
AUTO = "auto"  # the fastest that agrees
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "openvino-bf16": "openvino"}

_FASTER = 1.1  # times torch's speed, measured on few windows: less is not worth other numbers than the reference's
_OPT_IN = "openvino-bf16"  # within its tolerance, which is wide

_Run = Callable[[np.ndarray, Sequence[str]], list[np.ndarray]]  # windows, heads -> logits of each head


@dataclass(frozen=True)
class EngineNetwork:
    """A network that an engine computes; it takes the windows that it was exported for, in batches of any size."""

    engine: str
    heads: tuple[str, ...]
    run: _Run

    def only(self, heads: Sequence[str]) -> "EngineNetwork":
        """The same network with these heads."""
        return replace(self, heads=tuple(heads))

    def __call__(self, windows: Tensor) -> dict[str, Tensor]:
        """Logits per head.

        Raises:
            BundleError: The engine cannot take these windows.
        """
        try:
            outputs = self.run(windows.contiguous().numpy(), self.heads)
        except Exception as error:  # engines have errors of their own, some of them bare Exceptions
            reason = (str(error).strip() or "-").splitlines()[0]
            raise BundleError(
                f"{self.engine} cannot run {ONNX} on windows of shape {tuple(windows.shape)}: {reason}. Use torch."
            ) from error
        return {head: torch.from_numpy(output) for head, output in zip(self.heads, outputs, strict=True)}


@dataclass(frozen=True)
class MixedPrecisionNetwork:
    """A network of torch whose convolutions compute in half precision: float16 on a GPU, bfloat16 on a processor."""

    network: HeadsNetwork
    device: torch.device
    engine: str = MIXED

    @property
    def heads(self) -> Iterable[str]:
        """The names of the heads."""
        return self.network.heads

    def only(self, heads: Sequence[str]) -> "MixedPrecisionNetwork":
        """The same network with these heads."""
        return replace(self, network=self.network.only(heads))

    def __call__(self, windows: Tensor) -> dict[str, Tensor]:
        """Logits per head, float32."""
        with torch.autocast(self.device.type, torch.float16 if self.device.type == "cuda" else torch.bfloat16):
            logits = self.network(windows)
        return {head: each.float() for head, each in logits.items()}


def check_engine(engine: str, device: str) -> None:
    """Refuse an engine that there is not, or that does not run on this device.

    Raises:
        ConfigError: With the choices.
    """
    if engine not in (*ENGINES, AUTO):
        raise ConfigError(f"engine is {engine!r}; choose one of {', '.join(ENGINES)}, {AUTO}.")
    if engine in PACKAGES and str(device) != "cpu":
        raise ConfigError(
            f"engine {engine} runs on the CPU, not on {device}. Choose device cpu, or engine torch or {MIXED}."
        )


def choose_engine(engine: str, document: Mapping[str, Any], device: str = "cpu") -> str:
    """The engine that is meant: of "auto" the fastest that the export measured, that agrees with torch and is here.

    Args:
        engine: Of `ENGINES`, or "auto".
        document: Of the bundle.
        device: Where the network is to run; other engines than torch run on the CPU alone.

    Raises:
        BundleError: The bundle refuses the engine.
    """
    measured = (document.get("engines") or {}).get("measured") or {}
    if engine != AUTO:
        if refused := (measured.get(engine) or {}).get("refused"):
            raise BundleError(f"the bundle refuses engine {engine}: {refused}. Use engine torch.")
        return engine
    speeds = {
        name: float(found.get("speed", 0))
        for name, found in measured.items()
        if name in PACKAGES and name != _OPT_IN and "refused" not in found and find_spec(PACKAGES[name])
    }
    fastest = max(speeds, key=lambda name: speeds[name], default="torch")
    return fastest if str(device) == "cpu" and speeds.get(fastest, 0) > _FASTER else "torch"


def engine_of(network: object) -> str:
    """Which engine computes a network."""
    return network.engine if isinstance(network, EngineNetwork | MixedPrecisionNetwork) else "torch"


def load_engine(engine: str, folder: Path, document: Mapping[str, Any]) -> EngineNetwork:
    """The network of a bundle on an engine that runs model.onnx, with as many threads as torch has.

    Raises:
        BundleError: The bundle has no network for other engines, or the engine does not take it.
        ConfigError: The engine is not installed.
    """
    described = (document.get("engines") or {}).get("onnx") or {}
    if ONNX not in document["files"]:
        raise BundleError(
            f"{folder} has no {ONNX} for {engine} ({described.get('error', 'it was exported without')}). "
            "Use engine torch."
        )
    return start_engine(engine, folder / ONNX, list(document["outputs"]))


def start_engine(engine: str, path: Path, heads: Sequence[str]) -> EngineNetwork:
    """The network in a file, on one of `PACKAGES`.

    Raises:
        BundleError: The engine does not take it.
        ConfigError: The engine is not installed, or not for this processor.
    """
    starts: dict[str, Callable[[Path], _Run]] = {
        "onnxruntime": start_onnxruntime,
        "openvino": partial(_start_openvino, precision="f32"),
        "openvino-bf16": partial(_start_openvino, precision="bf16"),
    }
    try:
        return EngineNetwork(engine, tuple(heads), starts[engine](path))
    except ConfigError:
        raise
    except Exception as error:  # as above
        raise BundleError(f"{engine} cannot load {path}: {error}. Use engine torch.") from error


def start_onnxruntime(path: Path) -> _Run:
    """Compute model.onnx with ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait take no CPU time
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()

    def run(windows: np.ndarray, heads: Sequence[str]) -> list[np.ndarray]:
        outputs: list[np.ndarray] = session.run(list(heads), {source.name: windows})
        return outputs

    return run


def _start_openvino(path: Path, *, precision: str) -> _Run:
    try:
        import openvino
    except ImportError as error:
        raise ConfigError(
            "engine openvino is not installed: pip install 'cyto-dl[openvino]', or choose torch or onnxruntime."
        ) from error
    core = _only_one(openvino.Core)
    if precision.upper() not in {"F32", *core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")}:
        raise ConfigError(f"this processor does not compute in {precision}: choose engine openvino.")
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()

    def run(windows: np.ndarray, heads: Sequence[str]) -> list[np.ndarray]:
        outputs = request.infer([windows])
        return [outputs[head] for head in heads]

    return run


@cache
def _only_one(core: type["openvino.Core"]) -> "openvino.Core":
    """The core of this process.

    A core gives the thread that makes it another stack for its signal handlers, and takes it back when it goes. Of two
    cores that overlap, the last one to go leaves a stack that is no longer there, and the next signal (a child that
    ends, SIGTERM) ends the process with a segmentation fault (OpenVINO 2026.4).
    """
    return core()
