"""Nuclei of Arabidopsis ovules in 3-D: train on one crop, test on the other, and the other way round.

    python benchmarks/accuracy/ovules_3d.py data/ovules_3d

The data are the two 100 x 100 x 100 crops of PlantSeg's test resources (github.com/kreshuklab/plant-seg, MIT):
<number>_raw.ome.tif and <number>_nuclei.ome.tif. For the networks, nothing is chosen on the crop that is tested: the
number of epochs is fixed, three networks that differ in their seed are averaged, and the thresholds of decoding are
those that suit the crop that was learnt from (of equal ones the first in THRESHOLDS). For the baseline it is: the best,
on the tested crop itself, of Otsu's threshold and a watershed of the distance transform over smoothings, distances of
seeds, and sizes below which objects are left out.
Nuclei are some 19 voxels wide. The networks see every second voxel along each axis, which makes a step 8 times as cheap
per volume; objects are decoded and compared on all voxels. They predict in windows of 24 of these coarser voxels; twice
that still fits into a crop. One crop is one image, so that there is no interval over images.
Writes benchmarks/accuracy/results/ovules_3d.json.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

from benchmarks.accuracy.hardware import trainer_overrides
from benchmarks.accuracy.thresholds import choose_thresholds
from benchmarks.results import write_result
from cyto_dl.bundle import export_bundle, load_bundle
from cyto_dl.config import compose_experiment
from cyto_dl.data.image import read_image
from cyto_dl.evaluation import evaluate
from cyto_dl.metrics import match_objects
from cyto_dl.model.utils.postprocessing import instances
from cyto_dl.resume import last_checkpoint
from cyto_dl.train import train

CROPS = ("1135", "1136")
COARSER = 2.0  # voxels of a crop per voxel that the network sees, along each axis; crops say no size, so these are µm
PATCH_SHAPE = (32, 32, 32)  # of training
WINDOW = (24, 24, 24)  # of prediction
SEEDS = (1, 2, 3)  # of the networks that are averaged
BORDER_PX = 3.0  # of the coarser grid, where a nucleus has a radius of some 5
RESULT = Path(__file__).parent / "results" / "ovules_3d.json"
SMALLEST = (20, 200, 500, 1000)  # voxels
THRESHOLDS = {  # what im2im/instance_seg has comes first
    "foreground": (0.5, 0.7),
    "seed": ([0.5, 0.65, 0.8], [0.5], [0.7]),
    "min_seed": (12, 50, 150),
    "min_size": SMALLEST,
}
TARGET_GAIN = 0.10  # of AP@.5 above the baseline


def main() -> None:
    """Train and test both ways, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with 1135_raw.ome.tif, 1135_nuclei.ome.tif, 1136_...")
    parser.add_argument("--runs", type=Path, default=Path("logs/benchmarks/ovules_3d"), help="where the runs go")
    parser.add_argument("--epochs", type=int, default=60, help="of 64 patches")
    parser.add_argument("--result", type=Path, default=RESULT)
    chosen = parser.parse_args()
    start, cpu_start = time.perf_counter(), time.process_time()
    folds = {test: measure(chosen.data, learnt, test, chosen.runs, chosen.epochs) for learnt, test in _folds()}
    mean = {key: float(np.mean([fold[key] for fold in folds.values()])) for key in ("ap50", "baseline_ap50")}
    result = {
        "benchmark": "ovules_3d",
        "target": f"ap50 at least {TARGET_GAIN} above baseline_ap50 on each crop",
        "networks": len(SEEDS),
        "epochs": chosen.epochs,
        "tested_on": folds,
        "mean": mean,
        "wall_s": round(time.perf_counter() - start),
        "cpu_s": round(time.process_time() - cpu_start),
    }
    write_result(chosen.result, result)
    for test, fold in folds.items():
        print(f"{test}: AP@.5 {fold['ap50']:.3f}, Otsu + watershed {fold['baseline_ap50']:.3f}")


