import asyncio
import dataclasses
import json
import logging
import threading
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from monai.transforms import Spacingd

from cyto_dl.errors import ImageError
from cyto_dl.model.utils.postprocessing import identity
from serving import model as model_module
from serving.messages import dataplane
from serving.messages.requests import read_request
from serving.model import BundleModel
from tests.serving.conftest import client_of
from tests.serving.wire import binary_request, npy, read_tensors, tensor

PATIENCE_S = 60  # after which a test that hangs fails instead


class Gate:
    """A postprocessing function that waits until it is opened."""

    def __init__(self):
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, logits):
        self.entered.set()
        assert self.opened.wait(PATIENCE_S)
        return logits


@pytest.fixture
def serve_with(server, models, executor):
    """Serves the 2-D model as `special` with another postprocessing of seg and preprocessing; returns its predictor."""

    def serve(postprocess, preprocess=()):
        predictor = dataclasses.replace(
            models[2].predictor,
            postprocess=models[2].predictor.postprocess | {"seg": postprocess},
            preprocess=list(preprocess),
        )
        server.register_model(BundleModel("special", predictor, executor))
        return predictor

    yield serve
    server.models.get_models().pop("special")


def test_the_server_answers_others_while_it_predicts(server, serve_with, image):
    gate = Gate()
    serve_with(gate)
    body, headers = binary_request(image(2)[None], outputs=["seg"])

    async def talk():
        async with client_of(server, timeout=PATIENCE_S) as http:
            answer = asyncio.create_task(http.post("/v2/models/special/infer", content=body, headers=headers))
            assert await asyncio.to_thread(gate.entered.wait, PATIENCE_S)
            live = await http.get("/v2/health/live")
            wrong = await http.post("/v2/models/special/infer", json={"inputs": []})
            assert not answer.done()
            gate.opened.set()
            return live, wrong, await answer

    live, wrong, answer = asyncio.run(talk())
    assert [live.status_code, wrong.status_code, answer.status_code] == [200, 400, 200]


@pytest.mark.parametrize("error", [RuntimeError("weights at /secret"), MemoryError("/secret"), KeyError("/secret")])
@pytest.mark.parametrize("route", ["/v2/models/special/infer", "/v1/models/special:predict"])
def test_a_fault_of_the_server_has_an_id_and_stays_in_its_log(send, serve_with, image, caplog, error, route):
    def fail(logits):
        raise error

    serve_with(fail)
    body = {"inputs": [tensor(image(2)[None])]} if "v2" in route else {"instances": [image(2).tolist()]}
    with caplog.at_level(logging.ERROR, logger="serving"):
        response = send("POST", route, json=body)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert type(error).__name__ not in response.text
    (record,) = [record for record in caplog.records if record.name == "serving.model"]
    assert record.getMessage().split("id ")[1].rstrip(")") in response.json()["error"]
    assert record.exc_info[1] is error


def test_an_image_that_the_predictor_refuses_is_the_clients_fault(send, serve_with, image):
    def refuse(logits):
        raise ImageError("the image is too dark")

    serve_with(refuse)
    response = send("POST", "/v2/models/special/infer", json={"inputs": [tensor(image(2)[None])]})
    assert (response.status_code, response.json()) == (400, {"error": "the image is too dark"})


def test_only_the_requested_heads_are_computed(send, serve_with, image):
    computed = []
    serve_with(lambda logits: computed.append(logits.shape) or logits)
    body = {"inputs": [tensor(image(2)[None])], "outputs": [{"name": "distance"}]}
    assert send("POST", "/v2/models/special/infer", json=body).status_code == 200
    assert computed == []
    body = json.dumps({"instances": [image(2).tolist()], "outputs": ["seg"]})
    assert send("POST", "/v1/models/special:predict", content=body).status_code == 200
    assert len(computed) == 1


