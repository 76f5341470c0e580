"""Limits of bodies and images, on a server in this process; tests/integration has the memory of a real one."""

import asyncio
import dataclasses
import io
import threading
import time
from contextlib import contextmanager

import grpc
import httpx
import numpy as np
import pytest
import uvicorn
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest, ModelInferResponse

from cyto_dl.inference import SlidingWindow
from serving.errors import Stalled
from serving.executor import Executor
from serving.limits import MIB, BodyLimit, Buffered, Limits
from serving.model import BundleModel
from serving.rest.http_protocol import BoundedHead
from serving.server import BundleServer
from tests.serving.conftest import ask, client_of, make_predictor
from tests.serving.test_grpc import PATIENCE_S, request, stub_of
from tests.serving.wire import binary_request, npy, tensor

INFER, PREDICT = "/v2/models/cells/infer", "/v1/models/cells:predict"


@pytest.fixture
def limited():
    """Makes a server with one 2-D model and its own limits."""

    def make(**limits):
        limits = Limits(**limits)
        executor = Executor(max_running=1, max_waiting=1)
        server = BundleServer(executor, load=None, limits=limits)
        server.register_model(BundleModel("cells", make_predictor(2), executor, limits=limits))
        return server

    return make


async def in_chunks(body, *, size=1000, pause_s=0.0):
    for start in range(0, len(body), size):
        yield body[start : start + size]
        await asyncio.sleep(pause_s)


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("route", [INFER, PREDICT])
def test_a_body_that_is_too_large_is_refused(limited, route, is_chunked):
    body = bytes(5000)
    response = ask(limited(body_bytes=4000), "POST", route, content=in_chunks(body) if is_chunked else body)
    assert response.status_code == 413
    assert "4000 bytes" in response.json()["error"]


def test_a_body_that_says_that_it_is_too_large_is_not_read(limited):
    async def unread():
        raise AssertionError
        yield b""

    server = limited(body_bytes=4000)
    assert ask(server, "POST", INFER, content=unread(), headers={"Content-Length": "4001"}).status_code == 413


def test_a_body_as_large_as_the_limit_is_answered(limited):
    body = npy(np.zeros((1, 20, 20), np.uint8))
    assert ask(limited(body_bytes=len(body)), "POST", PREDICT, content=body).status_code == 200


def test_bodies_together_are_bounded_and_their_memory_is_given_back(limited):
    server, opened = limited(buffered_bytes=6000), asyncio.Event

    async def talk():
        gate = opened()

        async def slow():
            yield bytes(4000)
            await gate.wait()
            yield bytes(1)

        async with client_of(server) as client:
            uploading = asyncio.create_task(client.post(INFER, content=slow()))
            await asyncio.sleep(0)
            while not server.buffered.num_bytes:
                await asyncio.sleep(0.01)
            refused = await client.post(INFER, content=bytes(3000))
            small = await client.post(PREDICT, content=npy(np.zeros((1, 20, 20), np.uint8)))
            gate.set()
            return refused, small, await uploading

    refused, small, uploaded = asyncio.run(talk())
    assert [refused.status_code, small.status_code, uploaded.status_code] == [429, 200, 400]
    assert int(refused.headers["retry-after"]) > 0
    assert server.buffered.num_bytes == 0


def test_a_body_that_does_not_arrive_is_given_up(limited):
    async def stalled():
        yield b"{"
        await asyncio.sleep(60)

    response = ask(limited(timeout_s=0.1), "POST", INFER, content=stalled())
    assert response.status_code == 408
    assert "0.1 s" in response.json()["error"]


def large_requests():
    picture = np.zeros((1, 1, 40, 30), np.uint8)
    body, headers = binary_request(picture)
    return {
        "V2 binary": (INFER, {"content": body, "headers": headers}),
        "V2 JSON": (INFER, {"json": {"inputs": [tensor(picture)]}}),
        "beyond memory": (INFER, {"json": {"inputs": [tensor(picture, shape=[1, 1, 2**62, 2**62])]}}),
        "V1 JSON": (PREDICT, {"json": {"instances": [picture[0].tolist()]}}),
        ".npy": (PREDICT, {"content": npy(picture[0])}),
    }


@pytest.mark.parametrize(("route", "content"), large_requests().values(), ids=large_requests())
def test_an_image_with_too_many_voxels_is_refused(limited, route, content):
    response = ask(limited(voxels=1199), "POST", route, **content)
    assert response.status_code == 413
    assert "1199" in response.json()["error"]


def test_grpc_has_the_same_limits(limited):
    picture = np.zeros((1, 1, 40, 30), np.uint8)
    for limits, words in (
        ({"voxels": 1199}, "1199"),
        ({"buffered_bytes": 1000}, "memory"),
        ({"message_bytes": 1000}, "larger than max"),
    ):
        with stub_of(limited(**limits)) as stub, pytest.raises(grpc.RpcError, match=words) as refused:
            stub.ModelInfer(request(picture, model="cells"))
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@contextmanager
def listening(server):
    """The port on which uvicorn serves in a thread."""
    http = uvicorn.Server(uvicorn.Config(server.app, port=0, http=BoundedHead, log_config=None))
    thread = threading.Thread(target=http.run)
    thread.start()
    try:
        wait_for(lambda: http.started)
        yield http.servers[0].sockets[0].getsockname()[1]
    finally:
        http.force_exit = http.should_exit = True
        thread.join(PATIENCE_S)


