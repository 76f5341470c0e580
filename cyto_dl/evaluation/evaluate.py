"""Measure a model on one split of a manifest:  source -> Predictor -> activations, target -> metrics -> table"""

import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import pandas as pd
import torch
from torchmetrics import Metric

from cyto_dl.bundle.provenance import git_commit, manifest_sha256
from cyto_dl.config import instantiate
from cyto_dl.data.manifest import Row, collect_rows, read_manifest
from cyto_dl.data.stages import for_targets, made_targets, stages
from cyto_dl.errors import ConfigError, ManifestError
from cyto_dl.evaluation.confusion import Confusion, summed
from cyto_dl.evaluation.figures import Figure, draw
from cyto_dl.evaluation.judge import Judge
from cyto_dl.evaluation.scores import Measured, score
from cyto_dl.evaluation.seen import describe_seen
from cyto_dl.inference.predictor import Predictor
from cyto_dl.metrics import default_metrics

logger = logging.getLogger(__name__)


class NoTargetsError(ManifestError):
    """No image of the split has a target to compare with, as when only noisy images exist."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Args:
        name: Of the model.
        split: Of the manifest.
        images: One row an image: path, a column <head>/<metric> each, seconds.
        summary: <split>/<head>/<metric> -> mean over the images where the metric is finite, or for <metric>_pooled
            the value of all images' counts together. What no image defines is not in it.
        intervals: The same keys -> 95 % interval, by bootstrap over images; absent for one image.
        figures: Head -> best, median and worst image.
        provenance: Where model and data come from, and how the model was run.
        config: The parts of the experiment that decide the numbers.
        confusion: Head -> what was taken for what; of heads with masks, classes or objects.
        splits: How many rows each split of the manifest has.
        seen: What the source images that were measured are like, as a fingerprint describes a column.
        fingerprint: Of the data that the model was trained on, where the bundle says it; else empty.
    """

    name: str
    split: str
    images: pd.DataFrame
    summary: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    figures: dict[str, list[Figure]]
    provenance: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    confusion: dict[str, Confusion] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)
    fingerprint: dict[str, Any] = field(default_factory=dict)


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
        NoTargetsError: Its images of this split have no targets.
        ImageError: An image cannot be read, or its target has another size. Nothing is left out silently.
    """
    data, begin = config["data"], time.perf_counter()
    rows, splits = _rows(
        manifest, data, predictor.input.name, split, split_column or data.get("split_column") or "split"
    )
    judge = _judge(predictor, config, split)
    measured = [judge.measure(row) for row in rows]
    scores = score(measured, judge.all_metrics())
    summary = {f"{split}/{name}": value for name, value in scores.summary.items()}
    for head in predictor.outputs:
        start = f"{head}/"
        own = {name.removeprefix(start): value for name, value in scores.summary.items() if name.startswith(start)}
        logger.info("%s, %s/%s: %s", predictor.name, split, head, ", ".join(f"{k} {v:.3f}" for k, v in own.items()))
    figures = _figures(judge, rows, scores.images)
    return Evaluation(
        name=predictor.name,
        split=split,
        images=scores.images,
        summary=summary,
        intervals={f"{split}/{name}": interval for name, interval in scores.intervals.items()},
        figures=figures,
        provenance={
            **predictor.metadata.get("provenance", {}),
            "evaluation_commit": git_commit(),
            "evaluated_manifest_sha256": manifest_sha256(manifest),
            "inference": _how_it_ran(predictor.metadata),
            "evaluation_hardware": _hardware(predictor.device),
            "evaluation_seconds": round(time.perf_counter() - begin, 1),
        },
        config={"data": data, "model": config["model"]},
        confusion=_confusion(judge, measured),
        splits=splits,
        seen=describe_seen([image.seen for image in measured if image.seen is not None]),
        fingerprint=dict(predictor.metadata.get("fingerprint") or {}),
    )


def head_metrics(head: str, output: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Metric]:
    """What a head is measured by: the metrics that the experiment names, else those of its kind.

    Args:
        head: Its name.
        output: Its kind and activation, as a predictor's `outputs` say.
        config: The resolved experiment. Its code is run.
    """
    wanted = config["model"]["task_heads"][head].get("metrics")
    if wanted is None:
        return default_metrics(output["kind"], output["activation"])
    return {name: instantiate(node, f"model.task_heads.{head}.metrics.{name}") for name, node in wanted.items()}


def _rows(
    manifest: Any, data: Mapping[str, Any], source_key: str, split: str, split_column: str
) -> tuple[list[Row], dict[str, int]]:
    """The rows of a split that have a target, and how many rows every split has."""
    read: Callable[..., dict[str, list[Row]]] = read_manifest if isinstance(manifest, (str, PathLike)) else collect_rows
    how = {"split_column": split_column, "source_key": source_key, "optional": made_targets(data["transforms"])}
    found = read(manifest, columns=data["columns"], **how)
    name = manifest if isinstance(manifest, (str, PathLike)) else "the manifest"
    if not found.get(split):
        raise ManifestError(f"{name} has no image of the split '{split}'; it has {', '.join(found)}.")
    targets = set(data["columns"]) - {source_key}
    rows = [row for row in found[split] if targets & row.keys()]
    if not rows:
        raise NoTargetsError(
            f"{name}: no image of the split '{split}' has a target ({', '.join(sorted(targets))}) to compare with. "
            "Fill in its column for some images of this split, also where a training makes its own."
        )
    if num_without := len(found[split]) - len(rows):
        logger.info("%d of %d images have no target and are not measured", num_without, len(found[split]))
    return rows, {name: len(each) for name, each in found.items() if each}


def _judge(predictor: Predictor, config: Mapping[str, Any], split: str) -> Judge:
    key = predictor.input.name
    staged = stages(config["data"]["transforms"], split=split)
    tasks = config["model"]["task_heads"]
    absent = [head for head in predictor.outputs if head not in tasks or head not in config["data"]["columns"]]
    if absent:
        raise ConfigError(
            f"the experiment says nothing about the model's head '{absent[0]}' (model.task_heads, data.columns). "
            "Evaluate with the experiment that the model was trained with."
        )
    metrics = {head: head_metrics(head, output, config) for head, output in predictor.outputs.items()}
    return Judge(predictor, for_targets([*staged.load, *staged.preprocess], key), metrics)


def _how_it_ran(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Window, test-time augmentation and number of networks: the same model scores otherwise with others."""
    settings = {key: value for key, value in (metadata.get("inference") or {}).items() if value is not None}
    networks = len(metadata.get("ensemble") or [])
    return settings | ({"networks": networks} if networks else {})


