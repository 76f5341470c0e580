"""Dice and IoU by their definitions, in 2-D and 3-D."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import DiceMetric
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

from cyto_dl.errors import ConfigError
from cyto_dl.metrics import Dice, IoU, PooledMetric


def mask(*values):
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 1, -1)


def one_hot_logits(classes_B1YX, num_classes):
    return torch.nn.functional.one_hot(classes_B1YX[:, 0].long(), num_classes).movedim(-1, 1).float()


@pytest.mark.parametrize(
    ("prediction", "target", "dice", "iou"),
    [
        (mask(0.9, 0.9, 0.1, 0.1), mask(1, 0, 1, 0), 0.5, 1 / 3),  # TP 1, FP 1, FN 1
        (mask(0.9, 0.9, 0.9, 0.1), mask(1, 1, 0, 0), 0.8, 2 / 3),  # TP 2, FP 1, FN 0
        (mask(0.6, 0.4, 0.5, 0.0), mask(1, 0, 0, 0), 1.0, 1.0),  # above 0.5, not at it
        (mask(0.9, 0.1, 0.1, 0.1), mask(0, 0, 0, 0), 0.0, 0.0),  # a false alarm is seen
        (mask(0.1, 0.1, 0.1, 0.1), mask(0, 1, 0, 0), 0.0, 0.0),
    ],
)
def test_values_computed_by_hand(prediction, target, dice, iou):
    assert Dice().per_image(prediction, target).item() == pytest.approx(dice)
    assert IoU().per_image(prediction, target).item() == pytest.approx(iou)


@pytest.mark.parametrize("metric", [Dice(), IoU()])
def test_an_image_without_an_object_in_either_is_undefined(metric):
    assert torch.isnan(metric.per_image(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))).all()


@given(seed=st.integers(0, 10_000), spatial_dims=st.sampled_from([2, 3]))
def test_values_are_those_of_torchmetrics_and_monai(seed, spatial_dims):
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.rand((2, 3, 1, *[6] * spatial_dims), generator=generator)
    target = (target > 0.7).float()
    for index in range(3):
        one = prediction[index : index + 1], target[index : index + 1]
        flat = prediction[index].flatten(), target[index].flatten().int()
        assert Dice().per_image(*one).item() == pytest.approx(binary_f1_score(*flat).item(), abs=1e-6)
        assert IoU().per_image(*one).item() == pytest.approx(binary_jaccard_index(*flat).item(), abs=1e-6)
    monai = DiceMetric(reduction="none")((prediction > 0.5).float(), target)
    assert torch.allclose(Dice().per_image(prediction, target).float(), monai[:, 0])


def test_channels_are_masks_of_their_own_and_empty_ones_are_left_out():
    prediction = torch.cat([mask(0.9, 0.9, 0.1, 0.1), mask(0.9, 0.1, 0.1, 0.1), mask(0, 0, 0, 0)], dim=1)
    target = torch.cat([mask(1, 0, 1, 0), mask(1, 0, 0, 0), mask(0, 0, 0, 0)], dim=1)
    assert Dice().per_image(prediction, target).item() == pytest.approx((0.5 + 1) / 2)


@pytest.mark.parametrize("metric", [Dice(activation="softmax"), IoU(activation="softmax")])
def test_classes_are_compared_without_background(metric):
    target = torch.tensor([0, 0, 1, 1, 2, 2]).reshape(1, 1, 1, 6)
    predicted = torch.tensor([0, 1, 1, 1, 2, 0]).reshape(1, 1, 1, 6)
    expected = {"Dice": (4 / 5 + 2 / 3) / 2, "IoU": (2 / 3 + 1 / 2) / 2}[type(metric).__name__]
    probabilities = one_hot_logits(predicted, 4) * 0.3  # argmax, not 0.5; class 3 is in neither: left out
    assert metric.per_image(probabilities, target.float()).item() == pytest.approx(expected)
    assert metric.per_image(probabilities, one_hot_logits(target, 4)).item() == pytest.approx(expected)


@pytest.mark.parametrize("space", [(4, 5), (3, 4, 5)])
def test_classes_in_stacks(space):
    target = torch.randint(0, 3, (2, 1, *space), generator=torch.Generator().manual_seed(0))
    prediction = torch.nn.functional.one_hot(target[:, 0], 3).movedim(-1, 1).float()
    assert Dice(activation="softmax").per_image(prediction, target).tolist() == [1, 1]


@pytest.mark.parametrize("space", [(4, 5), (3, 4, 5)])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_pooled_masks_are_those_of_one_large_image(activation, space):
    generator = torch.Generator().manual_seed(0)
    prediction = torch.rand((3, 4, *space), generator=generator)
    if activation == "sigmoid":
        target = (torch.rand((3, 4, *space), generator=generator) > 0.6).float()
    else:
        target = torch.randint(0, 4, (3, 1, *space), generator=generator).float()
    joined = [torch.cat(list(each[:, None]), dim=-1) for each in (prediction, target)]
    for metric in (Dice(activation=activation), IoU(activation=activation)):
        pooled = PooledMetric(metric)
        pooled.update(prediction[:1], target[:1])
        pooled.update(prediction[1:], target[1:])
        assert pooled.compute().item() == pytest.approx(metric.per_image(*joined).item(), abs=1e-6)  # single precision


def test_every_class_and_channel_has_a_value_of_its_own():
    target = torch.tensor([0, 0, 1, 1, 2, 2]).reshape(1, 1, 1, 6)
    predicted = torch.tensor([0, 1, 1, 1, 2, 0]).reshape(1, 1, 1, 6)
    for activation, shift in (("softmax", 0), ("sigmoid", 1)):  # a channel has its index, and no channel is background
        dice = Dice(activation=activation)
        prediction, truth = one_hot_logits(predicted, 4)[:, shift:], one_hot_logits(target, 4)[:, shift:]
        statistics = dice.statistics(prediction, truth)
        parts = dice.parts(statistics)
        assert list(parts) == [str(1 - shift), str(2 - shift)]  # class 3 is in neither
        assert [each.item() for each in parts.values()] == pytest.approx([4 / 5, 2 / 3])
        assert PooledMetric(dice).parts(statistics.sum(0)).keys() == parts.keys()
        assert dice.parts(dice.statistics(prediction[:, :1], truth[:, :1])) == {}


def test_more_masks_than_are_counted_are_refused():
    with pytest.raises(ConfigError, match="at most 64 masks, not 65"):
        Dice().per_image(torch.zeros(1, 65, 2, 2), torch.zeros(1, 65, 2, 2))


def test_another_activation_is_refused():
    with pytest.raises(ConfigError, match="'identity'; an overlap needs sigmoid or softmax"):
        Dice(activation="identity")
