"""The server's page in a real browser: a dropped image, its outputs over it, and what `cyto-dl predict` gives.

The command line with --endpoint is tested beside it, on the same servers. Starting the two takes most of the time.
"""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from cyto_dl import cli
from cyto_dl.bundle import export_bundle
from cyto_dl.data.image import read_image
from cyto_dl.model.utils.postprocessing import identity, sigmoid_threshold
from serving.access import Access
from tests.bundle.tiny import checkpoint_of, experiment, write_images
from tests.client.conftest import TOKEN, listening
from tests.serving.process import ROOT, started, wait_until_ready
from tests.serving.telemetry.test_drift import document_of, field

pytestmark = pytest.mark.integration
PATIENCE_MS = 60_000
NUCLEI = ROOT / "examples/nuclei/images"
PICTURE = NUCLEI / "0a7d30b25235.tif"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """By their dimensions, the example's real bundle, and one of random weights with two heads; an image for each."""
    folder = tmp_path_factory.mktemp("tiny")
    config = experiment(write_images(folder, 3), 3)
    checkpoint_of(config, folder / "run/checkpoints/best.ckpt")
    made = export_bundle(folder / "run", folder / "bundle", sample=str(folder / "raw_0.ome.tif"))
    return {2: (ROOT / "examples/bundles/nuclei", PICTURE), 3: (made, folder / "raw_2.ome.tif")}


@pytest.fixture(scope="module", params=[2, 3])
def served(request, bundles, tmp_path_factory):
    """The address of a running server, its bundle, and an image."""
    folder = tmp_path_factory.mktemp("server")
    bundle, image = bundles[request.param]
    with started(bundle, folder / "log", allow="no.code", code=folder) as server:
        wait_until_ready(server, "nuclei" if request.param == 2 else "tiny")
        yield f"http://127.0.0.1:{server.http_port}", bundle, image


@pytest.fixture(scope="module")
def predicted(served, tmp_path_factory):
    """What `cyto-dl predict` makes of the image: head -> array."""
    _, bundle, image = served
    folder = tmp_path_factory.mktemp("local")
    cli.main(["predict", str(bundle), str(image), "--output", str(folder)])
    return files_of(folder, image)


def files_of(folder, image):
    dims = 2 if image == PICTURE else 3
    return {path.parent.name: read_image(path, spatial_dims=dims) for path in folder.glob("*/*.ome.tif")}


def test_the_command_line_gives_with_an_endpoint_the_files_of_the_bundle_itself(served, predicted, tmp_path):
    address, _, image = served
    cli.main(["predict", "--endpoint", address, str(image), "--output", str(tmp_path)])
    got = files_of(tmp_path, image)
    assert set(got) == set(predicted)
    for head, wanted in predicted.items():
        assert got[head].array.dtype == wanted.array.dtype and got[head].spacing_um == wanted.spacing_um
        np.testing.assert_array_equal(got[head].array, wanted.array)


@pytest.fixture(params=[1280, 420])
def width_px(request):
    return request.param


