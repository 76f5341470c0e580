"""Stains from phase contrast: three fluorescent stains at once from a z-stack, beside a ridge regression.

    python benchmarks/accuracy/labelfree_isl.py data/labelfree_isl

The data are one field of human motor neurons of Christiansen et al., "In silico labeling", Cell 2018 (CC BY 4.0;
github.com/google/in-silico-labeling, isl/testdata/condition_blue_sample): phase_zstack.ome.tif, ZYX with six planes,
and dapi_, map2_ and nfh_confocal.ome.tif, YX. The field is divided by columns, with a gap: 0 to 575 train, 608 to 767
test. The training's settings were chosen within the training columns, by learning from one half of the rows and looking
at the other (docs/lab-notebook.md); the last checkpoint is tested. The networks differ in their seed, and the bundle
averages them. The ridge's penalties are chosen on the rows 864 to 1023, after learning from those before 832. With one
test image the intervals are over its tiles, 128 x 160 px.
Writes benchmarks/accuracy/results/labelfree_isl.json.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from benchmarks.accuracy.hardware import trainer_overrides
from benchmarks.results import write_result
from cyto_dl.bundle import export_bundle, load_bundle
from cyto_dl.config import compose_experiment
from cyto_dl.data.image import read_image, write_image
from cyto_dl.evaluation import evaluate
from cyto_dl.resume import last_checkpoint
from cyto_dl.train import train

STAINS = ("dapi", "map2", "nfh")
COLUMNS = {"train": slice(0, 576), "test": slice(608, 768)}
LEARNT_ROWS, CHOSEN_BY_ROWS = slice(0, 832), slice(864, 1024)  # of the training columns, for the ridge's penalties
SEEDS = (1, 2, 3)  # of the networks that are averaged
SIGMAS_PX = (1, 2, 4, 8, 16)  # the largest structure, a cluster of cells, is some 100 px wide
PENALTIES = tuple(10.0**power for power in range(-6, 3))
TILE_ROWS = 128
NUM_RESAMPLES = 2000
TARGET_GAIN = 0.10  # of Pearson's r above the ridge, for each stain
RESULT = Path(__file__).parent / "results" / "labelfree_isl.json"


class Field(NamedTuple):
    """A part of the field of view: the planes ZYX and each stain YX, uint16."""

    planes: np.ndarray
    stains: dict[str, np.ndarray]


def main() -> None:
    """Fit the ridge, train and test, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with phase_zstack.ome.tif, dapi_confocal.ome.tif, ...")
    parser.add_argument("--runs", type=Path, default=Path("logs/benchmarks/labelfree_isl"), help="where the run goes")
    parser.add_argument("--epochs", type=int, default=48, help="of 64 patches, for each network")
    parser.add_argument("--result", type=Path, default=RESULT)
    chosen = parser.parse_args()
    start, cpu_start = time.perf_counter(), time.process_time()
    fields = read_fields(chosen.data)
    ridge, penalties = ridge_predictions(fields)
    network, metrics = network_predictions(fields, chosen.runs, chosen.epochs)
    truth = fields["test"].stains
    stains = {stain: _compared(network[stain], ridge[stain], truth[stain]) for stain in STAINS}
    result = {
        "benchmark": "labelfree_isl",
        "target": f"pearson at least {TARGET_GAIN} above ridge_pearson for each stain",
        "intervals": f"95 %, by bootstrap over {len(_tiles(truth['dapi']))} tiles of {TILE_ROWS} x 160 px",
        "networks": len(SEEDS),
        "epochs": chosen.epochs,
        "stains": {stain: {**stains[stain], "metrics": metrics[stain]} for stain in STAINS},
        "ridge_penalties": penalties,
        "wall_s": round(time.perf_counter() - start),
        "cpu_s": round(time.process_time() - cpu_start),
    }
    write_result(chosen.result, result)
    for stain, figures in stains.items():
        print(f"{stain}: r {figures['pearson']:.3f}, ridge {figures['ridge_pearson']:.3f}, gain {figures['gain']:+.3f}")


def read_fields(data: Path) -> dict[str, Field]:
    """The parts of the field of view."""
    planes = read_image(data / "phase_zstack.ome.tif", spatial_dims=3).array[0]
    stains = {stain: read_image(data / f"{stain}_confocal.ome.tif", spatial_dims=2).array[0] for stain in STAINS}
    return {
        name: Field(planes[..., columns], {stain: image[:, columns] for stain, image in stains.items()})
        for name, columns in COLUMNS.items()
    }