def _hardware(device: torch.device) -> str:
    """What the images were measured on: times, and the last digits of numbers, depend on it."""
    host = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    return f"{torch.cuda.get_device_name(device)}, {host}" if device.type == "cuda" else f"{device.type}, {host}"


def _confusion(judge: Judge, measured: list[Measured]) -> dict[str, Confusion]:
    matrices = {
        head: [image.confusion[head] for image in measured if head in image.confusion] for head in judge.metrics
    }
    return {head: summed(head, judge.predictor.outputs[head], each) for head, each in matrices.items() if each}


def _figures(judge: Judge, rows: list[Row], images: pd.DataFrame) -> dict[str, list[Figure]]:
    """Three images of each head by its first metric that images have; those few are predicted once more."""
    return {
        head: [
            _figure(judge, head, rows[index], rank=rank, value=f"{name} {images[f'{head}/{name}'][index]:.3f}")
            for name in [name for name in metrics if f"{head}/{name}" in images][:1]
            for index, rank in _ranked(images[f"{head}/{name}"], metrics[name].higher_is_better).items()
        ]
        for head, metrics in judge.metrics.items()
    }


def _ranked(values: pd.Series, higher_is_better: bool | None) -> dict[int, str]:
    """Row -> rank of the first, middle and last image, in this order."""
    order = values.dropna().sort_values(ascending=higher_is_better is False).index.tolist()
    first, last = ("highest", "lowest") if higher_is_better is None else ("best", "worst")
    ranks = {len(order) // 2: "median", len(order) - 1: last, 0: first} if order else {}
    return {order[position]: ranks[position] for position in sorted(ranks)}


def _figure(judge: Judge, head: str, row: Row, *, rank: str, value: str) -> Figure:
    source = judge.source(row)
    return draw(
        rank,
        value,
        source,
        target=judge.targets(row)[head].numpy(),
        prediction=judge.predictor.activations(source, heads=[head])[head].numpy(),
        output=judge.predictor.outputs[head],
    )
