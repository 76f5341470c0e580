"""Counts of what was taken for what are those of a pair of images counted by hand, and agree with the metrics."""

import json

import numpy as np
import pytest
import torch

from cyto_dl.evaluation import confusion
from cyto_dl.evaluation.confusion import count_confusion, summed, write_confusion
from cyto_dl.metrics import Dice

MASKS = {"kind": "segmentation", "activation": "sigmoid"}
CLASSES = {"kind": "segmentation", "activation": "softmax"}
OBJECTS = {"kind": "instances", "activation": "sigmoid"}
SPACES = [(4, 5), (3, 4, 5)]


@pytest.mark.parametrize("space", SPACES)
def test_pixels_of_a_mask_are_counted(space):
    target, prediction = torch.zeros((2, 1, 1, *space))
    target[..., 0, :] = 1  # a row of five pixels a plane
    prediction[..., 0, :3] = 0.9
    prediction[..., 1, 0] = 0.6
    planes = int(np.prod(space[:-2]))
    expected = np.array([[14, 1], [2, 3]]) * planes
    np.testing.assert_array_equal(count_confusion(MASKS, prediction, target), expected)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("is_one_hot", [False, True])
def test_pixels_of_classes_are_counted_whatever_the_block(space, is_one_hot, monkeypatch):
    monkeypatch.setattr(confusion, "_BLOCK", 7)
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(0, 3, (1, 1, *space), generator=generator)
    prediction = torch.rand((1, 3, *space), generator=generator)
    target = torch.cat([true == each for each in range(3)], dim=1).float() if is_one_hot else true.float()
    matrix = count_confusion(CLASSES, prediction, target)
    predicted = prediction.argmax(dim=1)[:, None]
    expected = [[int(((true == row) & (predicted == column)).sum()) for column in range(3)] for row in range(3)]
    assert matrix.tolist() == expected
    assert matrix.sum() == np.prod(space)


def test_the_matrix_gives_the_pooled_dice():
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand((2, 1, 1, 20, 20), generator=generator) for _ in range(3)]
    each = [count_confusion(MASKS, prediction, (target > 0.5).float()) for prediction, target in images]
    (_, false), (missed, true) = summed("seg", MASKS, each).matrix.tolist()
    counts = sum(Dice().statistics(prediction, (target > 0.5).float()) for prediction, target in images)
    assert 2 * true / (2 * true + false + missed) == pytest.approx(float(Dice().from_statistics(counts)))


@pytest.mark.parametrize("space", [(40, 40), (3, 40, 40)])
def test_objects_are_found_missed_or_false(space):
    target, prediction = torch.zeros((2, 1, 1, *space))
    target[..., 2:12, 2:12], prediction[..., 2:12, 2:12] = 1, 5
    target[..., 2:12, 20:30] = 2
    prediction[..., 20:30, 2:12] = 1
    prediction[..., 20:30, 20:30] = 2
    found = summed("cells", OBJECTS, [count_confusion(OBJECTS, prediction, target)])
    assert found.matrix.tolist() == [[1, 1], [2, 0]]
    assert (found.unit, found.categories) == ("objects", ["cells: object", "cells: nothing"])
    assert found.shares.tolist() == [[0.5, 0.5], [0, 0]]


def test_intensities_and_targets_of_other_classes_have_no_matrix():
    image = torch.rand((1, 1, 4, 4))
    assert count_confusion({"kind": "regression", "activation": "identity"}, image, image) is None
    assert count_confusion(CLASSES, torch.rand((1, 3, 4, 4)), torch.rand((1, 2, 4, 4))) is None


def test_values_that_are_no_class_are_left_out():
    target = torch.tensor([[[[0.0, 1.0, 7.0, float("nan")]]]])
    matrix = count_confusion(CLASSES, torch.rand((1, 2, 1, 4)), target)
    assert matrix.sum() == 2


def test_images_are_added_up_and_written_as_json(tmp_path):
    matrices = [np.array([[3, 1], [0, 2]]), np.array([[1, 0], [0, 0]])]
    both = summed("seg", CLASSES, matrices)
    assert both.categories == ["seg: background", "seg: 1"]
    assert both.shares.tolist() == [[0.8, 0.2], [0, 1]]
    write_confusion({"seg": both}, tmp_path / "confusion.json")
    assert json.loads((tmp_path / "confusion.json").read_text()) == {
        "seg": {"unit": "pixels", "categories": ["seg: background", "seg: 1"], "matrix": [[4, 1], [0, 2]]}
    }