def test_a_large_answer_counts_until_it_is_taken_or_given_up(limited):
    server = limited(timeout_s=2)
    with_one_window(server)
    picture = npy(np.random.default_rng(0).integers(0, 255, (1, 1500, 1500), np.uint8))
    headers = {"X-Outputs": "distance"}
    with listening(server) as port:
        address = f"http://127.0.0.1:{port}{PREDICT}"
        with httpx.stream("POST", address, content=picture, headers=headers, timeout=PATIENCE_S) as answer:
            assert server.buffered.num_bytes > len(picture) + 4 * 1500**2
            wait_for(lambda: not server.buffered.num_bytes)
            with pytest.raises(httpx.RemoteProtocolError):
                answer.read()
        taken = httpx.post(address, content=picture, headers=headers, timeout=PATIENCE_S)
    wanted = server.models.get_models()["cells"].predictor.predict(np.load(io.BytesIO(picture)), heads=["distance"])
    np.testing.assert_array_equal(np.load(io.BytesIO(taken.content)), wanted["distance"])


def with_one_window(server):
    """Makes the model compute 1500 x 1500 at once: 9 MB of answer, more than sockets and HTTP/2 keep unread."""
    model = server.models.get_models()["cells"]
    model.predictor = dataclasses.replace(model.predictor, window=SlidingWindow(roi_size=(1500, 1500)))


def as_stream(channel):
    """A call whose answer is not read before somebody asks for it, and whose message need not come."""
    return channel.stream_stream(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=ModelInferRequest.SerializeToString,
        response_deserializer=ModelInferResponse.FromString,
    )


def test_an_answer_over_grpc_that_is_not_taken_gives_its_memory_back(limited):
    server = limited(timeout_s=1)
    with_one_window(server)
    message = request(np.zeros((1, 1, 1500, 1500), np.uint8), model="cells", outputs=["distance"])
    with stub_of(server, kind=as_stream) as call:
        answer = call(iter([message]))
        wait_for(lambda: server.buffered.num_bytes)
        wait_for(lambda: not server.executor.num_admitted)
        assert server.buffered.num_bytes == message.ByteSize()
        wait_for(lambda: not server.buffered.num_bytes)
        with pytest.raises(grpc.RpcError):
            next(answer)
        taken = call(iter([message]))  # over another connection, of which nobody has to know
        assert len(next(taken).raw_output_contents) == 1


def test_a_call_without_a_message_is_given_up(limited):
    stalled = threading.Event()
    with stub_of(limited(timeout_s=0.2), kind=as_stream) as call:
        answer = call(iter(stalled.wait, True))
        with pytest.raises(grpc.RpcError, match="did not arrive") as refused:
            next(answer)
        stalled.set()
    assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_client_that_leaves_while_it_sends_is_no_fault_and_takes_no_memory(limited, caplog):
    server, answers = limited(), []
    messages = [{"type": "http.request", "body": bytes(4000), "more_body": True}, {"type": "http.disconnect"}]
    scope = {"type": "http", "method": "POST", "path": INFER, "raw_path": INFER.encode(), "query_string": b""}
    scope |= {"headers": [], "scheme": "http", "server": ("server", 80), "root_path": "", "http_version": "1.1"}

    async def receive():
        return messages.pop(0)

    async def send(message):
        answers.append(message)

    asyncio.run(server.app(scope, receive, send))
    assert answers[0]["status"] == 499
    assert server.buffered.num_bytes == 0
    assert [record.name for record in caplog.records if record.exc_info] == []


def test_an_answer_that_is_not_taken_gives_its_memory_back(limited):
    server, body = limited(timeout_s=0.2), npy(np.zeros((1, 20, 20), np.uint8))
    messages = [{"type": "http.request", "body": body}]
    scope = {"type": "http", "method": "POST", "path": PREDICT, "raw_path": PREDICT.encode(), "query_string": b""}
    scope |= {"headers": [], "scheme": "http", "server": ("server", 80), "root_path": "", "http_version": "1.1"}

    async def receive():
        return messages.pop(0) if messages else await asyncio.Event().wait()

    async def send(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # the connection is full

    asyncio.run(server.app(scope, receive, send))
    assert server.buffered.num_bytes == 0


def test_the_time_for_an_answer_is_that_of_all_its_parts():
    """A client that takes each part just in time could keep an answer's memory for hours."""
    body, taken = bytes(8 * MIB), []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def send(message):
        await asyncio.sleep(0.1)
        taken.append(message)

    buffered = Buffered(100 * MIB)
    limit = BodyLimit(app, Limits(timeout_s=0.5), buffered)
    with pytest.raises(Stalled, match="did not take its answer"):
        asyncio.run(limit({"type": "http", "headers": []}, None, send))
    assert 1 < len(taken) < 9  # the head and some of the eight parts
    assert buffered.num_bytes == 0