def test_requests_that_are_computed_at_once_do_not_disturb_each_other(server, serve_with, image):
    resample = Spacingd("raw", pixdim=(2, 2))
    predictor = serve_with(identity, [resample])
    pictures = [image(2, seed=seed) for seed in range(4)]

    async def talk():
        async with client_of(server, timeout=PATIENCE_S) as http:
            bodies = [binary_request(picture[None], outputs=["distance"]) for picture in pictures]
            asked = [http.post("/v2/models/special/infer", content=body, headers=headers) for body, headers in bodies]
            return await asyncio.gather(*asked)

    for _ in range(5):
        for picture, answer in zip(pictures, asyncio.run(talk()), strict=True):
            assert answer.status_code == 200, answer.text
            wanted = predictor.predict(picture)["distance"]
            # windows of several requests in a batch take another algorithm of oneDNN: last bits of float32
            np.testing.assert_allclose(read_tensors(answer)["distance"][0], wanted, rtol=1e-5, atol=1e-3)


def test_one_request_too_many_is_told_when_to_come_again(server, serve_with, image):
    gate = Gate()
    serve_with(gate)
    body, headers = binary_request(image(2)[None], outputs=["seg"])

    async def talk():
        async with client_of(server, timeout=PATIENCE_S) as http:
            ask = lambda: http.post("/v2/models/special/infer", content=body, headers=headers)  # noqa: E731
            running = [asyncio.create_task(ask()) for _ in range(4)]
            assert await asyncio.to_thread(gate.entered.wait, PATIENCE_S)
            while server.executor.num_admitted < 4:
                await asyncio.sleep(0.01)
            refused = await ask()
            gate.opened.set()
            return refused, await asyncio.gather(*running)

    refused, answers = asyncio.run(talk())
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "queue is full" in refused.json()["error"]
    assert [answer.status_code for answer in answers] == [200] * 4


def large_bodies(picture):
    body, headers = binary_request(picture[None])
    return {
        "V2 binary": ("/v2/models/cells_2/infer", {"content": body, "headers": headers}),
        "V2 JSON": ("/v2/models/cells_2/infer", {"json": {"inputs": [tensor(picture[None])]}}),
        "V1 JSON": ("/v1/models/cells_2:predict", {"json": {"instances": [picture.tolist()]}}),
        "a file": ("/v1/models/cells_2:predict", {"content": npy(picture)}),
        "the page": ("/v1/models/cells_2:read", {"content": npy(picture)}),
    }


@pytest.mark.parametrize("kind", large_bodies(np.zeros((1, 8, 8), np.uint8)))
def test_no_more_bodies_are_unpacked_at_once_than_requests_run(server, image, monkeypatch, kind):
    route, content = large_bodies(image(2))[kind]
    unpacking, opened = [], threading.Event()
    module, name = (dataplane, "orjson") if "JSON" in kind else (model_module, "read_request")
    real = orjson.loads if "JSON" in kind else read_request

    def slow(*arguments, **options):
        unpacking.append(threading.current_thread().name)
        assert opened.wait(PATIENCE_S)
        return real(*arguments, **options)

    fake = SimpleNamespace(loads=slow, JSONDecodeError=orjson.JSONDecodeError) if name == "orjson" else slow
    monkeypatch.setattr(module, name, fake)

    async def talk():
        async with client_of(server, timeout=PATIENCE_S) as http:
            asked = [asyncio.create_task(http.post(route, **content)) for _ in range(7)]
            while len(unpacking) < server.executor.max_running or sum(each.done() for each in asked) < 3:
                await asyncio.sleep(0.01)
            at_once, live = len(unpacking), await http.get("/v2/health/live")
            opened.set()
            return at_once, live, [each.status_code for each in await asyncio.gather(*asked)]

    at_once, live, answers = asyncio.run(talk())
    assert at_once == server.executor.max_running
    assert live.status_code == 200
    assert sorted(answers) == [200] * 4 + [429] * 3  # two run, two wait
    assert all(thread.startswith("request") for thread in unpacking)


@pytest.mark.parametrize("route", ["/v2/models/cells_2/versions/1", "/v2/models/cells_2/versions/1/ready"])
def test_there_are_no_versions(send, route):
    response = send("GET", route)
    assert response.status_code == 404
    assert "/versions/" in response.text
