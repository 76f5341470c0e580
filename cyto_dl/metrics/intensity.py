"""How well predicted intensities agree with the true ones, pixel by pixel: Pearson, R2, PSNR and NRMSE."""

import numpy as np
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
    prediction is infinite, and left out of the mean.
    """

    def per_image(self, prediction: Tensor, target: Tensor) -> Tensor:
        """PSNR of each image in dB, shape (B,)."""
        check_same_shape(prediction, target, metric="PSNR")
        x, y = flat_double(prediction), flat_double(target)
        return _psnr(y - x, y).masked_fill(_constant(target), float("nan"))


class AffinePSNR(PerImageMetric):
    """PSNR in dB after the prediction was given the gain and offset that suit the target best, mean over images.

    The fit is by least squares over all pixels and channels of an image; the range is the target's own, maximum minus
    minimum, as in `PSNR`, which this one never falls below. A constant target is undefined.

    Source: Weigert et al., "Content-aware image restoration", 2018 (there for NRMSE and SSIM).
    """

    def per_image(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Affine-fitted PSNR of each image in dB, shape (B,)."""
        check_same_shape(prediction, target, metric="AffinePSNR")
        x, y = (values - values.mean(1, keepdim=True) for values in map(flat_double, (prediction, target)))
        gain = (x * y).sum(1, keepdim=True) / x.square().sum(1, keepdim=True)
        fitted = (gain * x).masked_fill(_constant(prediction)[:, None], 0)  # the best constant is the target's mean
        return _psnr(y - fitted, y).masked_fill(_constant(target), float("nan"))


class NRMSE(PerImageMetric):
    """Root mean squared error over the target's range, mean over images; 0 is perfect.

    The range is that between the target's 0.1st and 99.9th percentile, image by image, so that a hot pixel does not
    make every prediction look good. Where the two are equal (a constant target, or one with next to no foreground)
    it is undefined.

    Source: the percentiles are those by which Weigert et al., "Content-aware image restoration", 2018, normalise.
    """

    higher_is_better = False

    def per_image(self, prediction: Tensor, target: Tensor) -> Tensor:
        """NRMSE of each image, shape (B,)."""
        check_same_shape(prediction, target, metric="NRMSE")
        x, y = flat_double(prediction), flat_double(target)
        # numpy's, because torch's quantile refuses more than 16 million values
        low, high = torch.from_numpy(np.percentile(y.cpu().numpy(), (0.1, 99.9), axis=1)).to(y)
        return ((y - x).square().mean(1).sqrt() / (high - low)).masked_fill(low == high, float("nan"))


def _psnr(error: Tensor, target: Tensor) -> Tensor:
    data_range = target.amax(1) - target.amin(1)
    return 10 * torch.log10(data_range.square() / error.square().mean(1))


def _constant(image: Tensor) -> Tensor:
    values = flat_double(image)
    return values.amax(1) == values.amin(1)
