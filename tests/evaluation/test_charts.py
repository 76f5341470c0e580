"""Drawings are valid, stay inside their frame, can be read by those who do not see them, and have a bounded size."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from cyto_dl.evaluation.charts import Line, gains, histogram, lines


def parsed(drawing):
    root = ElementTree.fromstring(str(drawing))
    assert root.get("role") == "img" and root.get("aria-label")
    _, _, width, height = map(float, root.get("viewBox").split())
    for element in root.iter():
        for x in (element.get("x"), element.get("x1"), element.get("x2"), element.get("cx")):
            assert x is None or 0 <= float(x) <= width
        for y in (element.get("y"), element.get("y1"), element.get("y2"), element.get("cy")):
            assert y is None or 0 <= float(y) <= height
    return root


def points(root):
    return [np.array([pair.split(",") for pair in line.get("points").split()], float) for line in root.iter("polyline")]


def texts(root):
    return [element.text for element in root.iter("text")]


def test_lines_go_through_their_values_and_over_gaps():
    epochs = np.arange(1, 5)
    falling = Line("training", epochs, np.array([4.0, 3.0, 2.0, 1.0]))
    with_gap = Line("validation", epochs, np.array([np.nan, 4.0, np.nan, 1.0]))
    root = parsed(lines([falling, with_gap], title="loss", x_label="epoch", marker=4))
    first, second = points(root)
    assert len(first) == 4 and len(second) == 2
    np.testing.assert_allclose(np.diff(first[:, 0]), np.diff(first[:, 0])[0], atol=0.1)  # written with one decimal
    np.testing.assert_allclose(np.diff(first[:, 1]), np.diff(first[:, 1])[0], atol=0.1)
    assert first[0, 1] < first[-1, 1]  # down the page
    assert second[0].tolist() == pytest.approx([first[1, 0], first[0, 1]])
    assert {"training", "validation", "epoch", "1", "4"} <= set(texts(root))


def test_a_line_of_one_epoch_is_a_point():
    root = parsed(lines([Line("training", np.array([1.0]), np.array([0.5]))], title="loss", x_label="epoch"))
    assert len(list(root.iter("circle"))) == 1


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e12, -3.5])
def test_a_constant_has_a_chart_too(value):
    values = np.full(5, value)
    parsed(lines([Line("training", np.arange(5), values)], title="constant", x_label="epoch"))
    parsed(histogram(values, title="constant", x_label="dice", mean=value, interval=(value, value)))
    parsed(gains(values, title="constant", x_label="images", minimal=0.0))


def test_a_histogram_counts_every_image_once():
    values = np.random.default_rng(0).normal(0.8, 0.05, 200)
    root = parsed(histogram(values, title="dice", x_label="dice", mean=0.8, interval=(0.79, 0.81)))
    hints = [bar.find("title").text for bar in root.iter("rect")]
    assert sum(int(hint.split()[0]) for hint in hints) == 200
    assert {"dice", "images"} <= set(texts(root))


def test_gains_go_up_and_losses_down_in_order():
    values = np.array([-0.2, 0.3, 0.1, -0.1])
    root = parsed(gains(values, title="gain", x_label="images", minimal=0.05))
    hints = [float(bar.find("title").text.split()[1]) for bar in root.iter("rect")]
    assert hints == [0.3, 0.1, -0.1, -0.2]
    bars = list(root.iter("rect"))
    heights = [float(bar.get("height")) for bar in bars]
    assert heights[0] / heights[1] == pytest.approx(3, rel=0.01)  # one decimal of some fifty units
    zero = float(bars[0].get("y")) + heights[0]
    assert [float(bar.get("y")) for bar in bars[2:]] == pytest.approx([zero, zero], abs=0.15)  # two roundings
    assert len({bar.get("fill") for bar in bars[:2]} | {bar.get("fill") for bar in bars[2:]}) == 2


def test_ten_thousands_of_epochs_or_images_make_no_larger_file():
    many = np.random.default_rng(0).normal(size=20_000)
    drawn = [
        lines([Line("training", np.arange(20_000), many)], title="loss", x_label="epoch"),
        histogram(many, title="psnr", x_label="psnr", mean=0.0, interval=None),
        gains(many, title="gain", x_label="images", minimal=0.0),
    ]
    assert max(map(len, drawn)) < 50_000  # characters
    last = points(parsed(drawn[0]))[0][-1, 0]
    assert last == pytest.approx(328, abs=0.1)  # the right end of the frame: the last epoch is there


def test_names_are_text():
    drawing = lines([Line("<b>", np.arange(2), np.arange(2.0))], title='"><script>', x_label="a & b")
    assert not re.search("<b>|<script>", str(drawing))
    assert {"<b>", "a & b"} <= set(texts(parsed(drawing)))
