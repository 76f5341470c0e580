"""Failures that pass are waited for, the others are told at once; against a server whose answers are written down."""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from cyto_dl.client import Client, EndpointError
from cyto_dl.client.patience import TRIES
from cyto_dl.errors import ConfigError, ImageError
from tests.serving.process import free_ports

METADATA = {"name": "m", "inputs": [{"name": "raw", "shape": [-1, 1, -1, -1]}], "outputs": []}
BUSY = (429, {"error": "the server is busy"}, {"Retry-After": "7"})
GONE = None  # the connection is closed before an answer
GOOD = (200, METADATA, {})


@pytest.fixture
def pauses(monkeypatch):
    """What the client would have waited, in seconds."""
    waited = []
    monkeypatch.setattr("cyto_dl.client.patience.time.sleep", waited.append)
    return waited


@contextmanager
def answering(*answers):
    """The address of a server that gives these answers, one after the other, and the last one from then on."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = left.pop(0) if len(left) > 1 else left[0]
            if answer is GONE:
                self.close_connection = True
                return
            status, document, headers = answer
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_full_server_is_asked_again_when_it_says(pauses):
    with answering(*[BUSY] * (TRIES + 2), GOOD) as url:
        assert Client(url, "m").metadata() == METADATA
    assert len(pauses) == TRIES + 2 and min(pauses) >= 7


@pytest.mark.parametrize("failure", [GONE, (503, {"error": "loading"}, {}), (502, b"<html>bad gateway</html>", {})])
def test_what_breaks_for_a_moment_is_asked_again(failure, pauses):
    with answering(failure, failure, GOOD) as url:
        assert Client(url, "m").metadata() == METADATA
    assert len(pauses) == 2 and pauses[1] > pauses[0]


def test_what_stays_broken_is_told(pauses):
    with (
        answering((503, {"error": "loading"}, {})) as url,
        pytest.raises(EndpointError, match=r"loading \(tried 6"),
    ):
        Client(url, "m").metadata()
    assert len(pauses) == TRIES - 1


def test_nobody_listening_is_told_with_the_address(pauses):
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(
        EndpointError, match=f"{url} cannot be reached: .*Connection refused. Is the server running"
    ) as told:
        Client(url, "m").metadata()
    assert told.value.exit_code == 3


def test_no_pause_goes_beyond_the_time_of_a_call(pauses):
    with answering(BUSY) as url, pytest.raises(EndpointError, match=r"busy \(tried 1 "):
        Client(url, "m", timeout_s=5).metadata()
    assert pauses == []


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        ((400, {"error": "raw: NaN"}, {}), ImageError, "raw: NaN"),
        ((400, {"error": "outputs: there is no 'x'"}, {}), ConfigError, "there is no 'x'"),
        ((400, {"error": "parameters: overlap: 2"}, {}), ConfigError, "overlap"),
        ((413, {"error": "too many voxels"}, {}), ImageError, "too many voxels"),
        ((504, {"error": "300 s are over"}, {}), ImageError, "a smaller image"),
        ((401, {"error": "needs a token"}, {}), ConfigError, "--token-file"),
        ((404, {"error": "no model m"}, {}), ConfigError, "no model m"),
        ((302, b"", {"Location": "https://elsewhere/"}), ConfigError, "https://elsewhere/"),
        ((500, {"error": "failed (id 12345678)"}, {}), EndpointError, "12345678"),
        ((200, {"outputs": [{"name": "seg"}]}, {}), EndpointError, "not one of the V2 protocol"),
        ((200, b"", {"Inference-Header-Content-Length": "9"}), EndpointError, "not one of the V2 protocol"),
    ],
)
def test_what_does_not_pass_is_told_at_once(answer, error, says, pauses):
    with answering(GOOD, answer) as url, pytest.raises(error, match=says):
        Client(url, "m").predict(np.zeros((1, 4, 4), np.uint8))
    assert pauses == []


def test_a_page_that_is_not_json_is_no_server_of_models(pauses):
    with answering((200, b"<html>", {})) as url, pytest.raises(ConfigError, match="Is the address right"):
        Client(url).metadata()


def test_a_server_that_is_too_slow_is_told_with_how_to_allow_more(pauses):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EndpointError, match=r"did not answer within .*timeout_s"):
            Client(url, "m", timeout_s=0.2).metadata()
    assert pauses == []
