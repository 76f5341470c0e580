import asyncio
import dataclasses
import json
import logging
import threading

import httpx
import kserve.model_server
import numpy as np
import pytest

from cyto_dl.errors import ImageError
from serving.model import BundleModel
from tests.serving.wire import binary_request, tensor

PATIENCE_S = 60  # after which a test that hangs fails instead


class Gate:
    """A postprocessing function that waits until it is opened, and counts who is inside."""

    def __init__(self):
        self.entered, self.opened = threading.Event(), threading.Event()
        self.inside = self.most_inside = 0

    def __call__(self, logits):
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.entered.set()
        assert self.opened.wait(PATIENCE_S)
        self.inside -= 1
        return logits


@pytest.fixture
def serve_with(server, models):
    """Serves the 2-D model under the name `special` with another postprocessing of seg; returns its predictor."""

    def serve(postprocess):
        predictor = dataclasses.replace(
            models[2]._predictor, postprocess=models[2]._predictor.postprocess | {"seg": postprocess}
        )
        server.register_model(BundleModel("special", predictor))
        return predictor

    yield serve
    server.registered_models.unload("special")


def client():
    transport = httpx.ASGITransport(kserve.model_server.app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server", timeout=PATIENCE_S)


def test_the_server_answers_others_while_it_predicts(serve_with, image):
    gate = Gate()
    serve_with(gate)
    body, headers = binary_request(image(2)[None], outputs=["seg"])

    async def talk():
        async with client() as http:
            answer = asyncio.create_task(http.post("/v2/models/special/infer", content=body, headers=headers))
            assert await asyncio.to_thread(gate.entered.wait, PATIENCE_S)
            live = await http.get("/v2/health/live")
            wrong = await http.post("/v2/models/special/infer", json={"inputs": []})
            assert not answer.done()
            gate.opened.set()
            return live, wrong, await answer

    live, wrong, answer = asyncio.run(talk())
    assert [live.status_code, wrong.status_code, answer.status_code] == [200, 400, 200]


def test_images_are_predicted_one_after_the_other(serve_with, image):
    gate = Gate()
    serve_with(gate)
    body, headers = binary_request(np.stack([image(2)] * 2), outputs=["seg"])

    async def talk():
        async with client() as http:
            requests = [http.post("/v2/models/special/infer", content=body, headers=headers) for _ in range(3)]
            answers = asyncio.gather(*requests)
            assert await asyncio.to_thread(gate.entered.wait, PATIENCE_S)
            await http.get("/v2/health/live")
            gate.opened.set()
            return await answers

    assert [answer.status_code for answer in asyncio.run(talk())] == [200] * 3
    assert gate.most_inside == 1


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
