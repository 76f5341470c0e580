"""Pictures show what is in an array, at a size that a person can see."""

import numpy as np
import pytest
from PIL import Image

from cyto_dl.inference.picture import (
    busiest_plane,
    coloured_labels,
    data_uri,
    fitted,
    grey,
    mistakes,
    plane,
    strip,
    window_of,
)


def test_a_few_hot_pixels_do_not_make_the_rest_black():
    image = np.random.default_rng(0).normal(100, 10, (1, 100, 100))
    image[0, 0, 0] = 1e6
    assert window_of(image)[1] < 150
    assert grey(image).mean() == pytest.approx(128, abs=25)  # the middle of a symmetric distribution


def test_a_window_fixes_what_is_black_and_white():
    picture = grey(np.array([[[0.0, 0.5, 1.0, 2.0]]]), (0, 1))
    assert picture[0, :, 0].tolist() == [0, 128, 255, 255]
    assert picture.shape == (1, 4, 3)


def test_a_constant_image_is_a_picture_too():
    assert grey(np.full((1, 4, 4), 7.0)).dtype == np.uint8


def test_three_channels_are_a_colour_picture():
    rgb = np.zeros((3, 2, 2))
    rgb[1] = 1
    assert grey(rgb, (0, 1))[0, 0].tolist() == [0, 255, 0]


def test_labels_have_colours_and_background_is_black():
    labels = np.arange(6).reshape(1, 2, 3)
    picture = coloured_labels(labels).reshape(-1, 3)
    assert picture[0].tolist() == [0, 0, 0]
    assert len({tuple(colour) for colour in picture.tolist()}) == 6
    assert coloured_labels(np.array([[[0, 1]]]))[0, 1].tolist() == [255, 255, 255]
    assert coloured_labels(np.array([[[255, 256, 510]]])).any(axis=-1).all()  # no label is black


def test_mistakes_tell_missed_from_false():
    prediction, target = np.array([[True, True, False, False]]), np.array([[True, False, True, False]])
    colours = mistakes(prediction, target)[0].tolist()
    assert len({tuple(colour) for colour in colours}) == 4
    assert colours[3] == [0, 0, 0]


def test_a_stack_is_shown_by_its_busiest_or_its_middle_plane():
    stack = np.zeros((1, 5, 4, 4))
    stack[0, 1, 0, 0] = 1
    assert busiest_plane(stack) == 1
    assert plane(stack, 1)[0, 0, 0] == 1
    assert plane(stack).shape == (1, 4, 4)
    assert busiest_plane(stack[:, 0]) is None


@pytest.mark.parametrize(("height", "width"), [(10, 20), (500, 1000), (1, 3000)])
def test_pictures_fit_and_keep_their_proportions(height, width):
    image = fitted(np.zeros((height, width, 3), np.uint8), 320)
    assert max(image.size) <= 320 < 2 * max(image.size)
    assert image.height == max(1, round(height * image.width / width))


def test_a_strip_shows_all_its_pictures_with_titles():
    white = np.full((100, 100, 3), 255, np.uint8)
    canvas = np.asarray(strip([("one", white * 0), ("two", white * 0)]))
    assert canvas.shape[1] > 2 * 300
    assert (canvas[:24] < 200).any()  # the titles
    assert isinstance(strip([("one", white)]), Image.Image)
    assert data_uri(strip([("one", white)])).startswith("data:image/png;base64,iVBOR")
