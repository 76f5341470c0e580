"""Pooling adds counts up over images, batches and processes."""

import pytest
import torch

from cyto_dl.errors import ConfigError
from cyto_dl.metrics import CountMetric, Dice, InstanceAP, Pearson, PooledMetric


class Share(CountMetric):
    """Pixels of the prediction above zero, of all its pixels."""

    num_statistics = 2

    def statistics(self, prediction, target):
        return torch.stack([(prediction > 0).flatten(1).sum(1), prediction[:, 0].flatten(1).sum(1) * 0 + 4], dim=1)

    def from_statistics(self, statistics):
        return statistics[..., 0] / statistics[..., 1]


def pixels(num_positive):
    return (torch.arange(4) < num_positive).float().reshape(1, 1, 2, 2)


def test_the_pooled_value_is_that_of_summed_counts():
    metric = PooledMetric(Share())
    for num_positive in (1, 4, 4):
        metric.update(pixels(num_positive), None)
    assert metric.compute() == 9 / 12
    metric.reset()
    metric.update(pixels(2), None)
    assert metric.compute() == 0.5


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("metric", [Dice(), InstanceAP()])
def test_nothing_to_count_is_undefined(metric):
    pooled = PooledMetric(metric)
    assert torch.isnan(pooled.compute())
    pooled.update(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    assert torch.isnan(pooled.compute())


@pytest.mark.parametrize("metric", [Dice(), InstanceAP()])
def test_processes_add_up_even_when_one_of_them_saw_no_image(metric):
    target = torch.zeros(2, 1, 4, 4)
    target[:, :, :2] = 1
    prediction = target.clone()
    prediction[1] = 0
    whole, *parts = (PooledMetric(metric) for _ in range(4))
    whole.update(prediction, target)
    parts[0].update(prediction[:1], target[:1])
    parts[1].update(prediction[1:], target[1:])
    assert {reduction.__name__ for reduction in whole._reductions.values()} == {"dim_zero_sum"}  # what DDP does
    total = torch.stack([part.total for part in parts]).sum(0)
    assert torch.equal(total, whole.total)
    assert whole.compute() == whole.from_statistics(total)
    assert not whole.state_dict()  # nothing in a checkpoint


def test_a_metric_without_counts_is_refused():
    with pytest.raises(ConfigError, match=r"Pearson has no counts.*pool one of Dice"):
        PooledMetric(Pearson())
