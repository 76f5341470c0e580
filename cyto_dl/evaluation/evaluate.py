"""Measure a model on one split of a manifest:  source -> Predictor -> activations, target -> metrics -> table"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchmetrics import Metric

from cyto_dl.bundle.provenance import manifest_sha256
from cyto_dl.config import instantiate
from cyto_dl.data.image import Image, read_image, select_array
from cyto_dl.data.manifest import Row, collect_rows, read_manifest
from cyto_dl.data.stages import for_targets, stages
from cyto_dl.data.transforms import Transform, run_transforms
from cyto_dl.errors import ConfigError, ImageError, ManifestError
from cyto_dl.evaluation.figures import Figure, draw
from cyto_dl.inference.predictor import Predictor
from cyto_dl.metrics import Dice, default_metrics

logger = logging.getLogger(__name__)

BASELINE = "otsu_dice"  # what a threshold without any training reaches
CONFIDENCE = 0.95
NUM_RESAMPLES = 2000  # the interval's ends then vary by less than its second digit


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Args:
        name: Of the model.
        split: Of the manifest.
        images: One row an image: path, a column <head>/<metric> each, seconds.
        summary: <split>/<head>/<metric> -> mean over the images where the metric is defined.
        intervals: The same keys -> 95 % interval of that mean, by bootstrap over images; absent for one image.
        figures: Head -> best, median and worst image.
        provenance: Where model and data come from.
        config: The parts of the experiment that decide the numbers.
    """

    name: str
    split: str
    images: pd.DataFrame
    summary: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    figures: dict[str, list[Figure]]
    provenance: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Judge:
    """Reads the images of a row and compares what is predicted with what is true."""

    predictor: Predictor
    target_transforms: list[Transform]
    metrics: Mapping[str, Mapping[str, Metric]]  # head -> name -> metric

    def source(self, row: Row) -> Image:
        load, value = self.predictor.input.load, row[self.predictor.input.name]
        if isinstance(value, str):
            return read_image(value, **load)
        selection: dict[str, Any] = {key: load.get(key) for key in ("spatial_dims", "channels", "z")}
        return select_array(np.asarray(value), name=str(row["row"]), **selection)

    def targets(self, row: Row) -> dict[str, Tensor]:
        """Head -> target C (Z) Y X in the metrics' units, on the original pixel grid."""
        item = {key: value for key, value in row.items() if key != self.predictor.input.name}
        made = run_transforms(self.target_transforms, item, path=str(row["row"]))
        return {head: torch.as_tensor(made[head]).as_subclass(Tensor).float() for head in self.metrics}

    def measure(self, row: Row) -> dict[str, Any]:
        source, targets = self.source(row), self.targets(row)
        start = time.perf_counter()
        outputs = self.predictor.activations(source)
        measured: dict[str, Any] = {"path": source.path, "seconds": round(time.perf_counter() - start, 3)}
        for head, metrics in self.metrics.items():
            output, target = outputs[head], targets[head]
            if output.shape[1:] != target.shape[1:]:
                raise ImageError(
                    f"{row['row']}: the target '{head}' has {tuple(target.shape[1:])} pixels, and the prediction for "
                    f"{source.path} has {tuple(output.shape[1:])}."
                )
            for name, metric in metrics.items():
                measured[f"{head}/{name}"] = _value(metric, output, target)
            if self._is_mask(head, source, target):
                measured[f"{head}/{BASELINE}"] = _value(Dice(), _otsu_mask(source), target)
        return measured

    def _is_mask(self, head: str, source: Image, target: Tensor) -> bool:
        binary = bool(((target == 0) | (target == 1)).all())
        same_grid = target.shape == (1, *source.array.shape[1:])
        return self.predictor.outputs[head]["activation"] == "sigmoid" and binary and same_grid


