"""Prediction of a 64 x 256 x 256 volume against MONAI's sliding window as the predecessor of CytoDL set it.

    python benchmarks/speed/sliding_window.py

The network is that of im2im/segmentation in 3-D (DynUNet 16-32-64-128, batch normalisation), the window 16 x 64 x 64
without overlap. The baseline is monai.inferers.sliding_window_inference with sw_batch_size 1 and glibc's own memory
settings; the others are the window of a `Predictor`, as a bundle is loaded, on each engine. All are given the same
weights, volume and number of threads (OMP_NUM_THREADS), and run in processes of their own, in turn. What is compared is
CPU time, user and system, of one pass after a warm-up; the outputs must agree, those of openvino-bf16 (for processors
with bfloat16) within its precision. Writes
benchmarks/speed/results/sliding_window.json.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from benchmarks.results import write_result
from cyto_dl.bundle import document_from_config, export_bundle, instantiate, load_bundle
from cyto_dl.bundle.engines import PACKAGES
from cyto_dl.bundle.format import read_document
from cyto_dl.bundle.weights import read_weights
from cyto_dl.config import compose_experiment
from cyto_dl.model.network import TaskNetwork

RESULT = Path(__file__).parent / "results" / "sliding_window.json"
ROI = (16, 64, 64)
WARM_UP = (16, 128, 128)  # four windows: a whole batch
BASELINE = "monai, sw_batch_size 1"
TARGETS = {"torch": 1 / 4, "best engine": 1 / 6}
ENGINES = ("torch", *PACKAGES)  # torch-mixed is for GPUs
# Of logits: in single precision measured on U-Nets 1e-5 to 8e-5, in bfloat16 with 8 bits about 1 %.
AGREEMENT = {"torch": 1e-4, "onnxruntime": 1e-4, "openvino": 1e-4, "openvino-bf16": 5e-2}


def write_bundle(folder: Path) -> Path:
    """The shipped 3-D segmentation, untrained but with running means and variances of what it sees."""
    overrides = ["experiment=im2im/segmentation", "spatial_dims=3", "model.inference.overlap=0"]
    config = compose_experiment(overrides, output_dir=folder / "run")
    document = document_from_config(config)
    torch.manual_seed(0)
    network = _network(document)
    sample = torch.rand((1, 2 * ROI[0], 2 * ROI[1], 2 * ROI[2]))
    with torch.no_grad():
        for _ in range(10):
            network(sample[None, :, : ROI[0]])
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "config": config}, folder / "untrained.ckpt")
    return export_bundle(folder / "untrained.ckpt", folder / "bundle", sample=sample.numpy())


def baseline(bundle: Path) -> Callable[[Tensor], Tensor]:
    """MONAI's window; nothing here touches glibc's settings or the order of the weights in memory."""
    document = read_document(bundle)
    backbone = instantiate(document["model"]["backbone"]).eval()
    weights = read_weights(bundle, document)
    prefix = "backbone."
    backbone.load_state_dict({n.removeprefix(prefix): each for n, each in weights.items() if n.startswith(prefix)})

    def predict(volume: Tensor) -> Tensor:
        with torch.no_grad():
            logits = sliding_window_inference(volume, ROI, 1, backbone, overlap=0, mode="gaussian")
        assert isinstance(logits, Tensor)
        return logits

    return predict


def ours(bundle: Path, engine: str) -> Callable[[Tensor], Tensor]:
    """The window of the bundle's Predictor."""
    predictor = load_bundle(bundle, engine=engine)
    (head,) = predictor.outputs

    def predict(volume: Tensor) -> Tensor:
        with torch.inference_mode():
            return predictor.window(volume, predictor.network)[head]

    return predict


def measure(name: str, bundle: Path, shape: Sequence[int], output: Path) -> dict[str, float]:
    """User and system seconds for one pass over a volume; its logits go to `output`."""
    predict = baseline(bundle) if name == BASELINE else ours(bundle, name)
    volume = torch.rand((1, 1, *shape), generator=torch.Generator().manual_seed(0))
    predict(volume[..., : WARM_UP[0], : WARM_UP[1], : WARM_UP[2]])
    before = resource.getrusage(resource.RUSAGE_SELF)
    logits = predict(volume)
    after = resource.getrusage(resource.RUSAGE_SELF)
    np.save(output, logits.numpy())
    return {"user": after.ru_utime - before.ru_utime, "system": after.ru_stime - before.ru_stime}


def run(shape: Sequence[int], repetitions: int) -> dict[str, Any]:
    """All in turn, as often as asked; medians, ratios to the baseline and the largest difference from its logits."""
    names = (BASELINE, *ENGINES)
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = write_bundle(folder)
        for _ in range(repetitions):
            for name in names:
                arguments = json.dumps([name, str(bundle), list(shape), str(folder / f"{name}.npy")])
                command = [sys.executable, __file__, "--measure", arguments]
                measured = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
                seconds[name].append(json.loads(measured))
        expected = np.load(folder / f"{BASELINE}.npy")
        differences = {name: float(np.abs(np.load(folder / f"{name}.npy") - expected).max()) for name in names}
    totals = {name: statistics.median(each["user"] + each["system"] for each in seconds[name]) for name in names}
    ratios = {name: totals[name] / totals[BASELINE] for name in ENGINES}
    assert all(differences[name] < AGREEMENT[name] for name in ENGINES), differences
    return {
        "shape": list(shape),
        "roi": list(ROI),
        "repetitions": repetitions,
        "cpu_seconds": {name: _median(seconds[name]) for name in names},
        "ratio": {**ratios, "best engine": min(ratios.values())},
        "target_ratio": TARGETS,
        "max_difference": differences,
    }


def table(result: dict[str, Any]) -> str:
    """The result for a person."""
    lines = [f"{'':24} {'user':>7} {'system':>7} {'of the baseline':>16} {'difference':>11}"]
    for name, seconds in result["cpu_seconds"].items():
        ratio = f"{result['ratio'].get(name, 1):.3f}"
        difference = result["max_difference"][name]
        lines.append(f"{name:24} {seconds['user']:7.2f} {seconds['system']:7.2f} {ratio:>16} {difference:11.1e}")
    for name, target in result["target_ratio"].items():
        lines.append(f"{name}: {result['ratio'][name]:.3f}, target {target:.3f}")
    return "\n".join(lines)


def _network(document: dict[str, Any]) -> TaskNetwork:
    model = document["model"]
    heads = {name: instantiate(node) for name, node in model["heads"].items()}
    return TaskNetwork(instantiate(model["backbone"]), heads)


def _median(measured: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(each[key] for each in measured), 3) for key in ("user", "system")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 256, 256), help="of the volume, ZYX")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        name, bundle, shape, output = json.loads(chosen.measure)
        print(json.dumps(measure(name, Path(bundle), shape, Path(output))))
        return
    result = run(chosen.shape, chosen.repetitions)
    write_result(chosen.result, result)
    print(table(result))


if __name__ == "__main__":
    main()
