"""`python -m serving` as its operator sees it: memory, SIGTERM, several bundles, tokens, the log."""

import io
import json
import re
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest, ServerLiveRequest, ServerReadyRequest
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.serving.process import PATIENCE_S, ROOT, started, wait_until_ready
from tests.serving.wire import npy

pytestmark = pytest.mark.integration
BUNDLE = str(ROOT / "examples/bundles/nuclei")
TOKEN, ADMIN = "t" * 32, "a" * 32
MIB = 2**20
LIMITS = ["--max-body-mib", "16", "--max-buffered-mib", "32", "--log-format", "json"]
PREDICT = "/v1/models/first:predict"


class Peak:
    """The memory that a server took beyond what it has now, in MiB."""

    def __init__(self, server):
        self._folder = Path(f"/proc/{server.process.pid}")
        (self._folder / "clear_refs").write_text("5")  # forget earlier peaks
        self._before = self._read("VmRSS")

    def growth(self):
        return self._read("VmHWM") - self._before

    def _read(self, name):
        return int(re.search(rf"{name}:\s+(\d+) kB", (self._folder / "status").read_text())[1]) / 1024


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def operated(tmp_path_factory):
    """A server of two bundles with tokens, small limits, a log in JSON, and a repository with a third bundle."""
    folder = tmp_path_factory.mktemp("operated")
    for name, token in (("tokens", TOKEN), ("admin", ADMIN)):
        (folder / name).write_text(f"{token}\n")
    shutil.copytree(BUNDLE, folder / "repository/third")
    arguments = [*LIMITS, "--bundle", f"second={BUNDLE}", "--repository", str(folder / "repository")]
    arguments += ["--token-file", str(folder / "tokens"), "--admin-token-file", str(folder / "admin")]
    with started(f"first={BUNDLE}", folder / "log", arguments=arguments) as server:
        wait_until_ready(server, "second")
        yield server


def pieces(num_mib):
    for _ in range(num_mib):
        yield bytes(MIB)


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_body_beyond_the_limit_is_refused_before_it_fills_the_memory(operated, is_chunked):
    peak = Peak(operated)
    headers = bearer(TOKEN) | ({} if is_chunked else {"Content-Length": str(200 * MIB)})
    response = operated.call("POST", PREDICT, content=pieces(200), headers=headers)
    assert response.status_code == 413, response.text
    # 16 MiB are the limit; parts that are on their way, and what the allocator takes at a time, come on top
    assert peak.growth() < 64
    assert operated.call("GET", "/v2/health/ready").status_code == 200


def test_slow_uploads_of_many_clients_do_not_fill_the_memory(operated):
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {15 * MIB}\r\n\r\n"
    peak, statuses = Peak(operated), []
    with ExitStack() as connections:
        for _ in range(12):
            client = connections.enter_context(socket.create_connection(("127.0.0.1", operated.http_port)))
            client.sendall(head.encode() + bytes(14 * MIB))  # and then nothing more
            client.settimeout(2)
            try:
                statuses.append(client.recv(100).split(b" ")[1])
            except TimeoutError:  # it is waited for
                statuses.append(None)
        assert statuses == [None] * 2 + [b"429"] * 10  # two times 14 MiB fit into 32
        assert peak.growth() < 64
    deadline = time.monotonic() + PATIENCE_S
    while "cyto_dl_buffered_bytes 0.0" not in operated.call("GET", "/metrics", headers=bearer(TOKEN)).text:
        assert time.monotonic() < deadline, "memory is not given back"
        time.sleep(0.1)


def test_a_head_without_end_is_cut_off(operated):
    peak = Peak(operated)
    address = ("127.0.0.1", operated.http_port)
    header = b"x-more: %s\r\n" % (b"a" * 1000)
    with socket.create_connection(address) as client, pytest.raises(OSError, match=r"reset|pipe"):
        client.sendall(b"GET / HTTP/1.1\r\n" + 100_000 * header)
    assert peak.growth() < 64


def test_a_message_without_a_token_is_not_read(operated):
    peak = Peak(operated)
    message = ModelInferRequest(model_name="first", raw_input_contents=[bytes(200 * MIB)])
    with grpc.insecure_channel(f"127.0.0.1:{operated.grpc_port}") as channel, pytest.raises(grpc.RpcError) as refused:
        GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=PATIENCE_S)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert peak.growth() < 64


