"""How well predicted intensities agree with the true ones, pixel by pixel: Pearson, R2 and PSNR."""

import torch
from torch import Tensor

from cyto_dl.metrics.per_image import PerImageMetric, check_same_shape, flat_double

# torchmetrics has these three, but its R2 calls a target whose sum of squares is below 1e-4 constant (images scaled to
# 0..1e-3 are not) and its Pearson warns rather than skips; all three are a line each, on centred values.


class Pearson(PerImageMetric):
    """Pearson's correlation coefficient of all pixels and channels of an image, -1..1, mean over images.

    It does not see a wrong offset or a wrong (positive) gain; R2 does. A constant prediction or target is undefined.
    """

    def per_image(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The correlation within each image, shape (B,)."""
        check_same_shape(prediction, target, metric="Pearson")
        x, y = (values - values.mean(1, keepdim=True) for values in map(flat_double, (prediction, target)))
        undefined = _constant(prediction) | _constant(target)
        correlation = (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()
        return correlation.masked_fill(undefined, float("nan"))


class R2(PerImageMetric):
    """Coefficient of determination, 1 - SSE / SST over all pixels of an image, mean over images.

    1 is perfect, 0 is as good as the target's mean, and it is negative below that. A constant target is undefined.
    """

    def per_image(self, prediction: Tensor, target: Tensor) -> Tensor:
        """R2 of each image, shape (B,)."""
        check_same_shape(prediction, target, metric="R2")
        x, y = flat_double(prediction), flat_double(target)
        residual = (y - x).square().sum(1)
        total = (y - y.mean(1, keepdim=True)).square().sum(1)
        return (1 - residual / total).masked_fill(_constant(target), float("nan"))


class PSNR(PerImageMetric):
    """Peak signal-to-noise ratio, 10 log10(range^2 / MSE) in dB, mean over images.

    The range is the target's own, maximum minus minimum, image by image. A constant target is undefined; a perfect
    prediction is infinite.
    """

    def per_image(self, prediction: Tensor, target: Tensor) -> Tensor:
        """PSNR of each image in dB, shape (B,)."""
        check_same_shape(prediction, target, metric="PSNR")
        x, y = flat_double(prediction), flat_double(target)
        data_range = y.amax(1) - y.amin(1)
        ratio = 10 * torch.log10(data_range.square() / (y - x).square().mean(1))
        return ratio.masked_fill(_constant(target), float("nan"))


def _constant(image: Tensor) -> Tensor:
    values = flat_double(image)
    return values.amax(1) == values.amin(1)
