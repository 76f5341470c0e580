"""The report in a real browser: complete, readable on a narrow page too, and without a request to anywhere."""

import io

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Error, sync_playwright

from cyto_dl.evaluation import evaluate, write_report
from tests.bundle.tiny import experiment, predictor_of, write_images
from tests.evaluation.objects import of_cells, write_cells

pytestmark = pytest.mark.integration
CHROMIUM = "/usr/bin/chromium"  # Debian's: the machine's fonts and no download at test time
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]  # root, a small /dev/shm, no graphics card
WIDTH_PX = {"desktop": 1280, "frame of a web page": 420}  # Kubeflow and MLflow show a report in a narrow frame


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        except Error as error:
            pytest.fail(f"{CHROMIUM} does not start; apt-get install chromium fonts-dejavu-core. {error}")
        yield browser
        browser.close()


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
def page(request, chromium, evaluation, tmp_path):
    """The opened report, which keeps in `requests` what it asked for and in `complaints` what the browser said."""
    address = write_report(evaluation, tmp_path / "report.html").as_uri()
    with chromium.new_context(viewport={"width": request.param, "height": 900}) as context:
        page = context.new_page()
        page.requests, page.complaints = [], []
        page.on("request", lambda asked: page.requests.append(asked.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        context.route("**/*", lambda route: route.continue_() if route.request.url == address else route.abort())
        page.goto(address)
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
        assert section.locator("table tbody tr").count() == len({name.removesuffix("_pooled") for name in names})
        assert section.locator("img").count() == sum(len(figure.pictures) for figure in figures) > 0


def test_every_picture_is_decoded_and_shown(page):
    pictures = page.locator("img")
    for picture in pictures.all():
        assert picture.evaluate("image => image.complete && image.naturalWidth") > 0
        box = picture.bounding_box()
        assert box["width"] > 50 and box["height"] > 20
    shown = np.asarray(Image.open(io.BytesIO(pictures.first.screenshot())).convert("L"))
    assert shown.std() > 10  # grey levels: the bright box is seen on its darker ground


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
