import grpc
import numpy as np
import pytest
from kserve.protocol.grpc.grpc_predict_v2_pb2 import (
    ModelMetadataRequest,
    ModelReadyRequest,
    RepositoryModelUnloadRequest,
    ServerLiveRequest,
    ServerReadyRequest,
)

from serving.access import Access
from serving.model import BundleModel
from serving.server import BundleServer
from tests.serving.conftest import ask, make_predictor
from tests.serving.test_grpc import request, stub_of
from tests.serving.wire import npy

TOKEN, NEXT_TOKEN, ADMIN = "t" * 16, "n" * 16, "a" * 16
PICTURE = np.zeros((1, 20, 20), np.uint8)


@pytest.fixture
def guarded(executor):
    """Makes a server with tokens and one model."""

    def make(access, **settings):
        server = BundleServer(executor, load=None, access=access, **settings)
        server.register_model(BundleModel("cells", make_predictor(2), executor))
        return server

    return make


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models/cells:predict"),
        ("POST", "/v2/models/cells/infer"),
        ("GET", "/v2/models/cells"),
        ("GET", "/v2/models"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("POST", "/v2/repository/index"),
        ("GET", "/nowhere"),
    ],
)
@pytest.mark.parametrize("headers", [{}, bearer("w" * 16), {"Authorization": TOKEN}, bearer("ü"), bearer("")])
def test_without_its_token_a_server_tells_nothing(guarded, method, path, headers):
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    response = ask(guarded(Access((TOKEN,))), method, path, headers=raw, content=npy(PICTURE))
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert "Authorization" in response.json()["error"]


@pytest.mark.parametrize("token", [TOKEN, NEXT_TOKEN, ADMIN])
def test_each_of_the_tokens_opens(guarded, token):
    server = guarded(Access((TOKEN, NEXT_TOKEN), (ADMIN,)))
    response = ask(server, "POST", "/v1/models/cells:predict", headers=bearer(token), content=npy(PICTURE))
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/cells/ready", "/v1/models/cells"])
def test_probes_need_no_token(guarded, path):
    assert ask(guarded(Access((TOKEN,))), "GET", path).status_code == 200


@pytest.mark.parametrize("action", ["load", "unload"])
@pytest.mark.parametrize(("headers", "status"), [({}, 401), (bearer(TOKEN), 401)])
def test_a_token_for_predictions_changes_no_models(guarded, action, headers, status):
    server = guarded(Access((TOKEN,), (ADMIN,)))
    assert ask(server, "POST", f"/v2/repository/models/cells/{action}", headers=headers).status_code == status
    assert ask(server, "GET", "/v2/models/cells/ready").status_code == 200


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/v2/repository/models/cells%2Funload", "/v2/repository"])
def test_there_are_no_other_administrative_routes(guarded, path):
    for method in ("GET", "POST"):
        assert ask(guarded(Access()), method, path).status_code in {403, 404, 405}


def test_grpc_needs_the_token_and_reads_nothing_without(guarded):
    with stub_of(guarded(Access((TOKEN,), (ADMIN,)))) as stub:
        assert stub.ServerLive(ServerLiveRequest()).live
        assert stub.ServerReady(ServerReadyRequest()).ready
        assert stub.ModelReady(ModelReadyRequest(name="cells")).ready
        metadata = [("authorization", f"Bearer {TOKEN}")]
        assert stub.ModelInfer(request(PICTURE[None], model="cells"), metadata=metadata).outputs
        for call in (
            lambda: stub.ModelInfer(request(PICTURE[None], model="cells")),
            lambda: stub.ModelMetadata(ModelMetadataRequest(name="cells"), metadata=[("authorization", "Bearer no")]),
            lambda: stub.RepositoryModelUnload(RepositoryModelUnloadRequest(model_name="cells"), metadata=metadata),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_token_is_never_shown(guarded, caplog):
    access = Access((TOKEN,), (ADMIN,))
    assert TOKEN not in repr(access) + str(access)
    with caplog.at_level("DEBUG"):
        ask(guarded(access), "GET", "/v2/models", headers=bearer(TOKEN))
        ask(guarded(access), "GET", "/v2/models", headers=bearer("wrong" * 5))
    logged = "".join(str(vars(record)) for record in caplog.records)
    assert TOKEN not in logged
    assert "wrong" not in logged


ORIGIN = "https://viewer.example.org"


@pytest.mark.parametrize(("origins", "allowed"), [([], None), ([ORIGIN], ORIGIN), (["https://other.org"], None)])
def test_pages_elsewhere_may_ask_where_the_operator_names_them(guarded, origins, allowed):
    server = guarded(Access((TOKEN,)), origins=origins)
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    response = ask(server, "OPTIONS", "/v2/models/cells/infer", headers=preflight)
    assert response.headers.get("access-control-allow-origin") == allowed
    refused = ask(server, "GET", "/v2/models", headers={"Origin": ORIGIN})
    assert refused.headers.get("access-control-allow-origin") == allowed  # a page reads the 401 as well


def test_the_server_does_not_say_of_what_it_is_made(guarded):
    server = guarded(Access())
    assert ask(server, "GET", "/v2").json()["name"] == "cyto-dl"
    told = ask(server, "GET", "/v2").text + ask(server, "GET", "/openapi.json").text
    for library in ("kserve", "uvicorn", "fastapi", "torch"):
        assert library not in told.lower()
