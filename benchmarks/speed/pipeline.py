"""What a local pipeline costs beyond its steps' own work, and what each step loads:

    OMP_NUM_THREADS=1 python benchmarks/speed/pipeline.py

Runs `python -m pipelines run` for training and batch_prediction on tiny images and a tiny network, so that the steps'
own work is small and what is added to it is not hidden. In each process probe/sitecustomize.py counts the CPU time. The
overhead is that of the process which starts the steps, and of each step until its own code begins; the ratio is the
part of all CPU time that is the steps' own work. Writes benchmarks/speed/results/pipeline.json.

Beside it: storage.py (checkpoints against plain boto3), batch_prediction.py (200 images against the bare loop).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.results import write_result
from cyto_dl.data.image import write_image

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).parent / "probe"
RESULT = Path(__file__).parent / "results" / "pipeline.json"
BUNDLE = ROOT / "examples" / "bundles" / "nuclei"
TINY = [
    "data.patch_shape=[32,32]",
    "data.patches_per_image=2",
    "data.batch_size=2",
    "model.backbone.filters=[4,4,8,8]",
    "trainer.max_epochs=1",
]
NETWORK = ("train", "evaluate", "export", "predict")  # the steps that need torch


def make_images(folder: Path) -> Path:
    """A manifest of ten images of bright squares in noise."""
    rng = np.random.default_rng(0)
    rows = []
    for number, split in enumerate(["train"] * 6 + ["valid"] * 2 + ["test"] * 2):
        mask = np.kron(rng.random((8, 8)) < 0.2, np.ones((8, 8))).astype(np.uint8)
        paths = {name: folder / f"{name}_{number}.ome.tif" for name in ("raw", "seg")}
        write_image(paths["raw"], (rng.normal(200, 20, mask.shape) + 600.0 * mask).astype(np.uint16)[np.newaxis])
        write_image(paths["seg"], mask[np.newaxis])
        rows.append({**paths, "split": split})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def measure(name: str, arguments: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """The CPU seconds of one local run: all, those of every step, and those that are no step's own work."""
    probe = folder / f"probe-{name}"
    probe.mkdir()
    words = [f"{key}={value}" for key, value in arguments.items()]
    command = [sys.executable, "-m", "pipelines", "run", name, *words, "--workspace", str(folder / f"runs-{name}")]
    environment = {**os.environ, "PYTHONPATH": f"{PROBE}{os.pathsep}{ROOT}", "CYTO_DL_PROBE": str(probe)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    before = _children_cpu_seconds()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    total = _children_cpu_seconds() - before
    processes = [json.loads(path.read_text()) for path in sorted(probe.iterdir())]
    (launcher,) = [each for each in processes if each["module"] == "pipelines"]
    steps = [each for each in processes if each["step"]]
    overhead = launcher["cpu_seconds"] + sum(each["start_cpu_seconds"] for each in steps)
    return {
        "cpu_seconds": total,
        "launcher_cpu_seconds": launcher["cpu_seconds"],
        "overhead_cpu_seconds": overhead,
        "ratio": 1 - overhead / total,
        "steps": [{key: each[key] for key in each if key != "module"} for each in steps],
    }


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(folder: Path, repeats: int) -> dict[str, Any]:
    """Of each pipeline the run whose ratio is the median."""
    manifest = str(make_images(folder))
    arguments = {
        "training": {
            "manifest": manifest,
            "target_cols": '["seg"]',
            "overrides": json.dumps(TINY),
            "model_name": "benchmark",
        },
        "batch_prediction": {"manifest": manifest, "bundle": str(BUNDLE)},
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments}
    for number in range(repeats):
        for name, given in arguments.items():
            workspace = folder / str(number)
            workspace.mkdir(exist_ok=True)
            output = {"output": str(workspace / "predictions")} if name == "batch_prediction" else {}
            found[name].append(measure(name, {**given, **output}, workspace))
    medians = {name: sorted(each, key=lambda one: one["ratio"])[len(each) // 2] for name, each in found.items()}
    return {"command": "OMP_NUM_THREADS=1 python benchmarks/speed/pipeline.py", "repeats": repeats, **medians}


def table(result: Mapping[str, Any]) -> str:
    """The result for a person."""
    lines = []
    for name in ("training", "batch_prediction"):
        of = result[name]
        lines.append(
            f"{name}: {of['cpu_seconds']:.1f} s of CPU time, of which {of['ratio']:.3f} are the steps' own; overhead "
            f"{of['overhead_cpu_seconds']:.2f} s, {of['launcher_cpu_seconds']:.2f} s of it in `python -m pipelines`"
        )
        for step in of["steps"]:
            surplus = " TORCH IN A LIGHT STEP" if "torch" in step["libraries"] and step["step"] not in NETWORK else ""
            lines.append(
                f"  {step['step']:14} {step['cpu_seconds']:6.2f} s, starts after {step['start_cpu_seconds']:.2f} s; "
                f"{', '.join(step['libraries'])}{surplus}"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the result, show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="of which the median is taken")
    parser.add_argument("--result", type=Path, default=RESULT)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        result = run(Path(name), chosen.repeats)
    write_result(chosen.result, result)
    print(table(result))


if __name__ == "__main__":
    main()
