"""Scores of objects are those of the matching, mean over images and pooled, and images are matched once."""

import numpy as np
import pytest
import torch
from stardist.matching import matching, matching_dataset

from cyto_dl.errors import ConfigError, ImageError
from cyto_dl.metrics import IOU_THRESHOLDS, InstanceAP, InstanceF1, InstancePQ, PooledMetric, default_metrics
from cyto_dl.metrics import instances as module


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def batch(request):
    """Target and prediction, B 1 (Z) Y X: rows of boxes, some moved, with fewer objects from image to image."""
    shape = (4, 1, *[4] * (request.param - 2), 32, 32)
    target, prediction = np.zeros((2, *shape), np.int64)
    for image in range(4):
        for number in range(1, 5 - image):
            target[image, ..., 2:8, 8 * (number - 1) : 8 * number - 1] = number
            prediction[image, ..., 2 + number // 2 : 8, 8 * (number - 1) : 8 * number - 1] = number + 10
    prediction[3, ..., 20:30, 20:30] = 7  # a false object
    return torch.from_numpy(target), torch.from_numpy(prediction)


def test_values_are_those_of_stardist(batch):
    target, prediction = batch
    pairs = list(zip(target.numpy(), prediction.numpy(), strict=True))
    singles = [[matching(*pair, thresh=threshold) for pair in pairs] for threshold in IOU_THRESHOLDS]
    pooled = matching_dataset(target.numpy(), prediction.numpy(), thresh=IOU_THRESHOLDS, show_progress=False)
    for metric, name, thresholds in (
        (InstanceAP(), "accuracy", IOU_THRESHOLDS),
        (InstanceAP(thresholds=[0.75]), "accuracy", [0.75]),
        (InstanceF1(), "f1", [0.5]),
        (InstancePQ(threshold=0.8), "panoptic_quality", [0.8]),
    ):
        chosen = [IOU_THRESHOLDS.index(threshold) for threshold in thresholds]
        expected = np.mean([[getattr(single, name) for single in singles[index]] for index in chosen], axis=0)
        assert metric.per_image(prediction, target).tolist() == pytest.approx(expected.tolist(), rel=1e-6)
        both = PooledMetric(metric)
        for each in (metric, both):
            each.update(prediction, target)
        assert metric.compute().item() == pytest.approx(expected.mean(), rel=1e-6)  # sums in single precision
        assert both.compute().item() == pytest.approx(np.mean([getattr(pooled[index], name) for index in chosen]))


def test_an_image_is_matched_once_for_all_metrics(batch, monkeypatch):
    target, prediction = batch
    calls = []
    pair_objects = module.pair_objects
    monkeypatch.setattr(module, "pair_objects", lambda *images: calls.append(1) or pair_objects(*images))
    metrics = default_metrics("instances", "sigmoid")
    for metric in metrics.values():
        metric.update(prediction, target)
    assert len(metrics) == 12 and len(calls) == 4
    fewer = target * (target > 1)
    assert (
        metrics["ap50"].per_image(prediction, fewer).tolist() != metrics["ap50"].per_image(prediction, target).tolist()
    )


def test_what_is_written_into_a_tensor_is_seen(batch):
    target, prediction = batch
    metric = InstanceAP(thresholds=[0.5])
    prediction.copy_(target)
    assert metric.per_image(prediction, target).tolist() == [1] * 4
    prediction[0] = 0
    assert metric.per_image(prediction, target).tolist() == [0, 1, 1, 1]
    with torch.inference_mode():
        assert metric.per_image(target.clone(), target).tolist() == [1] * 4


def test_an_image_without_objects_is_undefined_and_left_out_of_the_mean():
    empty, one = torch.zeros(2, 1, 8, 8)[:, None]
    one[0, :2] = 1
    metric = InstanceAP()
    metric.update(torch.stack([empty, one]), torch.stack([empty, one]))
    assert torch.isnan(metric.per_image(empty[None], empty[None])).all()
    assert metric.compute() == 1
    metric.update(one[None], empty[None])  # a false alarm counts 0
    assert metric.compute() == 0.5


def test_what_cannot_be_matched_is_refused():
    labels = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ImageError, match=r"the target has a pixel of value 0\.5"):
        InstanceF1().update(labels, labels + 0.5)
    with pytest.raises(ConfigError, match=r"InstancePQ: .* \(1, 1, 4, 4\)"):
        InstancePQ().update(labels, labels[..., :2])
    with pytest.raises(ConfigError, match=r"IoU threshold 50"):
        InstanceAP(thresholds=[50])