def measure(data: Path, train_crop: str, test_crop: str, runs: Path, epochs: int) -> dict[str, Any]:
    """Train on one crop; the metrics of the other, the baseline's, and those with twice the tile."""
    run = runs / f"tested_on_{test_crop}"
    run.mkdir(parents=True, exist_ok=True)
    manifest = _write_manifest(data, run / "manifest.csv", train_crop, test_crop)
    configs = [experiment(manifest, run / f"training_{seed}", epochs, seed) for seed in SEEDS]
    for config in configs:
        train(config)
    checkpoints = [last_checkpoint(run / f"training_{seed}") for seed in SEEDS]
    averaged = load_bundle(export_bundle(checkpoints, run / "bundle", name="ovules"))
    predictor = replace(averaged, window=replace(averaged.window, roi_size=list(WINDOW)))
    thresholds, _ = choose_thresholds(
        replace(predictor, window=replace(predictor.window, augment=None)),
        [read_image(_path(data, train_crop, "raw"), spatial_dims=3)],
        [_read(data, train_crop, "nuclei")],
        head="objects",
        grid=THRESHOLDS,
    )
    predictor = replace(predictor, postprocess={"objects": partial(instances, **thresholds)})
    evaluation = evaluate(predictor, configs[0], manifest=manifest)
    twice = replace(predictor, window=replace(predictor.window, roi_size=[2 * side for side in WINDOW]))
    with_twice = evaluate(twice, configs[0], manifest=manifest).summary["test/objects/ap50"]
    name, baseline = best_baseline(data, test_crop)
    summary = {key.removeprefix("test/objects/"): value for key, value in evaluation.summary.items()}
    ap50 = summary["ap50"]
    return {
        "ap50": ap50,
        "baseline_ap50": baseline,
        "baseline": name,
        "gain": ap50 - baseline,
        "ap50_with_twice_the_tile": with_twice,
        "thresholds": thresholds,
        "metrics": summary,
    }


def experiment(manifest: Path, output_dir: Path, epochs: int, seed: int) -> dict[str, Any]:
    """im2im/instance_seg in 3-D, for voxels that are as deep as they are wide: all rotations and flips."""
    config = compose_experiment(
        [
            "experiment=im2im/instance_seg",
            *trainer_overrides(),
            f"seed={seed}",
            "spatial_dims=3",
            f"data.path='{manifest}'",
            f"data.patch_shape={list(PATCH_SHAPE)}",
            "data.patches_per_image=64",
            "data.batch_size=4",
            "model.inference.overlap=0.5",
            "model.inference.augment=rotations",
            f"model._aux.border_px={BORDER_PX}",
            f"trainer.max_epochs={epochs}",
            "+trainer.limit_val_batches=0",  # there is no third crop to choose a checkpoint by: the last one is tested
            "callbacks.best=null",
            "callbacks.early_stopping=null",
            "test=false",
            "callbacks.previews=null",
            "callbacks.progress_bar=null",
            "extras.print_config=false",
            "run_name=ovules_3d",
        ],
        output_dir=output_dir,
    )
    config["data"]["transforms"]["preprocess"].append(
        {
            "_target_": "monai.transforms.Spacingd",
            "keys": ["raw", "objects"],
            "pixdim": [COARSER] * 3,
            "mode": ["bilinear", "nearest"],
        }
    )
    keys = {"keys": ["raw", "objects"], "prob": 0.5}
    config["data"]["transforms"]["augment"] += [
        {"_target_": "monai.transforms.RandFlipd", "spatial_axis": 0, **keys},
        {"_target_": "monai.transforms.RandRotate90d", "spatial_axes": [0, 1], **keys},
    ]
    return config


def best_baseline(data: Path, crop: str) -> tuple[str, float]:
    """What is done without training, at its best on this very crop: its settings and AP@.5."""
    raw, truth = _read(data, crop, "raw").astype(np.float32), _read(data, crop, "nuclei")
    scored = {name: float(match_objects(truth, labels, thresholds=[0.5]).ap[0]) for name, labels in _baselines(raw)}
    best = max(scored, key=scored.__getitem__)
    return best, scored[best]


def _baselines(raw: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for sigma, min_distance in itertools.product((0, 1, 2, 3), (3, 5, 7, 9)):
        smooth = ndimage.gaussian_filter(raw, sigma)
        mask = smooth > threshold_otsu(smooth)
        distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1)
        components, _ = ndimage.label(mask)
        markers = np.zeros(mask.shape, np.int32)
        peaks = peak_local_max(distance, min_distance=min_distance, labels=components)
        markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        labels = watershed(-distance, markers, mask=mask)
        sizes = np.bincount(labels.ravel())
        for smallest in (0, *SMALLEST):
            name = f"sigma {sigma}, seeds {min_distance} px apart, objects of {smallest} voxels and more"
            yield name, np.where(sizes[labels] >= smallest, labels, 0)


def _folds() -> Iterator[tuple[str, str]]:
    first, second = CROPS
    yield first, second
    yield second, first


def _write_manifest(data: Path, path: Path, train_crop: str, test_crop: str) -> Path:
    rows = [
        {"raw": _path(data, crop, "raw"), "nuclei": _path(data, crop, "nuclei"), "split": split}
        for split, crop in {"train": train_crop, "test": test_crop}.items()
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def _path(data: Path, crop: str, what: str) -> str:
    return str((data / f"{crop}_{what}.ome.tif").resolve())


def _read(data: Path, crop: str, what: str) -> np.ndarray:
    array: np.ndarray = read_image(_path(data, crop, what), spatial_dims=3).array[0]
    return array


if __name__ == "__main__":
    torch.set_num_threads(1)  # figures that can be compared from one machine to the next
    main()
