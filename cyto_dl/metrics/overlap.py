"""How well a predicted mask covers the true one: Dice and IoU."""

from abc import abstractmethod
from typing import Any

import torch
from monai.metrics import compute_dice, compute_iou
from torch import Tensor

from cyto_dl.errors import ConfigError
from cyto_dl.metrics.per_image import PerImageMetric, check_same_shape


class _Overlap(PerImageMetric):
    """Masks per channel or class, compared by a function of MONAI."""

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

    def per_image(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The value of each image: the mean over its masks (or foreground classes), shape (B,).

        A mask that is empty in both is undefined; an image without any defined mask is NaN. A mask that is empty in
        the target alone counts 0, so that false alarms are seen.
        """
        if self.activation == "softmax":
            prediction, target = _class_masks(prediction, target)
        else:
            check_same_shape(prediction, target, metric=type(self).__name__)
            prediction, target = prediction > 0.5, target > 0.5
        values = self.compare(prediction.float(), target.float())
        empty = ~(prediction | target).flatten(2).any(dim=2)
        return torch.nanmean(values.masked_fill(empty, float("nan")), dim=1)

    @abstractmethod
    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One value per image and mask, (B, C), of masks B C (Z) Y X."""


class Dice(_Overlap):
    """Dice's coefficient, 2 TP / (2 TP + FP + FN), mean over images."""

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Dice per image and mask."""
        return compute_dice(prediction, target, ignore_empty=False)


class IoU(_Overlap):
    """Intersection over union (Jaccard's index), TP / (TP + FP + FN), mean over images."""

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        """IoU per image and mask."""
        return compute_iou(prediction, target, ignore_empty=False)


def _class_masks(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The masks of the foreground classes, both B (C-1) (Z) Y X, boolean."""
    num_classes = prediction.shape[1]
    if target.shape[1] == num_classes and num_classes > 1:
        target = target.argmax(dim=1, keepdim=True)
    check_same_shape(prediction[:, :1], target, metric="Dice and IoU over classes")
    classes = torch.arange(1, num_classes, device=prediction.device).reshape(-1, *[1] * (prediction.ndim - 2))
    return prediction.argmax(dim=1, keepdim=True) == classes, target.round().long() == classes
