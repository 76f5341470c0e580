"""The page's answer: complete in itself, locked down, for browsers only; and the image behind it as an array."""

import base64
import hashlib
import io
import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from serving.access import Access
from serving.model import BundleModel
from serving.server import BundleServer
from tests.serving.conftest import ask, make_predictor
from tests.serving.wire import npy

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture
def page(send):
    return send("GET", "/", headers=BROWSER)


def test_a_browser_gets_the_page_and_a_probe_that_the_server_lives(send, page):
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text.startswith("<!doctype html>")
    for headers in ({}, {"Accept": "application/json"}):
        answer = send("GET", "/", headers=headers)
        assert answer.json() == {"status": "alive"} and answer.headers["vary"] == "Accept"


def test_the_page_names_nothing_elsewhere_and_runs_nothing_inline_but_its_script(page):
    assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]", page.text)
    assert not re.findall(r"<[^>]*\s(?:on[a-z]+|style|src)=", page.text.partition("<script>")[0])
    assert "innerHTML" not in page.text and "eval(" not in page.text  # models' names are text, never markup


def test_the_policy_allows_the_pages_own_script_and_style_and_no_other(page):
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    for kind in ("script", "style"):
        content = page.text.partition(f"<{kind}>")[2].partition(f"</{kind}>")[0].encode()
        assert policy[f"{kind}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert page.headers["x-content-type-options"] == "nosniff"


def test_the_page_needs_no_token_and_what_it_asks_does(executor):
    server = BundleServer(executor, load=None, access=Access(("t" * 16,)))
    server.register_model(BundleModel("cells", make_predictor(2), executor))
    assert ask(server, "GET", "/", headers=BROWSER).status_code == 200
    assert ask(server, "POST", "/v1/models/cells:read", content=npy(np.zeros((1, 20, 20)))).status_code == 401


def tiff(array):
    file = io.BytesIO()
    tifffile.imwrite(file, array[0], metadata={"axes": "ZYX"[-(array.ndim - 1) :]}, ome=True)
    return file.getvalue()


def png(array):
    file = io.BytesIO()
    Image.fromarray(array[0]).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(("dims", "encode"), [(2, tiff), (3, tiff), (2, png), (2, npy), (3, npy)])
def test_a_file_is_read_as_the_model_takes_it(send, image, dims, encode):
    array = image(dims)
    answer = send("POST", f"/v1/models/cells_{dims}:read", content=encode(array))
    assert answer.headers["content-type"] == "application/x-npy"
    read = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_half_floats_come_in_a_type_that_browsers_know(send, image):
    answer = send("POST", "/v1/models/cells_2:read", content=npy(image(2).astype(np.float16)))
    assert np.load(io.BytesIO(answer.content)).dtype == np.float32


@pytest.mark.parametrize(
    ("model", "content", "status", "says"),
    [
        ("cells_2", b"", 400, "no image"),
        ("cells_2", b'{"instances": []}', 400, "no image"),
        ("cells_2", npy(np.zeros((2, 8, 8))), 400, "channel"),
        ("cells_2", npy(np.zeros((1, 8, 8)))[:-9], 400, "bytes"),
        ("nuclei", b"", 404, "nuclei"),
    ],
)
def test_what_is_no_image_of_the_model_is_the_clients_fault(send, model, content, status, says):
    answer = send("POST", f"/v1/models/{model}:read", content=content)
    assert answer.status_code == status and says in answer.json()["error"]