def evaluate(
    predictor: Predictor,
    config: Mapping[str, Any],
    *,
    manifest: str | PathLike[str] | Any,
    split: str = "test",
    split_column: str | None = None,
) -> Evaluation:
    """Measure a model on every image of a split, as it would be served.

    Args:
        predictor: From a bundle or a checkpoint.
        config: The resolved experiment: how targets are read, which metrics are wanted. Its code is run.
        manifest: A table of images, local or s3://, or rows in memory.
        split: "test", or another split that the manifest has.
        split_column: Default: data.split_column of the experiment, else "split".

    Raises:
        ManifestError: The table is wrong, or has no image of this split.
        ImageError: An image cannot be read, or its target has another size. Nothing is left out silently.
    """
    data = config["data"]
    rows = _rows(manifest, data, predictor.input.name, split, split_column or data.get("split_column") or "split")
    judge = _judge(predictor, config, split)
    images = pd.DataFrame([judge.measure(row) for row in rows])
    columns = [column for column in images.columns if "/" in column]
    images = images[["path", *columns, "seconds"]]
    summary, intervals = {}, {}
    for column in columns:
        values = images[column].dropna().to_numpy(dtype=float)
        if len(values):
            summary[f"{split}/{column}"] = float(values.mean())
        if len(values) > 1:
            intervals[f"{split}/{column}"] = bootstrap_interval(values)
    logger.info("%s on %s: %s", predictor.name, split, ", ".join(f"{k} {v:.3f}" for k, v in summary.items()))
    return Evaluation(
        name=predictor.name,
        split=split,
        images=images,
        summary=summary,
        intervals=intervals,
        figures=_figures(judge, rows, images),
        provenance={
            **predictor.metadata.get("provenance", {}),
            "evaluated_manifest_sha256": manifest_sha256(manifest),
        },
        config={"data": data, "model": config["model"]},
    )


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """The interval that holds the mean in 95 of 100 resamplings of the images."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (NUM_RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _rows(manifest: Any, data: Mapping[str, Any], source_key: str, split: str, split_column: str) -> list[Row]:
    read: Callable[..., dict[str, list[Row]]] = read_manifest if isinstance(manifest, (str, PathLike)) else collect_rows
    found = read(manifest, columns=data["columns"], split_column=split_column, source_key=source_key)
    if not found.get(split):
        name = manifest if isinstance(manifest, (str, PathLike)) else "the manifest"
        raise ManifestError(f"{name} has no image of the split '{split}'; it has {', '.join(found)}.")
    return found[split]


def _judge(predictor: Predictor, config: Mapping[str, Any], split: str) -> _Judge:
    key = predictor.input.name
    staged = stages(config["data"]["transforms"], split=split)
    tasks = config["model"]["task_heads"]
    absent = [head for head in predictor.outputs if head not in tasks or head not in config["data"]["columns"]]
    if absent:
        raise ConfigError(
            f"the experiment says nothing about the model's head '{absent[0]}' (model.task_heads, data.columns). "
            "Evaluate with the experiment that the model was trained with."
        )
    metrics = {}
    for head, output in predictor.outputs.items():
        wanted = tasks[head].get("metrics")
        metrics[head] = (
            {name: instantiate(node, f"model.task_heads.{head}.metrics.{name}") for name, node in wanted.items()}
            if wanted is not None
            else default_metrics(output["kind"], output["activation"])
        )
    return _Judge(predictor, for_targets([*staged.load, *staged.preprocess], key), metrics)


def _value(metric: Any, output: Tensor, target: Tensor) -> float:
    if hasattr(metric, "per_image"):
        return float(metric.per_image(output[None], target[None])[0])
    metric.reset()
    metric.update(output[None], target[None])
    return float(metric.compute())


def _otsu_mask(source: Image) -> Tensor:
    from skimage.filters import threshold_otsu

    channel = source.array[:1]
    return torch.from_numpy((channel > threshold_otsu(channel)).astype(np.float32))


def _figures(judge: _Judge, rows: list[Row], images: pd.DataFrame) -> dict[str, list[Figure]]:
    """Best, median and worst image of each head by its first metric; those few are predicted once more."""
    figures: dict[str, list[Figure]] = {}
    for head, metrics in judge.metrics.items():
        name = next(iter(metrics))
        column = f"{head}/{name}"
        order = images[column].dropna().sort_values(ascending=not metrics[name].higher_is_better).index.tolist()
        positions = {len(order) // 2: "median", len(order) - 1: "worst", 0: "best"} if order else {}
        chosen = {order[position]: positions[position] for position in sorted(positions)}
        figures[head] = [
            draw(
                rank,
                f"{name} {images[column][index]:.3f}",
                judge.source(rows[index]),
                target=judge.targets(rows[index])[head].numpy(),
                prediction=judge.predictor.activations(judge.source(rows[index]), heads=[head])[head].numpy(),
                activation=judge.predictor.outputs[head]["activation"],
            )
            for index, rank in chosen.items()
        ]
    return figures
