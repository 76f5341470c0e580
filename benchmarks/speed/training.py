"""Steps of training against a bare torch loop with the same network, patches, loss and optimizer.

    python benchmarks/speed/training.py

CytoDL's side is what `cyto-dl train experiment=im2im/segmentation` runs: Lightning, DataframeDatamodule with its cache,
random patches and their augmentation, without validation, previews, loggers and checkpoints. The bare loop has its
batches in memory: it neither reads, cuts, augments nor logs, and its network's weights lie in memory in the same order.
Both run in processes of their own, in turn, with glibc's settings for large arrays (cyto_dl.allocator) and one thread
(OMP_NUM_THREADS). Compared is the CPU time, user and system, of a step after a warm-up, as the bare loop's part of
ours. Writes benchmarks/speed/results/training.json.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback

from benchmarks.results import write_result
from cyto_dl.allocator import keep_freed_memory
from cyto_dl.config import compose_experiment, instantiate
from cyto_dl.train import build_trainer

RESULT = Path(__file__).parent / "results" / "training.json"
TARGET_RATIO = 0.95
WARM_UP_STEPS = 3
SHAPES = {2: (512, 512), 3: (32, 128, 128)}
NUM_IMAGES, PATCHES_PER_IMAGE = 8, 16


def write_images(folder: Path, spatial_dims: int) -> Path:
    """Images of noise with masks of boxes, and their manifest; what they show does not matter to a step."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["raw,seg,split"]
    for index in range(NUM_IMAGES):
        mask = np.zeros(SHAPES[spatial_dims], np.uint8)
        mask[..., 20:100, 30:90] = 1
        np.save(folder / f"raw_{index}.npy", rng.integers(0, 2**12, mask.shape, dtype=np.uint16))
        np.save(folder / f"seg_{index}.npy", mask)
        lines.append(f"raw_{index}.npy,seg_{index}.npy,train")
    (folder / "manifest.csv").write_text("\n".join(lines))
    return folder


def experiment(folder: Path, spatial_dims: int, num_steps: int) -> dict[str, Any]:
    """The shipped segmentation on these images, with what this benchmark leaves out switched off."""
    overrides = [
        "experiment=im2im/segmentation",
        f"data.path={folder}/manifest.csv",
        f"paths.cache_dir={folder}/cache",
        f"spatial_dims={spatial_dims}",
        "target_col=seg",
        f"data.patches_per_image={PATCHES_PER_IMAGE}",
        "trainer=cpu",
        "logger=none",
        "callbacks=none",
        f"+trainer.max_steps={num_steps}",
        "trainer.max_epochs=-1",
        "+trainer.limit_val_batches=0",
        "+trainer.enable_progress_bar=false",
        "+trainer.enable_model_summary=false",
    ]
    return compose_experiment(overrides, output_dir=folder / "run")


class Clock(Callback):
    """The process's CPU time at the end of every training step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time."""
        self.seconds.append(time.process_time())


def steps_of_ours(folder: Path, spatial_dims: int, num_steps: int) -> list[float]:
    """CPU time at the end of each step of CytoDL's training."""
    config = experiment(folder, spatial_dims, num_steps)
    datamodule = instantiate(config["data"], "data", _recursive_=False)
    model = instantiate(config["model"], "model")
    trainer, clock = build_trainer(config), Clock()
    trainer.callbacks.append(clock)  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    trainer.fit(model, datamodule=datamodule)
    return clock.seconds


def steps_of_bare_loop(folder: Path, spatial_dims: int, num_steps: int) -> list[float]:
    """CPU time at the end of each step of a loop in torch alone."""
    config = experiment(folder, spatial_dims, num_steps)
    datamodule = instantiate(config["data"], "data", _recursive_=False)
    datamodule.setup("fit")
    model = instantiate(config["model"], "model").train()
    optimizer = instantiate(config["model"]["optimizer"]["generator"], "optimizer")(model.network.parameters())
    batches = [(batch["raw"], batch["seg"]) for batch in itertools.islice(datamodule.train_dataloader(), num_steps)]
    loss_of = model.tasks["seg"].loss
    seconds = []
    for source, target in itertools.islice(itertools.cycle(batches), num_steps):
        optimizer.zero_grad()
        loss_of(model.network(source)["seg"], target).backward()
        optimizer.step()
        seconds.append(time.process_time())
    return seconds


LOOPS = {"bare torch loop": steps_of_bare_loop, "cyto_dl": steps_of_ours}


def run(spatial_dims: int, num_steps: int, repetitions: int) -> dict[str, Any]:
    """Both loops in turn, as often as asked: the median of their CPU seconds a step, and the median ratio."""
    measured: dict[str, list[float]] = {name: [] for name in LOOPS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_images(Path(temporary) / "images", spatial_dims)
        for _, name in itertools.product(range(repetitions), LOOPS):
            arguments = json.dumps([name, str(folder), spatial_dims, num_steps])
            command = [sys.executable, __file__, "--measure", arguments]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            seconds = json.loads(answer.splitlines()[-1])
            measured[name].append((seconds[-1] - seconds[WARM_UP_STEPS - 1]) / (len(seconds) - WARM_UP_STEPS))
    bare, ours = measured.values()
    return {
        "cpu_seconds_per_step": {name: round(statistics.median(each), 4) for name, each in measured.items()},
        "ratio": statistics.median(one / other for one, other in zip(bare, ours, strict=True)),
        "steps": num_steps,
        "repetitions": repetitions,
    }


def table(result: dict[str, Any]) -> str:
    """The result for a person."""
    lines = [f"{'CPU seconds a step':20} {'bare torch loop':>16} {'cyto_dl':>9} {'ratio':>7}"]
    for name, found in result["loops"].items():
        bare, ours = found["cpu_seconds_per_step"].values()
        lines.append(f"{name:20} {bare:16.3f} {ours:9.3f} {found['ratio']:7.3f}")
    return "\n".join([*lines, f"target ratio {result['target_ratio']}"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        keep_freed_memory()
        name, folder, *rest = json.loads(chosen.measure)
        print(json.dumps(LOOPS[name](Path(folder), *rest)))
        return
    loops = {f"{dims}-D": run(dims, chosen.steps, chosen.repetitions) for dims in (2, 3)}
    result = {"loops": loops, "target_ratio": TARGET_RATIO}
    write_result(chosen.result, result)
    print(table(result))


if __name__ == "__main__":
    main()
