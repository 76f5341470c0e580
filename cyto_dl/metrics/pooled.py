"""Metrics made of counts that add up:  image -> counts -> value per image, or images -> sum of counts -> pooled value

The two differ: the mean weighs images alike, pooling weighs objects (or pixels) alike.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from cyto_dl.errors import ConfigError
from cyto_dl.metrics.per_image import PerImageMetric


class CountMetric(PerImageMetric):
    """The mean over images of a value that is computed from each image's counts."""

    @property
    @abstractmethod
    def num_statistics(self) -> int:
        """How many counts an image has: k."""

    @abstractmethod
    def statistics(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The counts of each image, (B, k), float64 on the CPU. Arguments as for `per_image`."""

    @abstractmethod
    def from_statistics(self, statistics: Tensor) -> Tensor:
        """The value of counts (..., k), of one image or summed over several: (...), NaN where it is undefined."""

    def parts(self, statistics: Tensor) -> dict[str, Tensor]:
        """What the value is the mean of, such as classes, by name: their values (...) of counts (..., k).

        Those that are undefined in all of `statistics` are left out; empty where there are no parts to tell apart.
        """
        return {}

    def per_image(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The value of each image, shape (B,), NaN where it is undefined."""
        return self.from_statistics(self.statistics(prediction, target))


class PooledMetric(Metric):
    """The value of a metric computed from its counts summed over all images, of an epoch and of all processes."""

    full_state_update = False
    higher_is_better = True  # as are all metrics of counts
    is_differentiable = False
    total: Tensor

    def __init__(self, metric: CountMetric, **kwargs: Any) -> None:
        """Make the metric.

        Args:
            metric: What is pooled, for example Dice() or InstanceAP().
            **kwargs: Those of torchmetrics.Metric.

        Raises:
            ConfigError: The metric has no counts.
        """
        super().__init__(**kwargs)
        if not isinstance(metric, CountMetric):
            raise ConfigError(
                f"metrics: {type(metric).__name__} has no counts that can be summed over images; pool one of "
                "Dice, IoU, InstanceAP, InstanceF1 and InstancePQ."
            )
        self.metric = metric
        # Single precision, which every device has: counts of objects are exact to 16 million, of pixels to 7 digits.
        self.add_state("total", default=torch.zeros(metric.num_statistics), dist_reduce_fx="sum")

    def statistics(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The counts of each image, (B, k)."""
        return self.metric.statistics(prediction, target)

    def from_statistics(self, statistics: Tensor) -> Tensor:
        """The value of summed counts (..., k): (...)."""
        return self.metric.from_statistics(statistics)

    def parts(self, statistics: Tensor) -> dict[str, Tensor]:
        """The values of the metric's parts, such as classes."""
        return self.metric.parts(statistics)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch; arguments as for the metric that is pooled."""
        self.total += self.statistics(prediction, target).sum(0).to(self.total)

    def compute(self) -> Tensor:
        """The value of the counts of all images added since the last reset; NaN where there was nothing to count."""
        return self.from_statistics(self.total)
