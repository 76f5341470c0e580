"""The page of a comparison says the verdict, the gain and which images made it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cyto_dl.comparison import compare_values
from cyto_dl.evaluation.comparison_page import write_comparison
from tests.evaluation.test_report import Page


@pytest.fixture
def written(tmp_path):
    """Writes the page of gains over a champion of 0.5 everywhere; returns its text."""

    def write(gains, **settings):
        champion = np.full(len(gains), 0.5)
        candidate = champion + gains
        comparison = compare_values(candidate, champion, higher_is_better=True, **settings)
        paths = [f"image_{index}.tif" for index in range(len(gains))]
        table = {"path": paths, "candidate": candidate, "champion": champion, "gain": gains}
        comparison = replace(comparison, metric="test/seg/dice", images=pd.DataFrame(table))
        path = write_comparison(comparison, tmp_path / "page.html", name="nuclei", champion="models:/nuclei/3")
        return path.read_text()

    return write


def test_a_better_model_is_called_so_with_its_gain_and_interval(written):
    text = written(np.linspace(0.01, 0.1, 10))
    page = Page(text)
    assert page.open == [] and page.addresses == []
    assert "The candidate is better." in text and "models:/nuclei/3" in text and "test/seg/dice" in text
    assert "+0.0550" in text and "95 %: +0.0" in text
    assert "10 gain, 0 lose" in text and "None." in text  # nothing was lost


def test_a_model_that_is_not_better_leaves_the_champion(written):
    text = written(np.array([0.1, -0.1, 0.12, -0.1]))
    assert "The candidate is not better: the champion stays." in text
    assert "other images might say otherwise" in text
    assert "2 gain, 2 lose" in text


def test_the_images_that_gained_and_lost_most_are_named_in_order(written):
    gains = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, -0.01, -0.02, -0.03])
    text = written(gains)
    gained, lost = text[text.index("Most gained") : text.index("Most lost")], text[text.index("Most lost") :]
    order = [gained.index(f">image_{index}.tif") for index in (5, 4, 3, 2, 1)]
    assert order == sorted(order) and "image_0.tif" not in gained
    assert [lost.index(f">image_{index}.tif") for index in (8, 7, 6)] == sorted(
        lost.index(f">image_{index}.tif") for index in (6, 7, 8)
    )
    assert "dashed" not in text
    assert "dashed: the gain that is asked for" in written(gains, minimal_gain=0.02)


@pytest.mark.parametrize(("gains", "said"), [([0.1], "there is one"), ([], "there is none"), ([np.nan], "is none")])
def test_too_few_images_are_said_to_be_too_few(written, gains, said):
    text = written(np.array(gains))
    assert Page(text).open == []
    assert said in text and "nan" not in text.lower()


def test_images_without_a_value_are_counted_and_not_drawn(written):
    gains = np.array([0.1, 0.2, 0.3])
    text = written(np.array([*gains, np.nan]))
    assert "1 left out" in text and "image_3.tif" not in text


def test_without_a_champion_the_reason_is_the_page(tmp_path):
    path = write_comparison(None, tmp_path / "page.html", name="<n>", champion=None, reason="It becomes it.")
    text = path.read_text()
    assert Page(text).open == []
    assert "There is no champion yet." in text and "It becomes it." in text and "<n>" not in text
