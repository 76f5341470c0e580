"""Nuclei in fluorescence images: instance segmentation on the split of StarDist's own training notebook.

    python benchmarks/accuracy/dsb2018.py data/dsb2018

The data are the 447 training images of the subset of the 2018 Data Science Bowl that the StarDist paper uses
(github.com/stardist/stardist/releases/download/0.1.0/dsb2018.zip, CC0), with manifest.csv: raw,nuclei,split. Trained on
its 380 training images; the 67 validation images choose the checkpoint and the thresholds of decoding, nothing else.
StarDist's published demo model reaches there AP@.5 .8352, F1 .9102, PQ .7711, counts pooled over the images.
Writes benchmarks/accuracy/results/dsb2018.json, and the bundle that examples/bundles/nuclei is a copy of.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.hardware import trainer_overrides
from benchmarks.accuracy.thresholds import choose_thresholds
from benchmarks.results import write_result
from cyto_dl.bundle import export_bundle, load_bundle
from cyto_dl.bundle.checkpoint import predictor_from_checkpoint
from cyto_dl.config import compose_experiment
from cyto_dl.data.image import read_image
from cyto_dl.data.manifest import Row, read_manifest
from cyto_dl.evaluation import evaluate, write_report
from cyto_dl.train import train

RESULT = Path(__file__).parent / "results" / "dsb2018.json"
STARDIST_DEMO = {"ap50_pooled": 0.8352, "f1_pooled": 0.9102, "pq_pooled": 0.7711}
TARGET = {"ap50_pooled": 0.87, "pq_pooled": 0.80}
HEAD = "objects"
# Five levels of 16 to 128 channels: the field of view covers the largest nuclei, and the bundle stays below 10 MB.
BACKBONE = (
    "model.backbone.filters=[16,32,64,96,128]",
    "model.backbone.kernel_size=[3,3,3,3,3]",
    "model.backbone.strides=[1,2,2,2,2]",
    "model.backbone.upsample_kernel_size=[2,2,2,2]",
)
THRESHOLDS = {
    "foreground": (0.4, 0.5, 0.6),
    "seed": ([0.5], [0.7], [0.5, 0.65, 0.8], [0.5, 0.6, 0.7, 0.8, 0.9]),
    "min_seed": (4, 8, 12),
    "min_size": (20,),
}


def main() -> None:
    """Train, choose thresholds, export, and measure the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with manifest.csv")
    parser.add_argument("--run", type=Path, default=Path("logs/benchmarks/dsb2018"), help="where the run goes")
    parser.add_argument("--epochs", type=int, default=100, help="of 1,520 patches")
    parser.add_argument("--result", type=Path, default=RESULT)
    chosen = parser.parse_args()
    start, cpu_start = time.perf_counter(), time.process_time()
    manifest = chosen.data / "manifest.csv"
    config = experiment(manifest, chosen.run / "training", chosen.epochs)
    train(config)
    trained_s, trained_cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    predictor, _, _ = predictor_from_checkpoint(chosen.run / "training", config=config)
    rows = _rows(manifest)
    thresholds, tried = choose_thresholds(
        predictor,
        [read_image(str(row["raw"]), **predictor.input.load) for row in rows],
        [read_image(str(row[HEAD]), spatial_dims=2).array[0] for row in rows],
        head=HEAD,
        grid=THRESHOLDS,
    )
    measured = measure(export(chosen.run, thresholds), config, manifest, chosen.run)
    export(chosen.run, thresholds, metrics={f"valid/{HEAD}/{key}": each for key, each in measured["metrics"].items()})
    result = {
        "benchmark": "dsb2018",
        "split": "the 67 validation images of StarDist's notebook, 2,543 objects",
        "stardist_demo": STARDIST_DEMO,
        "target": TARGET,
        "epochs": chosen.epochs,
        "thresholds": thresholds,
        "thresholds_tried": tried,
        **measured,
        "training_wall_s": round(trained_s),
        "training_cpu_s": round(trained_cpu_s),
    }
    write_result(chosen.result, result)
    print({key: round(result["metrics"][key], 4) for key in ("ap50_pooled", "f1_pooled", "pq_pooled", "ap50")})


def experiment(manifest: Path, output_dir: Path, epochs: int) -> dict[str, Any]:
    """im2im/instance_seg with a deeper backbone and test-time augmentation."""
    return compose_experiment(
        [
            "experiment=im2im/instance_seg",
            *trainer_overrides(),
            f"data.path='{manifest}'",
            "data.num_workers=1",
            "+data.persistent_workers=true",
            *BACKBONE,
            "model.inference.roi_size=[256,256]",
            "model.inference.overlap=0.3",
            "model.inference.augment=rotations",
            f"trainer.max_epochs={epochs}",
            "trainer.check_val_every_n_epoch=5",
            "trainer.gradient_clip_val=5.0",
            "test=false",
            "callbacks.early_stopping=null",
            "callbacks.previews=null",
            "extras.print_config=false",
            "run_name=dsb2018",
        ],
        output_dir=output_dir,
    )


def export(run: Path, thresholds: Mapping[str, Any], *, metrics: Mapping[str, float] | None = None) -> Path:
    """The run's best checkpoint as a bundle, whose card says what was measured."""
    return export_bundle(
        run / "training",
        run / "bundle",
        name="nuclei",
        metrics=metrics,
        settings={f"model.postprocessing.prediction.{HEAD}.{key}": value for key, value in thresholds.items()},
    )


def measure(bundle: Path, config: Mapping[str, Any], manifest: Path, run: Path) -> dict[str, Any]:
    """The bundle's metrics, and pooled AP@.5 with twice the tile and without test-time augmentation."""
    predictor = load_bundle(bundle)
    evaluation = evaluate(predictor, config, manifest=manifest, split="valid")
    write_report(evaluation, run / "report.html")
    roi = [int(side) for side in predictor.window.roi_size or ()]
    windows = {
        "with_twice_the_tile": replace(predictor.window, roi_size=[2 * side for side in roi]),
        "without_augmentation": replace(predictor.window, augment=None),
    }
    others = {
        name: evaluate(replace(predictor, window=window), config, manifest=manifest, split="valid").summary
        for name, window in windows.items()
    }
    prefix = f"valid/{HEAD}/"
    return {
        "metrics": {key.removeprefix(prefix): value for key, value in evaluation.summary.items()},
        "intervals": {key.removeprefix(prefix): value for key, value in evaluation.intervals.items()},
        **{f"ap50_pooled_{name}": summary[f"{prefix}ap50_pooled"] for name, summary in others.items()},
        "seconds_per_image": float(evaluation.images["seconds"].mean()),
        "bundle_bytes": sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()),
    }


def _rows(manifest: Path) -> list[Row]:
    columns = {"raw": "raw", HEAD: "nuclei"}
    return read_manifest(manifest, columns=columns, split_column="split", source_key="raw")["valid"]


if __name__ == "__main__":
    torch.set_num_threads(1)  # figures that can be compared from one machine to the next
    main()
