"""An average over images: undefined ones are skipped, batches and processes do not matter."""

import pytest
import torch

from cyto_dl.errors import ConfigError
from cyto_dl.metrics import PSNR, R2, SSIM, Dice, IoU, Pearson, PerImageMetric, default_metrics

ALL = [Dice, IoU, Pearson, R2, PSNR, SSIM]


class First(PerImageMetric):
    """The first pixel of the prediction."""

    def per_image(self, prediction, target):
        return prediction.flatten(1)[:, 0]


def pixels(*values):
    return torch.tensor(values).reshape(-1, 1, 1, 1)


def test_the_mean_leaves_out_undefined_images():
    metric = First()
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
    prediction, target = torch.rand((2, 5, 2, *space), generator=generator)
    target = (target > 0.5).float() if metric_class in (Dice, IoU) else target
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


def test_defaults_are_new_objects_for_every_task():
    assert list(default_metrics("segmentation", "softmax")) == ["dice", "iou"]
    assert list(default_metrics("regression", "identity")) == ["pearson", "ssim", "psnr", "r2"]
    assert default_metrics("segmentation", "sigmoid")["dice"] is not default_metrics("segmentation", "sigmoid")["dice"]
