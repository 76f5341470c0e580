"""How well a predicted mask covers the true one: Dice and IoU."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from cyto_dl.errors import ConfigError
from cyto_dl.metrics.per_image import check_same_shape
from cyto_dl.metrics.pooled import CountMetric

# A head's masks are not known before its first image, and processes can only add up counts of one size, also when one
# of them saw no image.
MAX_MASKS = 64
_COUNTS = 3  # TP, FP and FN


class _Overlap(CountMetric):
    """Masks per channel or class. A mask without a pixel in both is undefined; one with false pixels alone counts 0."""

    def __init__(self, *, activation: str = "sigmoid", **kwargs: Any) -> None:
        """Make the metric.

        Args:
            activation: What the head's output went through. "sigmoid": every channel is a mask, where it exceeds 0.5.
                "softmax": the most probable class of each pixel is compared with class indices (one channel) or with
                one-hot classes; class 0 is background and not counted.
            **kwargs: Those of torchmetrics.Metric.

        Raises:
            ConfigError: Another activation was named.
        """
        super().__init__(**kwargs)
        if activation not in ("sigmoid", "softmax"):
            raise ConfigError(f"metrics: activation is {activation!r}; an overlap needs sigmoid or softmax.")
        self.activation = activation

    @property
    def num_statistics(self) -> int:
        return MAX_MASKS * _COUNTS

    def statistics(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Counts of pixels per image, (B, 64 * 3): TP, FP and FN of each mask; masks that a head lacks have none.

        Raises:
            ConfigError: The shapes do not fit, or there are more than 64 masks.
        """
        if self.activation == "softmax":
            prediction, target = _class_masks(prediction, target)
        else:
            check_same_shape(prediction, target, metric=type(self).__name__)
            prediction, target = prediction > 0.5, target > 0.5
        if prediction.shape[1] > MAX_MASKS:
            raise ConfigError(f"{type(self).__name__} takes at most {MAX_MASKS} masks, not {prediction.shape[1]}.")
        counts = [mask.flatten(2).sum(2) for mask in (prediction & target, prediction & ~target, ~prediction & target)]
        per_mask = torch.stack(counts, dim=2).cpu().double()
        missing = per_mask.new_zeros(len(per_mask), MAX_MASKS - per_mask.shape[1], _COUNTS)
        return torch.cat([per_mask, missing], dim=1).flatten(1)

    def from_statistics(self, statistics: Tensor) -> Tensor:
        """The mean over masks (or foreground classes) that are defined; NaN where none is."""
        return torch.nanmean(self._per_mask(statistics), dim=-1)

    def parts(self, statistics: Tensor) -> dict[str, Tensor]:
        """The value of each channel, named 0, 1, ..., or of each class, whose names start at 1; none where one is."""
        values = self._per_mask(statistics)
        defined = (~torch.isnan(values)).reshape(-1, MAX_MASKS).any(0).nonzero().flatten().tolist()
        first = 1 if self.activation == "softmax" else 0
        return {str(first + index): values[..., index] for index in defined} if len(defined) > 1 else {}

    def _per_mask(self, statistics: Tensor) -> Tensor:
        """The value of each mask from counts (..., 64 * 3): (..., 64), NaN where a mask has no pixel in both."""
        tp, fp, fn = statistics.unflatten(-1, (MAX_MASKS, _COUNTS)).unbind(-1)
        return self.compare(tp, fp, fn)

    @abstractmethod
    def compare(self, tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
        """The value of numbers of pixels."""


class Dice(_Overlap):
    """Dice's coefficient, 2 TP / (2 TP + FP + FN), mean over masks, mean over images."""

    def compare(self, tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
        """Dice."""
        return 2 * tp / (2 * tp + fp + fn)


class IoU(_Overlap):
    """Intersection over union (Jaccard's index), TP / (TP + FP + FN), mean over masks, mean over images."""

    def compare(self, tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
        """IoU."""
        return tp / (tp + fp + fn)


def _class_masks(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The masks of the foreground classes, both B (C-1) (Z) Y X, boolean."""
    num_classes = prediction.shape[1]
    if target.shape[1] == num_classes and num_classes > 1:
        target = target.argmax(dim=1, keepdim=True)
    check_same_shape(prediction[:, :1], target, metric="Dice and IoU over classes")
    classes = torch.arange(1, num_classes, device=prediction.device).reshape(-1, *[1] * (prediction.ndim - 2))
    return prediction.argmax(dim=1, keepdim=True) == classes, target.round().long() == classes
