"""An average over images: undefined ones are skipped, batches and processes do not matter."""

import pytest
import torch

from cyto_dl.errors import ConfigError
from cyto_dl.metrics import (
    NRMSE,
    PSNR,
    R2,
    SSIM,
    AffinePSNR,
    Dice,
    InstanceAP,
    InstanceF1,
    InstancePQ,
    IoU,
    Pearson,
    PerImageMetric,
)

OF_MASKS = [Dice, IoU]
OF_OBJECTS = [InstanceAP, InstanceF1, InstancePQ]
ALL = [*OF_MASKS, *OF_OBJECTS, Pearson, R2, PSNR, AffinePSNR, SSIM, NRMSE]


class First(PerImageMetric):
    """The first pixel of the prediction."""

    def per_image(self, prediction, target):
        return prediction.flatten(1)[:, 0]


def pixels(*values):
    return torch.tensor(values).reshape(-1, 1, 1, 1)


def test_the_mean_leaves_out_undefined_and_infinite_images():
    metric = First()
    metric.update(pixels(float("inf")), None)
    metric.update(pixels(1.0, float("nan")), None)
    metric.update(pixels(float("nan")), None)
    metric.update(pixels(4.0), None)
    assert metric.compute() == 2.5


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_the_mean_of_no_image_is_undefined():
    metric = First()
    assert torch.isnan(metric.compute())
    metric.update(pixels(float("nan")), None)
    assert torch.isnan(metric.compute())
    metric.reset()
    metric.update(pixels(3.0), None)
    assert metric.compute() == 3


@pytest.mark.parametrize("metric_class", ALL)
@pytest.mark.parametrize("space", [(12, 13), (8, 9, 10)])
def test_the_mean_does_not_depend_on_batches_or_processes(metric_class, space):
    generator = torch.Generator().manual_seed(0)
    num_channels = 1 if metric_class in OF_OBJECTS else 2
    prediction, target = torch.rand((2, 5, num_channels, *space), generator=generator)
    if metric_class in OF_MASKS:
        target = (target > 0.5).float()
    if metric_class in OF_OBJECTS:
        target, prediction = (target * 3).long(), (0.9 * target + 0.1 * prediction).mul(3).long()
    whole, parts = metric_class(), [metric_class(), metric_class()]
    whole.update(prediction, target)
    parts[0].update(prediction[:2], target[:2])
    parts[1].update(prediction[2:], target[2:])
    assert {reduction.__name__ for reduction in whole._reductions.values()} == {"dim_zero_sum"}  # what DDP does
    mean = sum(part.total for part in parts) / sum(part.num_images for part in parts)
    assert torch.allclose(whole.compute(), mean, atol=1e-6)  # single precision sums
    assert torch.allclose(whole.compute(), metric_class().per_image(prediction, target).mean().float(), atol=1e-5)


@pytest.mark.parametrize("metric_class", ALL)
def test_shapes_that_broadcast_are_refused(metric_class):
    with pytest.raises(ConfigError, match=r"\(2, 1, 8, 8\).*\(2, 3, 8, 8\)"):
        metric_class().update(torch.rand(2, 1, 8, 8), torch.rand(2, 3, 8, 8))


def test_metrics_add_nothing_to_a_checkpoint():
    assert all(not metric_class().state_dict() for metric_class in ALL)
