"""What all metrics share: a value per image, averaged over the images of an epoch and of all processes."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from cyto_dl.errors import ConfigError


class PerImageMetric(Metric, ABC):
    """The mean of one value per image; images for which the value is not finite are left out.

    That is an undefined value (NaN), and the infinite PSNR of a perfect prediction, of which there is no mean. Each
    image counts the same whatever its size, and the result does not depend on the batch size or on how many processes
    shared the images. Without any finite value the mean is NaN.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    total: Tensor
    num_images: Tensor

    def __init__(self, **kwargs: Any) -> None:
        """Make the metric; keyword arguments are those of torchmetrics.Metric."""
        super().__init__(**kwargs)
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_images", default=torch.tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def per_image(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The value of each image, shape (B,), NaN where it is undefined.

        Args:
            prediction: B C (Z) Y X, the activated output.
            target: B C (Z) Y X, in the same units.
        """

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        values = self.per_image(prediction, target)
        defined = torch.isfinite(values)
        self.total += values[defined].sum().to(self.total)
        self.num_images += defined.sum().to(self.num_images)

    def compute(self) -> Tensor:
        """The mean over all images added since the last reset."""
        return self.total / self.num_images  # 0 / 0 is NaN: nothing was defined


def check_same_shape(prediction: Tensor, target: Tensor, *, metric: str) -> None:
    """Refuse a prediction and a target of different shapes, which broadcasting would compare without a word."""
    if prediction.shape != target.shape:
        raise ConfigError(
            f"{metric}: the prediction has shape {tuple(prediction.shape)} and the target {tuple(target.shape)} "
            "(batch, channel, space). Give the head as many channels and pixels as its target."
        )


def flat_double(image: Tensor) -> Tensor:
    """One row per image, in double precision: sums over millions of pixels lose digits in single precision."""
    if image.device.type == "mps":  # has no double precision
        image = image.cpu()
    return image.double().flatten(1)