def ridge_predictions(fields: Mapping[str, Field]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """What a linear model of each pixel's surroundings predicts for the test image, and the penalties chosen.

    Each stain's penalty is the one with the highest Pearson's r on the rows that choose; the model is then fitted to
    all training pixels.
    """
    inputs = features(fields["train"].planes)
    targets = np.stack([fields["train"].stains[stain].ravel() for stain in STAINS], 1).astype(np.float32)
    width = fields["train"].planes.shape[-1]
    learnt, chosen_by = (slice(rows.start * width, rows.stop * width) for rows in (LEARNT_ROWS, CHOSEN_BY_ROWS))
    scores = np.array(
        [
            [pearson(p, t) for p, t in zip((inputs[chosen_by] @ w + b).T, targets[chosen_by].T, strict=True)]
            for w, b in fit_ridge(inputs[learnt], targets[learnt])
        ]
    )
    final = fit_ridge(inputs, targets)
    tested = features(fields["test"].planes)
    predictions, penalties = {}, {}
    for index, stain in enumerate(STAINS):
        best = int(scores[:, index].argmax())
        weights, offset = final[best]
        predictions[stain] = (tested @ weights[:, index] + offset[index]).reshape(fields["test"].stains[stain].shape)
        penalties[stain] = PENALTIES[best]
    return predictions, penalties


def features(planes_ZYX: np.ndarray) -> np.ndarray:
    """Brightness, gradient, curvature and texture of each pixel's surroundings, in each plane: pixels x features."""
    found = []
    for plane in planes_ZYX.astype(np.float32) - 2**15:  # around 0, so that squares keep their digits
        found.append(plane)
        for sigma in SIGMAS_PX:
            mean = ndimage.gaussian_filter(plane, sigma)
            variance = ndimage.gaussian_filter(plane**2, sigma) - mean**2
            gradient = ndimage.gaussian_gradient_magnitude(plane, sigma)
            found += [mean, gradient, ndimage.gaussian_laplace(plane, sigma), np.sqrt(np.maximum(variance, 0))]
    return np.stack([image.ravel() for image in found], axis=1)


def fit_ridge(inputs: np.ndarray, targets: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and offsets of a ridge regression on standardised inputs, for each of PENALTIES.

    A penalty is in units of the standardised inputs' variance, which is 1. Normal equations: 126 inputs, 10^5 pixels.
    """
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0)
    standardised = (inputs - mean) / deviation
    centre = targets.mean(axis=0)
    covariance = (standardised.T @ standardised).astype(np.float64) / len(inputs)
    correlation = (standardised.T @ (targets - centre)).astype(np.float64) / len(inputs)
    fitted = []
    for penalty in PENALTIES:
        weights = np.linalg.solve(covariance + penalty * np.eye(len(covariance)), correlation) / deviation[:, None]
        fitted.append((weights, centre - mean @ weights))
    return fitted


def network_predictions(
    fields: Mapping[str, Field], runs: Path, epochs: int
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """Train one network per seed and average them; the test image's prediction and metrics, stain by stain."""
    manifest = write_manifest(fields, runs / "images")
    configs = [experiment(fields["train"], manifest, runs / f"training_{seed}", epochs, seed) for seed in SEEDS]
    for config in configs:
        train(config)
    checkpoints = [last_checkpoint(runs / f"training_{seed}") for seed in SEEDS]
    predictor = load_bundle(export_bundle(checkpoints, runs / "bundle", name="isl"))
    summary = evaluate(predictor, configs[0], manifest=manifest, split="test").summary
    predictions = predictor.predict(fields["test"].planes)
    metrics = {
        stain: {name.rpartition("/")[2]: value for name, value in summary.items() if f"/{stain}/" in name}
        for stain in STAINS
    }
    return {stain: image[0].astype(np.float32) for stain, image in predictions.items()}, metrics


def write_manifest(fields: Mapping[str, Field], folder: Path) -> Path:
    """The parts as files, the planes as channels, and the table of them."""
    rows = []
    for split, field in fields.items():
        images = {"phase": field.planes} | {stain: image[None] for stain, image in field.stains.items()}
        for name, image_CYX in images.items():
            write_image(folder / f"{split}_{name}.ome.tif", image_CYX)
        rows.append({name: f"{split}_{name}.ome.tif" for name in images} | {"split": split})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def experiment(learnt: Field, manifest: Path, output_dir: Path, epochs: int, seed: int) -> dict[str, Any]:
    """im2im/labelfree_stains with the six planes as channels: a 2-D network costs a sixth of a 3-D one."""
    targets = np.stack(list(learnt.stains.values())).astype(np.float32)
    config = compose_experiment(
        [
            "experiment=im2im/labelfree_stains",
            *trainer_overrides(),
            "run_name=isl",
            f"seed={seed}",
            "source_col=phase",
            "spatial_dims=2",
            f"raw_im_channels={len(learnt.planes)}",
            f"target_mean={targets.mean():.0f}",
            f"target_std={targets.std():.0f}",
            f"data.path='{manifest}'",
            "data.patch_shape=[192,192]",
            "data.patches_per_image=64",
            "data.batch_size=4",
            "model.backbone.strides=[2,2,2,2]",  # at half the resolution a step costs half
            "model.backbone.out_channels=16",
            "model.optimizer.generator.weight_decay=0.01",
            f"trainer.max_epochs={epochs}",
            "+trainer.limit_val_batches=0",  # the last checkpoint is tested
            "callbacks.best=null",
            "callbacks.early_stopping=null",
            "callbacks.previews=null",
            "callbacks.progress_bar=null",
            "extras.print_config=false",
            "test=false",
        ],
        output_dir=output_dir,
    )
    # the same for all parts of the field: a part's own deviation says how many cells are in it
    config["data"]["transforms"]["preprocess"][0] = {
        "_target_": "monai.transforms.NormalizeIntensityd",
        "keys": "raw",
        "subtrahend": float(learnt.planes.mean()),
        "divisor": float(learnt.planes.std()),
    }
    keys = ["raw", *STAINS]
    # Phase contrast casts shadows: flips and right-angle turns take away the direction of the light. Contrast varies
    # within the field: brighter shadows do not mean more stain (docs/lab-notebook.md has what each is worth).
    config["data"]["transforms"]["augment"] = [
        {
            "_target_": "monai.transforms.RandAffined",
            "keys": keys,
            "prob": 0.7,
            "rotate_range": [0.3],
            "scale_range": [0.2, 0.2],
            "padding_mode": "reflection",
            "mode": "bilinear",
        },
        {"_target_": "monai.transforms.RandScaleIntensityd", "keys": "raw", "factors": [-0.5, 1.0], "prob": 0.8},
        {"_target_": "monai.transforms.RandGaussianNoised", "keys": "raw", "std": 0.1, "prob": 0.5},
    ]
    for task in config["model"]["task_heads"].values():
        task["head"] = {
            "_target_": "cyto_dl.model.heads.UpsamplingHead",
            "in_channels": 16,
            "out_channels": 1,
            "spatial_dims": 2,
            "scale": 2,
            "num_blocks": 0,
        }
    config["model"]["lr_scheduler"]["generator"] = {
        "_target_": "torch.optim.lr_scheduler.OneCycleLR",
        "_partial_": True,
        "max_lr": 3.0e-3,
        "total_steps": epochs,
        "pct_start": 0.2,
    }
    return config


def _compared(network: np.ndarray, ridge: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Pearson's r of both predictions and their difference, with 95 % intervals by bootstrap over tiles."""
    tiles = _tiles(np.stack([network, ridge, truth]))
    moments = np.stack([_moments(tile) for tile in tiles])
    rng = np.random.default_rng(0)
    picked = rng.integers(0, len(tiles), (NUM_RESAMPLES, len(tiles)))
    resampled = np.array([_correlations(moments[chosen].sum(axis=0)) for chosen in picked])
    values = _correlations(moments.sum(axis=0))
    named = {"pearson": (values[0], resampled[:, 0]), "ridge_pearson": (values[1], resampled[:, 1])}
    named["gain"] = (values[0] - values[1], resampled[:, 0] - resampled[:, 1])
    return {name: float(value) for name, (value, _) in named.items()} | {
        f"{name}_interval": np.quantile(others, [0.025, 0.975]).tolist() for name, (_, others) in named.items()
    }


def _tiles(image: np.ndarray) -> list[np.ndarray]:
    return np.split(image, range(TILE_ROWS, image.shape[-2], TILE_ROWS), axis=-2)


def _moments(tile_CYX: np.ndarray) -> np.ndarray:
    """What correlations of several tiles together are computed from: products of (1, network, ridge, truth)."""
    pixels = tile_CYX.reshape(len(tile_CYX), -1).astype(np.float64)
    with_one = np.concatenate([np.ones((1, pixels.shape[1])), pixels])
    return with_one @ with_one.T


def _correlations(moments: np.ndarray) -> np.ndarray:
    """Pearson's r of network and of ridge with the truth."""
    mean = moments[0, 1:] / moments[0, 0]
    covariance = moments[1:, 1:] / moments[0, 0] - np.outer(mean, mean)
    deviation = np.sqrt(np.diag(covariance))
    return (covariance / np.outer(deviation, deviation))[:2, 2]


def pearson(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation coefficient of two images."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


if __name__ == "__main__":
    torch.set_num_threads(1)  # figures that can be compared from one machine to the next
    main()
