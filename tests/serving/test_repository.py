import asyncio
import threading

import grpc
import numpy as np
import pytest
from kserve.protocol.grpc.grpc_predict_v2_pb2 import (
    ModelReadyRequest,
    RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest,
)

from cyto_dl.errors import BundleError
from cyto_dl.storage import NothingThereError
from serving.access import Access
from serving.executor import Executor, Work
from serving.identity import Identity
from serving.model import BundleModel
from serving.server import BundleServer
from tests.serving.conftest import ask, client_of, make_predictor
from tests.serving.test_grpc import request, stub_of
from tests.serving.wire import npy

ADMIN = "a" * 16
HEADERS = {"Authorization": f"Bearer {ADMIN}"}
PICTURE = np.zeros((1, 20, 20), np.uint8)
PATIENCE_S = 30


@pytest.fixture
def operated():
    """A server that serves `first` from /bundles/first; its repository is /models, where `damaged` does not load."""
    executor, loaded = Executor(max_running=2, max_waiting=2), []

    async def load(name, address):
        if address.endswith("damaged"):
            raise BundleError("weights at /secret are truncated")
        if address.endswith("slip"):
            raise NothingThereError("/models/slip is not a bundle")
        loaded.append(address)
        identity = Identity(f"{len(loaded)}" * 64)
        return BundleModel(name or "first", make_predictor(2), executor, identity=identity)

    server = BundleServer(executor, load, root="/models/", access=Access((), (ADMIN,)))
    asyncio.run(server.repository.add(None, "/bundles/first"))
    server.loaded = loaded
    return server


def change(server, name, action):
    return ask(server, "POST", f"/v2/repository/models/{name}/{action}", headers=HEADERS)


def predict(server, name):
    return ask(server, "POST", f"/v1/models/{name}:predict", content=npy(PICTURE))


def test_the_operator_loads_a_bundle_of_the_repository_by_its_name(operated):
    assert predict(operated, "second").status_code == 404
    assert change(operated, "second", "load").json() == {"name": "second", "load": True}
    assert operated.loaded == ["/bundles/first", "/models/second"]
    assert predict(operated, "second").status_code == 200
    assert ask(operated, "GET", "/v2/models").json() == {"models": ["first", "second"]}
    assert ask(operated, "GET", "/v2/models/second/ready").status_code == 200


def test_a_newer_bundle_takes_the_place_of_the_older(operated):
    before = predict(operated, "first").headers["x-model-version"]
    assert change(operated, "first", "load").status_code == 200
    assert operated.loaded == ["/bundles/first"] * 2  # from where the operator said, not from the repository
    assert predict(operated, "first").headers["x-model-version"] != before


def test_windows_of_the_newer_bundle_share_no_batch_with_those_of_the_older(operated):
    before = operated.models.get_model("first")._shared(Work(PATIENCE_S))
    change(operated, "first", "load")
    assert operated.models.get_model("first")._shared(Work(PATIENCE_S)).name != before.name


def test_a_model_that_is_unloaded_is_gone_and_can_come_back(operated):
    assert change(operated, "first", "unload").json() == {"name": "first", "unload": True}
    assert predict(operated, "first").status_code == 404
    assert ask(operated, "GET", "/v2/health/ready").status_code == 503
    assert change(operated, "first", "unload").status_code == 404
    assert change(operated, "first", "load").status_code == 200
    assert ask(operated, "GET", "/v2/health/ready").status_code == 200


def test_the_index_lists_what_is_served_and_what_is_not_and_why(operated):
    change(operated, "second", "load")
    change(operated, "second", "unload")
    change(operated, "damaged", "load")
    listed = {model["name"]: model for model in ask(operated, "POST", "/v2/repository/index").json()}
    assert listed["first"] == {"name": "first", "version": "1" * 12, "state": "READY", "reason": ""}
    assert (listed["second"]["state"], listed["second"]["reason"]) == ("UNAVAILABLE", "unloaded")
    assert (listed["damaged"]["state"], listed["damaged"]["reason"][:10]) == ("UNAVAILABLE", "not loaded")


def test_a_slip_of_the_pen_is_not_found_and_leaves_nothing(operated):
    answer = change(operated, "slip", "load")
    assert answer.status_code == 404
    assert "secret" not in answer.text and "/models" not in answer.text
    listed = ask(operated, "POST", "/v2/repository/index").json()
    assert [each["name"] for each in listed] == ["first"]


def test_a_bundle_that_does_not_load_is_told_by_an_id_alone(operated, caplog):
    response = change(operated, "damaged", "load")
    assert response.status_code == 409
    assert "secret" not in response.text
    identity = response.json()["error"].split("(id ")[1][:8]
    assert any(identity in record.getMessage() and "/secret" in record.getMessage() for record in caplog.records)
    assert predict(operated, "first").status_code == 200


@pytest.mark.parametrize("name", ["..", ".hidden", "%2e%2e%2fetc", "a b", "-x"])
def test_a_name_does_not_lead_out_of_the_repository(operated, name):
    assert change(operated, name, "load").status_code in {400, 404, 405}
    assert operated.loaded == ["/bundles/first"]


def test_without_a_repository_only_the_bundles_of_the_start_can_come_back():
    executor = Executor(max_running=1, max_waiting=1)
    server = BundleServer(executor, load=None, access=Access((), (ADMIN,)))
    assert change(server, "second", "load").status_code == 404


def test_requests_of_a_model_that_is_unloaded_finish(operated):
    entered, gate = threading.Event(), threading.Event()

    def wait(logits):
        entered.set()
        assert gate.wait(PATIENCE_S)
        return logits

    predictor = operated.models.get_model("first").predictor
    predictor.postprocess["seg"] = wait

    async def talk():
        async with client_of(operated, timeout=PATIENCE_S) as client:
            asked = asyncio.create_task(client.post("/v1/models/first:predict", content=npy(PICTURE)))
            assert await asyncio.to_thread(entered.wait, PATIENCE_S)
            unloaded = await client.post("/v2/repository/models/first/unload", headers=HEADERS)
            refused = await client.post("/v1/models/first:predict", content=npy(PICTURE))
            gate.set()
            return unloaded, refused, await asked

    unloaded, refused, answer = asyncio.run(talk())
    assert [unloaded.status_code, refused.status_code, answer.status_code] == [200, 404, 200]


def test_grpc_loads_and_unloads_for_the_operator(operated):
    metadata = [("authorization", f"Bearer {ADMIN}")]
    with stub_of(operated) as stub:
        message = RepositoryModelLoadRequest(model_name="second")
        assert stub.RepositoryModelLoad(message, metadata=metadata).isLoaded
        assert stub.ModelReady(ModelReadyRequest(name="second")).ready
        assert stub.ModelInfer(request(PICTURE[None], model="second")).outputs
        message = RepositoryModelUnloadRequest(model_name="second")
        assert stub.RepositoryModelUnload(message, metadata=metadata).isUnloaded
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelReady(ModelReadyRequest(name="second"))
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_network_is_warmed_up_in_the_thread_that_will_run_it(executor, monkeypatch):
    predictor, seen = make_predictor(3), []
    model = BundleModel("cells", predictor, executor)
    forward = type(predictor.network).forward

    def spy(network, windows):
        seen.append((threading.current_thread().name, tuple(windows.shape)))
        return forward(network, windows)

    monkeypatch.setattr(type(predictor.network), "forward", spy)
    model.warm_up()
    assert seen == [("device", (predictor.window.batch_size, 1, 16, 16, 16))]
