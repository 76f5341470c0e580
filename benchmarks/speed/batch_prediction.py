"""Batch prediction of 200 small images through a pipeline's step, against the bare loop over a `Predictor`.

    OMP_NUM_THREADS=1 python benchmarks/speed/batch_prediction.py

Both load examples/bundles/nuclei and predict the same files, in turn. Ours also writes an OME-TIFF and a record of
each image. The ratio is that of the throughputs by CPU time. Writes benchmarks/speed/results/batch_prediction.json.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.results import write_result
from cyto_dl.bundle import load_bundle
from cyto_dl.data.image import read_image, write_image
from cyto_dl.steps import plan_step, predict_step

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "examples" / "bundles" / "nuclei"
IMAGES = ROOT / "examples" / "nuclei" / "images"
RESULT = Path(__file__).parent / "results" / "batch_prediction.json"
TARGET_RATIO = 0.9
SIZE_PX = 96  # what the network does with larger images only hides what we add


def make_images(folder: Path, num_images: int) -> Path:
    """A manifest of corners of the example images, each a file of its own."""
    paths = []
    for number, source in zip(range(num_images), itertools.cycle(sorted(IMAGES.glob("*.tif")))):  # endless
        image = read_image(source, spatial_dims=2)
        paths.append(folder / f"image_{number:03}.ome.tif")
        write_image(paths[-1], image.array[:, :SIZE_PX, :SIZE_PX])
    pd.DataFrame({"raw": paths}).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def run(folder: Path, num_images: int, repeats: int) -> dict[str, Any]:
    """Medians of the CPU seconds of both."""
    manifest = make_images(folder, num_images)
    paths = list(pd.read_csv(manifest)["raw"])
    outputs = (str(folder / f"out-{number}") for number in itertools.count())

    def bare() -> None:
        predictor = load_bundle(BUNDLE)
        for path in paths:
            predictor.predict(predictor.read(path))

    def ours() -> None:
        output, plan = next(outputs), str(folder / "plan")
        (shard,) = plan_step(str(manifest), str(BUNDLE), output, column="raw", num_shards=1, plan_dir=plan)
        counts = predict_step(plan, shard, str(BUNDLE), output, table_path=str(folder / "table.csv"))
        assert counts == {"predicted": num_images, "kept": 0, "failed": 0}

    load_bundle(BUNDLE)  # imports, and what is compiled at first use
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(repeats):
        seconds["bare"].append(_cpu_seconds(bare))
        seconds["ours"].append(_cpu_seconds(ours))
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "num_images": num_images,
        "size_px": SIZE_PX,
        "repeats": repeats,
        "cpu_seconds": medians,
        "ratio": medians["bare"] / medians["ours"],
        "target_ratio": TARGET_RATIO,
    }


def _cpu_seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the result, show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=1, help="of which the median is taken")
    parser.add_argument("--result", type=Path, default=RESULT)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        result = run(Path(name), chosen.images, chosen.repeats)
    write_result(chosen.result, result)
    bare, ours = result["cpu_seconds"]["bare"], result["cpu_seconds"]["ours"]
    print(f"{chosen.images} images: bare loop {bare:.1f} s, through the step {ours:.1f} s of CPU time")
    print(f"of the bare loop's throughput: {result['ratio']:.3f} (target at least {TARGET_RATIO})")


if __name__ == "__main__":
    main()