@pytest.fixture
def opened(chromium):
    """Opens an address in a window; the page keeps what it asked for and what the browser complained of."""
    contexts = []

    def open_page(address, width_px=1280):
        contexts.append(chromium.new_context(viewport={"width": width_px, "height": 900}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.requests, page.complaints = [], []
        page.on("request", lambda asked: page.requests.append(asked.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()


def drop(page, name, content):
    """Lets a file fall on the page."""
    program = """([name, content]) => {
        const carried = new DataTransfer(), bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
        carried.items.add(new File([bytes], name));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(program, [name, base64.b64encode(content).decode()])


def wait_for_outputs(page):
    page.get_by_role("button", name="Download OME-TIFF").wait_for()


def pixels(page):
    """What the canvas shows, Y X 3."""
    url = page.evaluate("document.querySelector('canvas').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")).astype(int)


def slide(page, name, value):
    page.locator(f"#{name}").fill(str(value))


def test_the_card_tells_what_the_model_takes_gives_and_is_worth(served, opened, width_px):
    page = opened(served[0], width_px)
    page.get_by_role("heading", name="What it takes").wait_for()
    document = json.loads(page.evaluate(f"fetch('v2/models/{page.title()}').then(answer => answer.text())"))
    card = page.locator("#card")
    for head in document["outputs"]:
        assert card.get_by_role("cell", name=head["name"], exact=True).is_visible()
    assert document["parameters"]["version"] in card.inner_text()
    card.get_by_text("provenance").click()
    assert "created" in card.inner_text()
    assert page.locator("h1").inner_text() == document["name"]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert all(url.startswith((served[0], "data:")) for url in page.requests) and page.complaints == []


def test_a_dropped_image_shows_every_head_and_downloads_as_predicted_locally(served, predicted, opened, width_px):
    address, _, image = served
    page = opened(address, width_px)
    page.locator("#card").wait_for()
    drop(page, image.name, image.read_bytes())
    wait_for_outputs(page)
    for head, wanted in predicted.items():
        page.locator("#head").select_option(head)
        slide(page, "opacity", 0)
        alone = pixels(page)
        assert (alone.max(axis=-1) == alone.min(axis=-1)).all() and alone.std() > 10  # grey, with something on it
        slide(page, "opacity", 80)
        assert (pixels(page) != alone).any(axis=-1).mean() > 0.02  # the share that objects cover is more
        with page.expect_download() as saved:
            page.get_by_role("button", name="Download .npy").click()
        np.testing.assert_array_equal(np.load(saved.value.path()), wanted.array)
        with page.expect_download() as saved:
            page.get_by_role("button", name="Download OME-TIFF").click()
        assert saved.value.suggested_filename == f"{image.name.partition('.')[0]}_{head}.ome.tif"
        path = saved.value.path().with_suffix(".tif")
        saved.value.save_as(path)
        got = read_image(path, spatial_dims=wanted.array.ndim - 1)
        np.testing.assert_array_equal(got.array, wanted.array)
        assert got.spacing_um == wanted.spacing_um
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.complaints == []


@pytest.mark.parametrize("served", [2], indirect=True)
def test_labels_are_coloured_where_they_are(opened, served, predicted):
    page = opened(served[0])
    page.locator("#file").set_input_files(PICTURE)
    wait_for_outputs(page)
    labels = predicted["objects"].array[0]
    shown = pixels(page)
    step = shown.shape[0] // labels.shape[0]
    shown = shown[::step, ::step]
    is_coloured = shown.max(axis=-1) != shown.min(axis=-1)
    np.testing.assert_array_equal(is_coloured, labels > 0)
    assert f"{labels.max()} objects" in page.locator("#note").inner_text()
    assert page.locator("#drift").is_visible() is False  # it is an image as those of the training


def test_an_image_unlike_those_of_the_training_is_said_to_be(opened, tmp_path):
    np.save(tmp_path / "blank.npy", np.full((1, 64, 64), 400, np.int64))  # of 64 bits, which a browser has no array for
    np.save(tmp_path / "usual.npy", field(2))
    with listening(2, changes={"metadata": document_of([field(2)])}) as server:
        page = opened(server.http)
        page.locator("#card").wait_for()
        for name, is_unusual in (("blank.npy", True), ("usual.npy", False)):
            page.locator("#file").set_input_files(tmp_path / name)
            page.get_by_text(f"{name}: 64").wait_for()
            wait_for_outputs(page)
            assert page.locator("#drift").is_visible() == is_unusual
            if is_unusual:
                assert "intensity=99.00 (above 1 is unusual)" in page.locator("#drift").inner_text()


def test_classes_are_not_called_objects(opened, tmp_path):
    np.save(tmp_path / "plane.npy", field(2))
    with listening(2, changes={"postprocess": {"seg": sigmoid_threshold, "distance": identity}}) as server:
        page = opened(server.http)
        page.locator("#card").wait_for()
        page.locator("#file").set_input_files(tmp_path / "plane.npy")
        wait_for_outputs(page)
        assert re.search(r"— [01] labels?$", page.locator("#note").inner_text())


def test_a_stack_has_a_slider_that_the_keyboard_moves(opened, tmp_path):
    stack = np.zeros((1, 5, 20, 20), np.uint16) + 100
    for z in range(5):
        stack[0, z, :, : 4 * z] = 1000
    np.save(tmp_path / "stack.npy", stack)
    with listening(3) as server:
        page = opened(server.http)
        page.locator("#card").wait_for()
        page.keyboard.press("Tab")  # the first thing on the page is the place for the file
        assert page.evaluate("document.activeElement.id") == "file"
        page.locator("#file").set_input_files(tmp_path / "stack.npy")
        wait_for_outputs(page)
        slide(page, "opacity", 0)
        plane = page.locator("#plane")
        assert plane.input_value() == "2"
        plane.focus()
        for z in (3, 4):
            page.keyboard.press("ArrowRight")
            bright = (pixels(page)[..., 0] > 128).mean()
            assert bright == pytest.approx(4 * z / 20)
        assert "5 of 5" in page.locator("#plane-value").inner_text()


def test_what_the_server_says_of_a_wrong_file_is_shown(opened):
    with listening(2, 3) as server:
        page = opened(server.http)
        page.locator("#card").wait_for()
        drop(page, "notes.txt", b"these are no pixels")
        page.get_by_role("alert").wait_for()
        assert page.get_by_role("alert").inner_text().startswith("notes.txt: this is no image")
        page.locator("#model").select_option("cells_3")
        page.get_by_text("Takes stacks").wait_for()
        drop(page, PICTURE.name, PICTURE.read_bytes())
        page.get_by_text("a 2-D image").wait_for()
        assert not page.locator("#view").is_visible()


def test_a_token_is_asked_for_only_where_the_server_wants_one(opened):
    with listening(2, access=Access((TOKEN,))) as server:
        page = opened(server.http)
        field = page.get_by_label("Token")
        field.wait_for()
        assert not page.get_by_role("alert").is_visible()  # nobody has done anything wrong yet
        field.fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("this server needs a token").wait_for()
        field.fill(TOKEN)
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="cells_2").wait_for()
        drop(page, PICTURE.name, PICTURE.read_bytes())
        wait_for_outputs(page)
        assert not field.is_visible()
