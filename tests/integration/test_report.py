"""Report and comparison in a real browser: complete, readable on a narrow page too, without a request to anywhere."""

import io
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cyto_dl.comparison import compare_values
from cyto_dl.evaluation import evaluate, write_report
from cyto_dl.evaluation.comparison_page import write_comparison
from tests.bundle.tiny import experiment, predictor_of, write_images
from tests.evaluation.objects import of_cells, write_cells

pytestmark = pytest.mark.integration
WIDTH_PX = {"desktop": 1280, "frame of a web page": 420}  # Kubeflow and MLflow show a report in a narrow frame


@pytest.fixture(scope="module", params=["2d", "3d", "objects"])
def evaluation(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    if request.param == "objects":
        manifest = write_cells(folder, changes=("", "miss", "split"))
        config, predictor = of_cells(manifest)
        return evaluate(predictor, config, manifest=manifest)
    spatial_dims = int(request.param[0])
    config = experiment(write_images(folder, spatial_dims, splits=("test", "test", "test")), spatial_dims)
    return evaluate(predictor_of(config), config, manifest=folder / "manifest.csv")


@pytest.fixture(params=WIDTH_PX.values(), ids=WIDTH_PX.keys())
def width_px(request):
    return request.param


@contextmanager
def opened(chromium, path, width_px):
    """The opened page, which keeps in `requests` what it asked for and in `complaints` what the browser said."""
    address = path.as_uri()
    with chromium.new_context(viewport={"width": width_px, "height": 900}) as context:
        page = context.new_page()
        page.requests, page.complaints = [], []
        page.on("request", lambda asked: page.requests.append(asked.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        context.route("**/*", lambda route: route.continue_() if route.request.url == address else route.abort())
        page.goto(address)
        yield page


@pytest.fixture
def page(width_px, chromium, evaluation, tmp_path):
    """The opened report of a model with learning curves and a fingerprint."""
    epochs = np.arange(1, 61)
    curves = pd.DataFrame({"epoch": epochs, "step": epochs * 10, "seconds": 9.0, "device": "cpu"})
    curves = curves.assign(**{"train/loss": 1 / epochs, "valid/loss": 1 / epochs + 0.1})
    fingerprint = {"columns": dict.fromkeys(("raw", "a_column_with_a_long_name", "another_one"), evaluation.seen)}
    path = write_report(evaluation, tmp_path / "report.html", curves=curves, fingerprint=fingerprint)
    with opened(chromium, path, width_px) as page:
        yield page


def test_the_page_asks_for_nothing_but_itself_and_the_browser_does_not_complain(page):
    assert [url for url in page.requests if not url.startswith("data:")] == [page.url]
    assert page.complaints == []


def test_every_head_has_its_table_and_its_pictures(page, evaluation):
    assert page.title() == "tiny on test"
    assert page.locator("h1").inner_text() == "tiny"
    for head, figures in evaluation.figures.items():
        section = page.locator("section", has=page.get_by_role("heading", name=head, exact=True))
        names = [name.removeprefix("test/") for name in evaluation.summary if name.startswith(f"test/{head}/")]
        assert names
        assert section.locator("table").first.locator("tbody tr").count() == len(
            {name.removesuffix("_pooled") for name in names}
        )
        assert section.locator("img").count() == sum(len(figure.pictures) for figure in figures) > 0


def test_every_picture_is_decoded_and_shown(page):
    pictures = page.locator("img")
    for picture in pictures.all():
        assert picture.evaluate("image => image.complete && image.naturalWidth") > 0
        box = picture.bounding_box()
        assert box["width"] > 50 and box["height"] > 20
    shown = np.asarray(Image.open(io.BytesIO(pictures.first.screenshot())).convert("L"))
    assert shown.std() > 10  # grey levels: the bright box is seen on its darker ground


def test_drawings_have_the_width_of_their_column_and_text_that_can_be_read(page):
    drawings = page.locator("svg").all()
    assert len(drawings) > 2
    for drawing in drawings:
        box = drawing.bounding_box()
        assert box["width"] > 250 and box["height"] > 150
        letters = drawing.evaluate(
            "svg => [...svg.querySelectorAll('text')].map(text => text.getBoundingClientRect().toJSON())"
        )
        assert min(each["height"] for each in letters if each["width"]) >= 9  # CSS pixels: what a phone shows legibly
        assert max(each["right"] for each in letters) <= box["x"] + box["width"] + 1
    labels = [drawing.get_attribute("aria-label") for drawing in drawings]
    assert "loss over epochs, training and validation" in labels


def test_nothing_is_cut_off_and_the_page_is_not_blank(page):
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for section in page.locator("section").all():
        assert section.evaluate("element => element.scrollWidth <= element.clientWidth")
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("L"))
    assert len(np.unique(pixels)) > 50  # a blank page has one grey level, text alone some thirty
    assert (pixels < 128).mean() > 0.01  # ink


def test_the_configuration_opens_at_a_click(page):
    configuration = page.locator("details pre")
    assert not configuration.is_visible()
    page.locator("summary").click()
    assert "_target_: cyto_dl.model.MultiTaskIm2Im" in configuration.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_comparison_reads_well_on_every_width(width_px, chromium, tmp_path):
    rng = np.random.default_rng(0)
    champion = rng.uniform(0.2, 0.9, 300)
    candidate = champion + rng.normal(0.03, 0.05, 300)
    paths = [f"s3://bucket/a/long/folder/of/plate_{index // 96}/well_{index % 96}.ome.tif" for index in range(300)]
    table = {"path": paths, "candidate": candidate, "champion": champion, "gain": candidate - champion}
    comparison = compare_values(candidate, champion, higher_is_better=True)
    comparison = replace(comparison, metric="test/seg/dice", images=pd.DataFrame(table))
    path = write_comparison(comparison, tmp_path / "comparison.html", name="nuclei", champion="models:/nuclei/3")
    with opened(chromium, path, width_px) as page:
        assert page.requests == [page.url] and page.complaints == []
        assert "The candidate is better." in page.locator(".verdict").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.locator("svg").bounding_box()["width"] > 250
        assert page.locator("svg rect").count() == 250  # of 300 images, evenly chosen ranks
        assert page.locator("tbody tr").count() == 10
