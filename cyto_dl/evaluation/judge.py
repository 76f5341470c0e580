"""Compare what a predictor makes of one image with what is true:  row -> source, targets -> values and counts"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
import torch
from skimage.filters import threshold_otsu
from torch import Tensor
from torchmetrics import Metric

from cyto_dl.data.image import Image, read_image, select_array
from cyto_dl.data.manifest import Row
from cyto_dl.data.stages import for_missing
from cyto_dl.data.transforms import Transform, run_transforms
from cyto_dl.errors import ImageError
from cyto_dl.evaluation.confusion import count_confusion
from cyto_dl.evaluation.scores import Measured
from cyto_dl.evaluation.seen import look_at
from cyto_dl.inference.predictor import Predictor
from cyto_dl.metrics import CountMetric, Dice, InstanceAP, PooledMetric

BASELINE = "otsu_"  # before the name of a metric: what a threshold without any training reaches


@dataclass(frozen=True)
class Judge:
    """Reads the images of a row and compares what is predicted with what is true.

    Args:
        predictor: The model.
        target_transforms: From a row to targets in the geometry of the original image.
        metrics: Head -> name -> metric.
    """

    predictor: Predictor
    target_transforms: list[Transform]
    metrics: Mapping[str, Mapping[str, Metric]]

    def all_metrics(self) -> dict[str, Metric]:
        """<head>/<metric> -> metric, with those of the baseline."""
        return {
            f"{head}/{name}": metric
            for head, metrics in self.metrics.items()
            for name, metric in {**metrics, **self.baseline(head)}.items()
        }

    def baseline(self, head: str) -> dict[str, Metric]:
        """The metrics that Otsu's threshold is measured by; none for heads that it cannot stand in for."""
        output = self.predictor.outputs[head]
        if output["kind"] == "instances":
            name, metric, pooled = "ap50", InstanceAP(thresholds=[0.5]), InstanceAP(thresholds=[0.5])
            return {f"{BASELINE}{name}": metric, f"{BASELINE}{name}_pooled": PooledMetric(pooled)}
        if output["activation"] == "sigmoid":
            return {f"{BASELINE}dice": Dice(), f"{BASELINE}dice_pooled": PooledMetric(Dice())}
        return {}

    def source(self, row: Row) -> Image:
        """The source image."""
        load, value = self.predictor.input.load, row[self.predictor.input.name]
        if isinstance(value, str):
            return read_image(value, **load)
        selection: dict[str, Any] = {key: load.get(key) for key in ("spatial_dims", "channels", "z")}
        return select_array(np.asarray(value), name=str(row["row"]), **selection)

    def targets(self, row: Row) -> dict[str, Tensor]:
        """Head -> target C (Z) Y X in the metrics' units, on the head's own pixel grid; of the heads that have one."""
        item = {key: value for key, value in row.items() if key != self.predictor.input.name}
        missing = [head for head in self.metrics if head not in item]
        transforms = for_missing(self.target_transforms, missing) if missing else self.target_transforms
        made = run_transforms(transforms, item, path=str(row["row"]))
        return {
            head: torch.as_tensor(made[head]).as_subclass(Tensor).float()
            for head in self.metrics
            if head not in missing
        }

    def measure(self, row: Row) -> Measured:
        """Every metric of every head that has a target in this row.

        Raises:
            ImageError: An image cannot be read, or a target is of another size, or no label image where it should be.
        """
        source, targets = self.source(row), self.targets(row)
        start = time.perf_counter()
        outputs = self.predictor.activations(source)
        row_of_table = {"path": source.path, "seconds": round(time.perf_counter() - start, 3)}
        measured = Measured(row_of_table, {}, seen=look_at(source))
        for head, target in targets.items():
            output = outputs[head]
            if output.shape[1:] != target.shape[1:]:
                raise ImageError(
                    f"{row['row']}: the target '{head}' has {tuple(target.shape[1:])} pixels, and the prediction for "
                    f"{source.path} has {tuple(output.shape[1:])}."
                )
            try:
                batch = output[None], target[None]  # the same two tensors for all: objects are matched once
                _compare(measured, head, self.metrics[head], *batch)
                matrix = count_confusion(self.predictor.outputs[head], *batch)
                if matrix is not None:
                    measured.confusion[head] = matrix
                if self._suits_otsu(head, source, target):
                    _compare(measured, head, self.baseline(head), self._otsu(head, source)[None], batch[1])
            except ImageError as error:
                file = f" ({row[head]})" if isinstance(row[head], str) else ""
                raise ImageError(f"{row['row']}: the target '{head}'{file}: {error}") from error
        return measured

    def _suits_otsu(self, head: str, source: Image, target: Tensor) -> bool:
        if target.shape != (1, *source.array.shape[1:]):
            return False
        return self.predictor.outputs[head]["kind"] == "instances" or bool(((target == 0) | (target == 1)).all())

    def _otsu(self, head: str, source: Image) -> Tensor:
        channel = source.array[0]
        mask = channel > threshold_otsu(channel)
        if self.predictor.outputs[head]["kind"] == "instances":
            return torch.from_numpy(cc3d.connected_components(mask).astype(np.int64))[None]
        return torch.from_numpy(mask.astype(np.float32))[None]


def _compare(measured: Measured, head: str, metrics: Mapping[str, Metric], prediction: Tensor, target: Tensor) -> None:
    """Add the values and counts of one head, of a batch of one image, to what was measured on the image."""
    batch = prediction, target
    for name, metric in metrics.items():
        column = f"{head}/{name}"
        if isinstance(metric, PooledMetric):
            measured.counts[column] = metric.statistics(*batch)[0]
        elif isinstance(metric, CountMetric):
            measured.counts[column] = metric.statistics(*batch)[0]
            measured.row[column] = float(metric.from_statistics(measured.counts[column]))
        else:
            measured.row[column] = _value(metric, *batch)


def _value(metric: Any, output: Tensor, target: Tensor) -> float:
    if hasattr(metric, "per_image"):
        return float(metric.per_image(output, target)[0])
    metric.reset()
    metric.update(output, target)
    return float(metric.compute())
