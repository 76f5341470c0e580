"""`python -m serving` as a process of its own, on loopback ports, with bundles that were really exported."""

import io
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
import torch
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from cyto_dl.bundle import export_bundle, load_bundle
from cyto_dl.bundle.build import build_predictor, document_from_config
from serving.__main__ import main
from serving.server import BundleServer
from tests.serving.process import PATIENCE_S, started, wait_until_ready
from tests.serving.wire import DTYPES, binary_request, npy, read_tensors, tensor

pytestmark = pytest.mark.integration
ALLOWED = "gate.wait_until_open"
PORTS = ["--http_port", "0", "--grpc_port", "0"]  # any free ones

# A head's postprocessing of the user's own, which tells when a prediction is under way and holds it back.
GATE = """
import time
from pathlib import Path


def wait_until_open(logits, folder):
    (Path(folder) / "entered").touch()
    while not (Path(folder) / "open").exists():
        time.sleep(0.01)
    return logits
"""


def experiment(spatial_dims, gate_folder):
    """A resolved experiment with three heads, as a checkpoint carries it."""
    postprocessing = "cyto_dl.model.utils.postprocessing"
    head = {
        "_target_": "cyto_dl.model.heads.ConvolutionHead",
        "in_channels": 2,
        "out_channels": 1,
        "spatial_dims": spatial_dims,
    }
    task = {"head": head, "loss": {"_target_": "torch.nn.BCEWithLogitsLoss"}}
    return {
        "run_name": f"cells-{spatial_dims}",
        "raw_im_channels": 1,
        "data": {
            "transforms": {
                "load": [{"_target_": "cyto_dl.data.ReadImaged", "keys": "raw", "spatial_dims": spatial_dims}],
                "preprocess": [{"_target_": "monai.transforms.NormalizeIntensityd", "keys": "raw"}],
            }
        },
        "model": {
            "x_key": "raw",
            "backbone": {
                "_target_": "monai.networks.nets.UNet",
                "spatial_dims": spatial_dims,
                "in_channels": 1,
                "out_channels": 2,
                "channels": [2, 4],
                "strides": [2],
            },
            "task_heads": {"seg": task, "distance": task, "gated": task},
            "postprocessing": {
                "prediction": {
                    "seg": {"_target_": f"{postprocessing}.sigmoid_rescale", "_partial_": True},
                    "distance": {"_target_": f"{postprocessing}.identity", "_partial_": True},
                    "gated": {"_target_": ALLOWED, "_partial_": True, "folder": str(gate_folder)},
                }
            },
            "inference": {"roi_size": [16] * spatial_dims},
        },
    }


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    """A folder with the user's module; predictions of the head `gated` wait while it has no file `open`."""
    folder = tmp_path_factory.mktemp("gate")
    (folder / "gate.py").write_text(GATE)
    (folder / "open").touch()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="module")
def bundles(gate, tmp_path_factory):
    """The folders of a 2-D and a 3-D bundle, by their spatial dimensions."""
    made = {}
    for dims in (2, 3):
        folder, config = tmp_path_factory.mktemp(f"run_{dims}"), experiment(dims, gate)
        torch.manual_seed(0)
        network = build_predictor(document_from_config(config, allow=[ALLOWED]), allow=[ALLOWED]).network
        state = {f"network.{name}": value for name, value in network.state_dict().items()}
        torch.save({"state_dict": state, "config": config}, folder / "best.ckpt")
        sample = np.random.default_rng(0).integers(0, 4000, (1, *[20] * dims), np.uint16)
        made[dims] = export_bundle(folder, folder / "bundle", sample=sample, allow=[ALLOWED])
    return made


