"""What the log, the metrics and the headers of answers say of a request."""

import asyncio
import dataclasses
import logging

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.executor import Executor
from serving.identity import Identity
from serving.limits import Limits
from serving.model import BundleModel
from serving.server import BundleServer
from tests.serving.conftest import ask, client_of, make_predictor
from tests.serving.jobs.conftest import PATIENCE_S, HeldNetwork
from tests.serving.telemetry.test_drift import document_of, field
from tests.serving.test_grpc import request, stub_of
from tests.serving.wire import binary_request, npy

SHA256 = "0123456789abcdef" * 4
PREDICT, INFER = "/v1/models/cells:predict", "/v2/models/cells/infer"


@pytest.fixture
def observed():
    """Makes a server of its own, whose counts begin at 0; its model knows its training images."""

    def make(drift="warn", predictor=None):
        executor = Executor(max_running=2, max_waiting=2)
        server = BundleServer(executor, load=None, limits=Limits(body_bytes=100_000))
        predictor = dataclasses.replace(predictor or make_predictor(2), metadata=document_of([field(2)]))
        model = BundleModel("cells", predictor, executor, identity=Identity(SHA256, "torch", "cpu"), drift=drift)
        server.register_model(model)
        return server

    return make


def samples(server):
    """Metric -> value, with its labels as `name{label=value,...}`."""
    text = ask(server, "GET", "/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_predictions_are_counted_by_model_protocol_and_status(observed):
    server, picture = observed(), field(2)
    body, headers = binary_request(picture[None])
    assert ask(server, "POST", INFER, content=body, headers=headers).status_code == 200
    assert ask(server, "POST", PREDICT, content=npy(picture)).status_code == 200
    assert ask(server, "POST", PREDICT, content=b"{}").status_code == 400
    assert ask(server, "POST", PREDICT, content=bytes(100_001)).status_code == 413
    assert ask(server, "POST", "/v1/models/other:predict", content=b"{}").status_code == 404
    with stub_of(server) as stub:
        stub.ModelInfer(request(picture[None], model="cells"))
    found = samples(server)
    requests = {name: value for name, value in found.items() if name.startswith("cyto_dl_requests_total")}
    assert requests == {
        "cyto_dl_requests_total{model=cells,protocol=v2,status=200}": 1,
        "cyto_dl_requests_total{model=cells,protocol=v1,status=200}": 1,
        "cyto_dl_requests_total{model=cells,protocol=v1,status=400}": 1,
        "cyto_dl_requests_total{model=cells,protocol=v1,status=413}": 1,
        "cyto_dl_requests_total{model=,protocol=v1,status=404}": 1,  # never a name that a client made up
        "cyto_dl_requests_total{model=cells,protocol=grpc,status=OK}": 1,
    }
    assert found["cyto_dl_voxels_total{model=cells}"] == 3 * picture.size
    assert found["cyto_dl_windows_total{model=cells}"] == 3 * 25  # windows of 16 px on 64 px, a quarter of them overlap
    assert found["cyto_dl_wait_seconds_count{model=cells}"] == 3
    assert found["cyto_dl_network_seconds_sum{model=cells}"] > 0
    assert found["cyto_dl_request_seconds_bucket{le=600.0,model=cells,protocol=v1,status=200}"] == 1
    assert (
        found["cyto_dl_request_seconds_count{model=cells,protocol=v1,status=413}"] == 1
    )  # at once: no prediction's time
    identity = f"device=cpu,engine=torch,model=cells,sha256={SHA256},version={SHA256[:12]}"
    assert found[f"cyto_dl_model_info{{{identity}}}"] == 1
    assert [found[f"cyto_dl_{name}"] for name in ("running", "waiting", "buffered_bytes")] == [0, 0, 0]
    assert not any(name.startswith("request_predict_seconds") for name in found)  # KServe's


def test_what_is_no_prediction_is_not_counted(observed):
    server = observed()
    for path in ("/v2/health/live", "/v2/models/cells", "/v1/models/cells", "/nowhere"):
        ask(server, "GET", path)
    assert not any(name.startswith("cyto_dl_requests_total") for name in samples(server))


def test_an_answer_says_which_bundle_made_it_and_how(observed):
    response = ask(observed(), "POST", PREDICT, content=npy(field(2)), headers={"X-Request-Id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    assert response.headers["x-model-version"] == SHA256[:12]
    assert response.headers["x-windows"] == "25"
    assert response.headers["x-drift"] == "none"
    assert 0 <= float(response.headers["x-waited-seconds"]) <= float(response.headers["x-seconds"])
    assert "server" not in response.headers


def test_grpc_says_the_same_in_trailing_metadata(observed):
    with stub_of(observed()) as stub:
        answer, call = stub.ModelInfer.with_call(
            request(field(2)[None], model="cells"), metadata=[("x-request-id", "b")]
        )
        assert answer.outputs
        found = dict(call.trailing_metadata())
        assert (found["x-request-id"], found["x-model-version"], found["x-windows"]) == ("b", SHA256[:12], "25")
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request(field(2)[None], model="other"), metadata=[("x-request-id", "c")])
        assert dict(refused.value.trailing_metadata())["x-request-id"] == "c"


@pytest.mark.parametrize("forged", ["", "a b", "x" * 129, "id=1\tERROR"])
def test_what_is_no_id_is_replaced(observed, forged):
    given = ask(observed(), "GET", "/v2/health/live", headers={"X-Request-Id": forged}).headers["x-request-id"]
    assert given != forged
    assert len(given) == 32


def test_every_request_is_one_line_in_the_log(observed, caplog):
    server = observed()
    with caplog.at_level(logging.DEBUG, logger="serving"):
        ask(server, "POST", PREDICT, content=npy(field(2)), headers={"X-Request-Id": "good"})
        ask(server, "POST", PREDICT, content=b"{}", headers={"X-Request-Id": "bad"})
        ask(server, "GET", "/v2/health/live", headers={"X-Request-Id": "probe"})
    records = {record.request_id: record for record in caplog.records if record.name == "serving.request"}
    assert {name: record.levelname for name, record in records.items()} == {
        "good": "INFO",
        "bad": "WARNING",
        "probe": "DEBUG",  # every ten seconds
    }
    fields = records["good"].fields
    assert fields.keys() >= {"request", "status", "model", "seconds", "waited", "network", "windows", "voxels"}
    assert (fields["status"], fields["protocol"], fields["windows"]) == ("200", "v1", 25)
    assert "instances" in records["bad"].fields["error"]
    assert records["bad"].exc_info is None  # the fault lies not in this code


def test_an_unusual_image_is_counted_and_the_policy_decides_the_rest(observed):
    blank = npy(np.full((1, 64, 64), 400, np.uint16))
    answers = {policy: ask(observed(policy), "POST", PREDICT, content=blank) for policy in ("accept", "warn", "refuse")}
    assert [answer.status_code for answer in answers.values()] == [200, 200, 400]
    assert "x-drift" not in answers["accept"].headers
    assert answers["warn"].headers["x-drift"] == "intensity=99.00"
    assert "training images" in answers["refuse"].json()["error"]
    assert answers["refuse"].headers["x-drift"] == "intensity=99.00"
    server = observed("refuse")
    ask(server, "POST", PREDICT, content=blank)
    ask(server, "POST", PREDICT, content=npy(field(2)))
    found = samples(server)
    assert found["cyto_dl_drift_score_bucket{le=1.0,model=cells,quantity=intensity}"] == 1
    assert found["cyto_dl_drift_score_count{model=cells,quantity=intensity}"] == 2
    assert found["cyto_dl_voxels_total{model=cells}"] == field(2).size  # of the one that was predicted


def test_a_prediction_whose_model_is_unloaded_meanwhile_is_counted_as_its_own(observed):
    server = observed()
    network = HeldNetwork(server.models.get_model("cells").predictor.network)
    server.models.get_model("cells").predictor = dataclasses.replace(make_predictor(2), network=network)

    async def talk():
        async with client_of(server) as client:
            asked = asyncio.create_task(client.post(PREDICT, content=npy(field(2))))
            await asyncio.to_thread(network.entered.acquire, timeout=PATIENCE_S)
            server.models.unload("cells")
            network.released.set()
            return await asked

    assert asyncio.run(talk()).status_code == 200
    found = samples(server)
    assert found["cyto_dl_requests_total{model=cells,protocol=v1,status=200}"] == 1
    assert found["cyto_dl_voxels_total{model=cells}"] == field(2).size


@pytest.mark.parametrize("path", ["/v2/models/cells", "/v2/models/cells/ready", "/metrics"])
def test_a_fault_beside_predictions_shows_no_text_either(observed, monkeypatch, caplog, path):
    server = observed()

    def fail(*_, **__):
        raise OSError("/secret/weights")

    monkeypatch.setattr(BundleModel, "get_input_types", fail)
    monkeypatch.setattr(BundleModel, "healthy", fail)
    monkeypatch.setattr(server.models.models["cells"], "identity", None)
    response = ask(server, "GET", path)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "None" not in response.text
    identity = response.json()["error"].split("(id ")[1][:8]
    assert any(record.exc_info and identity in record.getMessage() for record in caplog.records)
