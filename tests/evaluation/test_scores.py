"""Means, pooled values and their intervals are those of the images' values and counts."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cyto_dl.evaluation.scores import Measured, bootstrap_interval, pooled_interval, score
from cyto_dl.metrics import PSNR, Dice, InstanceAP, PooledMetric


def measured(**columns):
    """Images with these values (numbers) and counts (tensors); None where an image lacks one."""
    num_images = len(next(iter(columns.values())))
    images = [Measured({"path": f"{index}.tif", "seconds": 0.1}, {}) for index in range(num_images)]
    for column, values in columns.items():
        for image, value in zip(images, values, strict=True):
            if isinstance(value, torch.Tensor):
                image.counts[column] = value
            elif value is not None:
                image.row[column] = value
    return images


def counts(*objects):
    """TP, FP, FN and sum of IoU of images, at one threshold."""
    return [torch.tensor([tp, fp, fn, 0.8 * tp], dtype=torch.float64) for tp, fp, fn in objects]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_the_interval_holds_the_mean_and_lies_within_the_values(values):
    array = np.array(values)
    low, high = bootstrap_interval(array)
    rounding = 1e-12
    assert array.min() - rounding <= low <= array.mean() + rounding
    assert array.mean() - rounding <= high <= array.max() + rounding
    assert bootstrap_interval(array) == (low, high)


def test_the_interval_covers_what_theory_says():
    values = np.random.default_rng(3).normal(size=400)
    low, high = bootstrap_interval(values)
    theory = 2 * 1.96 * values.std() / math.sqrt(len(values))
    assert high - low == pytest.approx(theory, rel=0.1)  # 2000 resamples scatter the quantiles by a few per cent


@pytest.mark.parametrize("num_images", [5, 8, 20])
def test_the_interval_of_few_images_holds_the_mean_as_often_as_it_says(num_images):
    draws = np.random.default_rng(0).normal(size=(1000, num_images))
    intervals = np.array([bootstrap_interval(values) for values in draws])
    held = np.mean((intervals[:, 0] < 0) & (intervals[:, 1] > 0))
    # no resampling leaves the values' range, which 5 of a normal distribution miss in 6 %; 1000 draws scatter by 0.8 %
    assert 0.9 < held < 0.97


def test_the_pooled_interval_covers_what_theory_says():
    rng = np.random.default_rng(0)
    num_found = rng.binomial(50, 0.8, size=300)  # of 50 true objects an image, none predicted falsely
    images = torch.stack(counts(*((found, 0, 50 - found) for found in num_found.tolist())))
    low, high = pooled_interval(PooledMetric(InstanceAP(thresholds=[0.5])), images)
    theory = 2 * 1.96 * math.sqrt(0.8 * 0.2 / 50 / 300)
    assert high - low == pytest.approx(theory, rel=0.1)  # 300 images and 2000 resamples scatter it by a few per cent
    assert low < num_found.sum() / 15000 < high


def test_the_interval_of_many_images_takes_memory_for_some_resamplings_at_a_time():
    values = np.random.default_rng(0).random(5000)
    tracemalloc.start()
    interval = bootstrap_interval(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6  # bytes: the 2000 x 5000 counts in one each, and two blocks of 8 MiB; as doubles they were 80 MB
    drawn = np.random.default_rng(0).multinomial(5000, np.full(5000, 1 / 5000), 2000)
    # Student's t and a standard deviation of 4999 make little of the 2.5 %; a quantile of 2000 is a mixture of two
    assert interval == pytest.approx(np.quantile(drawn @ values / 5000, [0.025, 0.975]), rel=1e-4)


def test_large_images_weigh_more_in_the_pooled_value_than_in_the_mean():
    metric = InstanceAP(thresholds=[0.5])
    objects = counts((90, 0, 10), (0, 1, 0))
    images = measured(**{"h/ap": [0.9, 0.0], "h/ap_pooled": objects})
    scores = score(images, {"h/ap": metric, "h/ap_pooled": PooledMetric(metric)})
    assert scores.summary == pytest.approx({"h/ap": 0.45, "h/ap_pooled": 90 / 101})
    assert scores.intervals["h/ap"] == pytest.approx((0, 0.9))
    assert scores.intervals["h/ap_pooled"] == pytest.approx((0, 0.9))  # one of the two images alone
    assert list(scores.images) == ["path", "h/ap", "seconds"]


def test_images_without_a_value_and_infinite_values_are_left_out():
    images = measured(**{"h/psnr": [30.0, math.inf, math.nan, None, 20.0]})
    scores = score(images, {"h/psnr": PSNR(), "h/absent": PSNR()})
    assert scores.summary == {"h/psnr": 25}
    assert scores.intervals.keys() == {"h/psnr"}
    assert math.isinf(scores.images["h/psnr"][1])
    assert scores.images["h/psnr"].isna().tolist() == [False, False, True, True, False]


def test_one_image_has_no_interval_and_empty_images_have_no_pooled_value():
    metrics = {"h/ap": InstanceAP(thresholds=[0.5]), "h/ap_pooled": PooledMetric(InstanceAP(thresholds=[0.5]))}
    single = score(measured(**{"h/ap": [0.5], "h/ap_pooled": counts((1, 0, 1))}), metrics)
    assert (single.summary, single.intervals) == ({"h/ap": 0.5, "h/ap_pooled": 0.5}, {})
    empty = score(measured(**{"h/ap": [math.nan] * 2, "h/ap_pooled": counts((0, 0, 0), (0, 0, 0))}), metrics)
    assert (empty.summary, empty.intervals) == ({}, {})
    some = score(measured(**{"h/ap": [math.nan, 0.5], "h/ap_pooled": counts((0, 0, 0), (1, 0, 1))}), metrics)
    assert some.intervals == {"h/ap_pooled": (0.5, 0.5)}  # resamplings of the empty image have no value


@pytest.mark.parametrize("space", [(6, 7), (3, 6, 7)])
def test_every_class_has_its_columns_and_figures(space):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (3, 1, *space), generator=generator).float()
    target[0] *= target[0] != 2  # the first image lacks class 2
    prediction = torch.rand((3, 3, *space), generator=generator)
    prediction[0, 2] = 0
    dice = Dice(activation="softmax")
    each = list(dice.statistics(prediction, target))
    values = dice.per_image(prediction, target).tolist()
    images = measured(**{"h/dice": values, "h/dice_pooled": each})
    for image, statistics in zip(images, each, strict=True):
        image.counts["h/dice"] = statistics
    scores = score(images, {"h/dice": dice, "h/dice_pooled": PooledMetric(dice)})
    assert list(scores.summary) == [
        *("h/dice", "h/dice_1", "h/dice_2"),
        *("h/dice_pooled", "h/dice_1_pooled", "h/dice_2_pooled"),
    ]
    assert scores.intervals.keys() == scores.summary.keys()
    assert list(scores.images) == ["path", "h/dice", "h/dice_1", "h/dice_2", "seconds"]
    assert scores.images["h/dice_2"].isna().tolist() == [True, False, False]
    assert scores.summary["h/dice_pooled"] == pytest.approx(
        (scores.summary["h/dice_1_pooled"] + scores.summary["h/dice_2_pooled"]) / 2
    )
    both = scores.images[["h/dice_1", "h/dice_2"]].mean(axis=1)
    assert both.tolist() == pytest.approx(scores.images["h/dice"].tolist())