@pytest.fixture(scope="module", params=[2, 3])
def served(request, bundles, gate, tmp_path_factory):
    """A running server, its bundle's predictor, and the number of spatial dimensions."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    with started(bundles[request.param], log, allow=ALLOWED, code=gate) as server:
        wait_until_ready(server, f"cells-{request.param}")
        yield server, load_bundle(bundles[request.param], allow=[ALLOWED]), request.param


@pytest.fixture
def image(served):
    shape = (1, *(9, 37, 30)[-served[2] :])
    return np.random.default_rng(1).integers(0, 4000, shape, np.uint16)


def assert_equal(got, wanted):
    """The same heads, dtypes and bits."""
    assert set(got) == set(wanted)
    for head, array in wanted.items():
        assert got[head].dtype == array.dtype
        np.testing.assert_array_equal(got[head], array)


def test_v2_json_and_binary_give_what_the_predictor_gives(served, image):
    server, predictor, dims = served
    wanted = {head: array[None] for head, array in predictor.predict(image).items()}
    path = f"/v2/models/cells-{dims}/infer"
    assert_equal(read_tensors(server.call("POST", path, json={"inputs": [tensor(image[None])]})), wanted)
    body, headers = binary_request(image[None])
    assert_equal(read_tensors(server.call("POST", path, content=body, headers=headers)), wanted)


def test_v1_json_and_npy_give_what_the_predictor_gives(served, image):
    server, predictor, dims = served
    wanted = predictor.predict(image)
    path = f"/v1/models/cells-{dims}:predict"
    (prediction,) = server.call("POST", path, json={"instances": [image.tolist()]}).json()["predictions"]
    assert_equal({head: np.array(prediction[head], array.dtype) for head, array in wanted.items()}, wanted)
    with np.load(io.BytesIO(server.call("POST", path, content=npy(image)).content), allow_pickle=False) as archive:
        assert_equal(dict(archive), wanted)
    response = server.call("POST", path, content=npy(image), headers={"X-Outputs": "seg"})
    assert_equal({"seg": np.load(io.BytesIO(response.content), allow_pickle=False)}, {"seg": wanted["seg"]})


def test_grpc_gives_what_the_predictor_gives(served, image):
    server, predictor, dims = served
    message = ModelInferRequest(
        model_name=f"cells-{dims}",
        inputs=[{"name": "raw", "shape": image[None].shape, "datatype": "UINT16"}],
        raw_input_contents=[image.tobytes()],
    )
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        response = GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=PATIENCE_S)
    got = {
        output.name: np.frombuffer(raw, DTYPES[output.datatype]).reshape(output.shape)[0]
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    assert_equal(got, predictor.predict(image))


def test_metadata_is_what_the_bundle_declares(served):
    server, predictor, dims = served
    document = server.call("GET", f"/v2/models/cells-{dims}").json()
    free, axes = [-1] * dims, f"N{predictor.input.axes}"
    assert [(each["name"], each["shape"], each["parameters"]["axes"]) for each in document["inputs"]] == [
        ("raw", [-1, 1, *free], axes)
    ]
    assert {
        (each["name"], each["datatype"], *each["shape"], each["parameters"]["axes"]) for each in document["outputs"]
    } == {
        ("seg", "UINT8", -1, 1, *free, axes),
        ("distance", "FP32", -1, 1, *free, axes),
        ("gated", "FP32", -1, 1, *free, axes),
    }


def test_a_wrong_request_is_the_clients_fault(served, image):
    server, _, dims = served
    response = server.call(
        "POST", f"/v2/models/cells-{dims}/infer", json={"inputs": [tensor(image[None], name="other")]}
    )
    assert response.status_code == 400
    assert "raw" in response.json()["error"]


def ask_over_rest(server, image, name):
    answer = server.call("POST", f"/v1/models/{name}:predict", content=npy(image), headers={"X-Outputs": "gated"})
    return answer.status_code == 200


def ask_over_grpc(server, image, name):
    asked = ModelInferRequest(model_name=name, raw_input_contents=[image[None].tobytes()])
    asked.inputs.add(name="raw", datatype="UINT16", shape=image[None].shape)
    asked.outputs.add(name="gated")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        answer = GRPCInferenceServiceStub(channel).ModelInfer(asked, timeout=PATIENCE_S)
    return [each.name for each in answer.outputs] == ["gated"]


@contextmanager
def prediction_under_way(server, gate, image, name, ask=ask_over_rest):
    """Whether a prediction succeeds, in the future: it stays unfinished until the gate's file `open` is there."""
    (gate / "open").unlink()
    (gate / "entered").unlink(missing_ok=True)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(ask, server, image, name)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not (gate / "entered").exists():
                assert time.monotonic() < deadline, server.log.read_text()
                time.sleep(0.01)
            yield answer
        finally:
            (gate / "open").touch()


def test_liveness_and_readiness_answer_while_a_prediction_runs(served, image, gate):
    server, _, dims = served
    with prediction_under_way(server, gate, image, f"cells-{dims}") as answer:
        assert server.call("GET", "/v2/health/live").status_code == 200
        assert server.call("GET", f"/v2/models/cells-{dims}/ready").status_code == 200
        assert not answer.done()
    assert answer.result(PATIENCE_S)


@pytest.mark.parametrize("ask", [ask_over_rest, ask_over_grpc])
def test_sigterm_lets_the_prediction_finish_and_exits_with_0(bundles, gate, tmp_path, ask):
    picture = np.ones((1, 20, 20), np.uint16)
    with started(bundles[2], tmp_path / "log", allow=ALLOWED, code=gate) as server:
        wait_until_ready(server, "cells-2")
        with prediction_under_way(server, gate, picture, "cells-2", ask) as answer:
            server.process.send_signal(signal.SIGTERM)
        assert answer.result(PATIENCE_S)
        assert server.process.wait(PATIENCE_S) == 0


@pytest.fixture
def broken(bundles, tmp_path):
    """Copies the 2-D bundle and spoils one file of it."""

    def spoil(file, change):
        folder = shutil.copytree(bundles[2], tmp_path / "broken")
        (folder / file).write_bytes(change((folder / file).read_bytes()))
        return folder

    return spoil


def test_a_broken_bundle_exits_with_2_and_never_listens(broken, gate, tmp_path):
    folder = broken("weights.safetensors", lambda content: content[:-20])
    with started(folder, tmp_path / "log", allow=ALLOWED, code=gate) as server:
        while server.process.poll() is None:
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", server.http_port)) != 0
            time.sleep(0.05)
        assert server.process.returncode == 2
    assert "weights.safetensors" in server.log.read_text().partition("error: ")[2]


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("sample.npz", lambda content: content[:-20], "sample.npz"),
        ("bundle.yaml", lambda content: content.replace(b"format_version: 1", b"format_version: 99"), "99"),
        ("bundle.yaml", lambda content: content.replace(b"monai.networks.nets.UNet", b"os.system"), "os.system"),
        ("bundle.yaml", lambda content: content[:40], "bundle.yaml"),
    ],
)
def test_a_bundle_that_does_not_load_starts_no_server(broken, monkeypatch, capsys, file, change, words):
    monkeypatch.setattr(BundleServer, "serve", None)
    assert main([*PORTS, "--bundle", str(broken(file, change)), "--allow-target", ALLOWED]) == 2
    assert words in capsys.readouterr().err


def test_code_of_ones_own_is_only_run_when_it_is_allowed(bundles, monkeypatch, capsys):
    monkeypatch.setattr(BundleServer, "serve", None)
    assert main([*PORTS, "--bundle", str(bundles[2])]) == 2
    assert ALLOWED in capsys.readouterr().err
