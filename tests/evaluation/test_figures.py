"""Figures show what was found and what was not, in the plane where most is to be seen."""

import base64
import io

import numpy as np
import pytest
from PIL import Image as Pillow

from cyto_dl.data.image import Image
from cyto_dl.evaluation.figures import draw

OBJECTS = {"kind": "instances", "activation": "sigmoid"}
GREY, BLUE, RED, YELLOW = (90, 90, 90), (0, 190, 220), (255, 90, 60), (245, 205, 60)


def pixels(picture):
    return np.asarray(Pillow.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))))


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def labels(request):
    """Target and prediction, 1 (Z) Y X: one object found, one missed, one false, one cut in halves."""
    target, prediction = np.zeros((2, 1, *[3] * (request.param - 2), 40, 40))
    planes = (Ellipsis,) if request.param == 2 else (slice(None), 1)
    target[(*planes, slice(2, 12), slice(2, 12))] = 3
    prediction[(*planes, slice(2, 12), slice(2, 12))] = 9
    target[(*planes, slice(2, 12), slice(20, 30))] = 4
    prediction[(*planes, slice(20, 30), slice(2, 12))] = 5
    target[(*planes, slice(20, 30), slice(20, 30))] = 5
    prediction[(*planes, slice(20, 24), slice(20, 30))] = 1
    prediction[(*planes, slice(24, 28), slice(20, 30))] = 2
    return target, prediction


def drawn(target, prediction, output=OBJECTS):
    source = Image(np.random.default_rng(0).normal(size=target.shape), None, "raw.tif")
    figure = draw("best", "ap50 0.5", source, target=target, prediction=prediction, output=output)
    assert (figure.rank, figure.value, figure.path) == ("best", "ap50 0.5", "raw.tif")
    return [pixels(picture) for _, picture in figure.pictures]


def test_objects_that_were_found_missed_false_and_badly_cut_are_told_apart(labels):
    *_, verdict = drawn(*labels)
    middle = {(7, 7): GREY, (7, 25): BLUE, (25, 7): RED, (22, 25): YELLOW, (29, 25): BLUE, (35, 35): (0, 0, 0)}
    factor = len(verdict) // 40
    for (y, x), colour in middle.items():
        assert tuple(verdict[y * factor + factor // 2, x * factor + factor // 2]) == colour


def test_a_found_object_has_the_colour_of_its_true_one_whatever_its_label(labels):
    target, prediction = labels
    _, first, second, _ = drawn(target, prediction)
    factor = len(first) // 40
    assert tuple(first[7 * factor, 7 * factor]) == tuple(second[7 * factor, 7 * factor]) != (0, 0, 0)
    other = np.where(prediction == 9, 70_000, prediction)
    assert all(np.array_equal(*pair) for pair in zip(drawn(target, prediction), drawn(target, other), strict=True))


def test_touching_objects_have_rims_between_them(labels):
    target, prediction = labels
    _, _, picture, _ = drawn(target, prediction)
    factor = len(picture) // 40
    inside, rim = picture[22 * factor, 25 * factor], picture[23 * factor + factor // 2, 25 * factor]
    assert rim.sum() < 0.6 * inside.sum()


def test_images_without_objects_are_drawn(labels):
    target, prediction = labels
    for pair in ((target, prediction * 0), (target * 0, prediction), (target * 0, prediction * 0)):
        assert len(drawn(*pair)) == 4


def test_the_source_is_shown_at_the_place_of_a_finer_target():
    target = np.zeros((1, 8, 10, 10))
    target[:, 6, 2:8, 2:8] = 1
    planes = np.repeat(np.arange(4.0), 100).reshape(1, 4, 10, 10)
    planes[..., 0] = -1  # every plane then has its own grey level
    output = {"kind": "segmentation", "activation": "sigmoid"}
    figure = draw("best", "", Image(planes, None, ""), target=target, prediction=target, output=output)
    other = draw(
        "best", "", Image(planes[:, 3:].repeat(8, 1), None, ""), target=target, prediction=target, output=output
    )
    assert figure.pictures[0] == other.pictures[0]