def test_two_bundles_answer_alike_and_a_third_comes_and_goes(operated):
    body, headers = npy(np.random.default_rng(0).integers(0, 255, (1, 64, 64), np.uint8)), bearer(TOKEN)
    answers = [
        operated.call("POST", f"/v1/models/{name}:predict", content=body, headers=headers)
        for name in ("first", "second")
    ]
    assert [answer.status_code for answer in answers] == [200, 200]
    first, second = (np.load(io.BytesIO(answer.content)) for answer in answers)
    np.testing.assert_array_equal(first, second)
    for action, status in (("load", 200), ("unload", 404)):
        route = f"/v2/repository/models/third/{action}"
        assert operated.call("POST", route, headers=headers).status_code == 401
        assert operated.call("POST", route, headers=bearer(ADMIN)).status_code == 200
        answer = operated.call("POST", "/v1/models/third:predict", content=body, headers=headers)
        assert answer.status_code == status
    slip = operated.call("POST", "/v2/repository/models/thrid/load", headers=bearer(ADMIN))
    assert slip.status_code == 404, slip.text


def test_the_log_is_json_with_one_line_a_request_and_no_token(operated):
    operated.call("POST", PREDICT, content=b"{}", headers=bearer(TOKEN) | {"X-Request-Id": "seen-in-the-log"})
    lines = [json.loads(line) for line in operated.log.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "seen-in-the-log"]
    assert (line["status"], line["model"], line["protocol"]) == ("400", "first", "v1")
    assert "instances" in line["error"]
    assert TOKEN not in operated.log.read_text()
    assert ADMIN not in operated.log.read_text()


def test_sigterm_refuses_new_requests_of_both_protocols_and_finishes_those_that_run(tmp_path):
    image = np.tile(np.random.default_rng(0).integers(0, 255, (1, 256, 256), np.uint8), (1, 3, 3))  # some ten seconds
    with started(f"first={BUNDLE}", tmp_path / "log") as server, ThreadPoolExecutor(1) as threads:
        wait_until_ready(server, "first")
        answer = threads.submit(server.call, "POST", PREDICT, content=npy(image))
        while "cyto_dl_running 1.0" not in server.call("GET", "/metrics").text:
            assert not answer.done()
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        while _listens(server):
            assert time.monotonic() < deadline
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel, pytest.raises(grpc.RpcError) as refused:
            GRPCInferenceServiceStub(channel).ServerLive(ServerLiveRequest(), timeout=PATIENCE_S)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert not answer.done()
        assert answer.result(PATIENCE_S).status_code == 200
        assert server.process.wait(PATIENCE_S) == 0


def test_a_server_that_drains_is_not_ready_and_answers_until_it_is_over(tmp_path):
    image = npy(np.zeros((1, 64, 64), np.uint8))
    with started(f"first={BUNDLE}", tmp_path / "log", arguments=["--drain-s", "600"]) as server:
        wait_until_ready(server, "first")
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        while server.call("GET", "/v2/models/first/ready").status_code != 503:
            assert time.monotonic() < deadline
        assert server.call("GET", "/v2/health/live").status_code == 200
        assert server.call("POST", PREDICT, content=image).status_code == 200
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            ready = GRPCInferenceServiceStub(channel).ServerReady(ServerReadyRequest(), timeout=PATIENCE_S)
        assert not ready.ready
        server.process.send_signal(signal.SIGTERM)  # not to wait ten minutes
        assert server.process.wait(PATIENCE_S) == 0


def test_sigterm_ends_a_server_that_loads(tmp_path):
    with started(f"first={BUNDLE}", tmp_path / "log") as server:
        handled = Path(f"/proc/{server.process.pid}/status")
        deadline = time.monotonic() + PATIENCE_S
        while not int(re.findall(r"SigCgt:\s+(\w+)", handled.read_text())[0], 16) & 1 << (signal.SIGTERM - 1):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 128 + signal.SIGTERM
        assert "running on" not in server.log.read_text()


def _listens(server):
    try:
        return server.call("GET", "/v2/health/live").status_code == 200
    except httpx.TransportError:
        return False
