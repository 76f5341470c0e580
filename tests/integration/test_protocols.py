"""One image, asked for in every way that there is, of a server as a process: the same result to the last bit."""

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
import tifffile
import torch
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from PIL import Image as Picture

from cyto_dl.bundle import export_bundle, load_bundle
from cyto_dl.bundle.build import build_predictor, document_from_config
from cyto_dl.data.image import read_image, write_image
from tests.integration.test_serving import experiment
from tests.serving.process import PATIENCE_S, started, wait_until_ready
from tests.serving.wire import DTYPES, binary_request, npy, read_tensors, tensor

pytestmark = pytest.mark.integration
TRITON = Path(__file__).with_name("triton_client.py")
POSTPROCESSING = "cyto_dl.model.utils.postprocessing"


def two_heads(spatial_dims):
    """An experiment with labels and an image of floats, and no code of one's own."""
    config = experiment(spatial_dims, "")
    model = config["model"]
    for part in (model["task_heads"], model["postprocessing"]["prediction"]):
        del part["gated"]
    model["postprocessing"]["prediction"]["seg"] = {
        "_target_": f"{POSTPROCESSING}.connected_components",
        "_partial_": True,
    }
    return config


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    made = {}
    for dims in (2, 3):
        folder, config = tmp_path_factory.mktemp(f"run_{dims}"), two_heads(dims)
        torch.manual_seed(0)
        network = build_predictor(document_from_config(config)).network
        state = {f"network.{name}": value for name, value in network.state_dict().items()}
        torch.save({"state_dict": state, "config": config}, folder / "best.ckpt")
        sample = np.random.default_rng(0).integers(0, 4000, (1, *[20] * dims), np.uint16)
        made[dims] = export_bundle(folder, folder / "bundle", sample=sample)
    return made


@pytest.fixture(scope="module")
def server(bundles, tmp_path_factory):
    """One process that serves both bundles."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    with started(bundles[2], log, arguments=["--bundle", bundles[3]]) as server:
        for dims in (2, 3):
            wait_until_ready(server, f"cells-{dims}")
        yield server


@pytest.fixture(params=[2, 3])
def dims(request):
    return request.param


@pytest.fixture
def image(dims):
    return np.random.default_rng(1).integers(0, 4000, (1, *(9, 37, 30)[-dims:]), np.uint16)


@pytest.fixture(scope="module")
def predictors(bundles):
    return {dims: load_bundle(folder) for dims, folder in bundles.items()}


@pytest.fixture
def wanted(predictors, image, dims):
    predicted = predictors[dims].predict(image)
    assert predicted["seg"].max() > 1
    return predicted


def test_the_command_line_writes_what_the_predictor_gives(bundles, image, wanted, dims, tmp_path):
    source, folder = tmp_path / "image.ome.tif", tmp_path / "predictions"
    write_image(source, image)
    command = [sys.executable, "-m", "cyto_dl.cli", "predict", bundles[dims], source, "--output", folder]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    written = {head: read_image(folder / head / source.name, spatial_dims=dims).array for head in wanted}
    assert_equal(written, wanted)


def test_every_protocol_gives_that_as_well(server, image, wanted, dims):
    v1, v2 = f"/v1/models/cells-{dims}:predict", f"/v2/models/cells-{dims}/infer"
    batch = {head: array[None] for head, array in wanted.items()}

    body, headers = binary_request(image[None])
    for content in ({"json": {"inputs": [tensor(image[None])]}}, {"content": body, "headers": headers}):
        assert_equal(read_tensors(server.call("POST", v2, **content)), batch)

    (prediction,) = server.call("POST", v1, json={"instances": [image.tolist()]}).json()["predictions"]
    assert_equal({head: np.array(prediction[head], array.dtype) for head, array in wanted.items()}, wanted)

    files = [npy(image), ome_tiff(image), *([png(image[0])] if dims == 2 else [])]
    for content in files:
        with np.load(io.BytesIO(server.call("POST", v1, content=content).content), allow_pickle=False) as archive:
            assert_equal(dict(archive), wanted)
        for head, array in wanted.items():
            asked = {"X-Outputs": head, "Accept": "image/tiff"}
            answer = server.call("POST", v1, content=content, headers=asked).content
            assert_equal({head: tifffile.imread(io.BytesIO(answer)).reshape(array.shape)}, {head: array})

    message = ModelInferRequest(
        model_name=f"cells-{dims}",
        inputs=[{"name": "raw", "shape": image[None].shape, "datatype": "UINT16"}],
        raw_input_contents=[image.tobytes()],
    )
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        response = GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=PATIENCE_S)
    outputs = zip(response.outputs, response.raw_output_contents, strict=True)
    assert_equal({o.name: np.frombuffer(raw, DTYPES[o.datatype]).reshape(o.shape) for o, raw in outputs}, batch)


@pytest.mark.parametrize("is_binary", [True, False])
def test_kserves_rest_client_is_answered(server, image, wanted, dims, is_binary):
    async def ask():
        client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=PATIENCE_S))
        address, name = f"http://127.0.0.1:{server.http_port}", f"cells-{dims}"
        assert await client.is_server_live(address)
        assert await client.is_server_ready(address)
        assert await client.is_model_ready(address, name)
        values = InferInput("raw", list(image[None].shape), "UINT16")
        values.set_data_from_numpy(image[None], binary_data=is_binary)
        parameters = {"overlap": 0.25, "binary_data_output": is_binary}
        request = InferRequest(name, [values], parameters=parameters)
        try:
            return await client.infer(address, request, model_name=name)
        finally:
            await client.close()

    assert_equal(arrays_of(asyncio.run(ask())), {head: array[None] for head, array in wanted.items()})


def test_kserves_grpc_client_is_answered(server, image, wanted, dims):
    async def ask():
        client = InferenceGRPCClient(f"127.0.0.1:{server.grpc_port}", timeout=PATIENCE_S)
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(f"cells-{dims}")
        values = InferInput("raw", list(image[None].shape), "UINT16")
        values.set_data_from_numpy(image[None], binary_data=True)
        try:
            return await client.infer(InferRequest(f"cells-{dims}", [values], parameters={"overlap": "0.25"}))
        finally:
            await client.close()

    assert_equal(arrays_of(asyncio.run(ask())), {head: array[None] for head, array in wanted.items()})


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tritons_clients_are_answered(server, image, wanted, dims, protocol, tmp_path):
    port = server.http_port if protocol == "http" else server.grpc_port
    np.save(tmp_path / "image.npy", image)
    command = [sys.executable, TRITON, protocol, f"127.0.0.1:{port}", f"cells-{dims}", tmp_path / "image.npy"]
    done = subprocess.run(
        [*command, tmp_path / "a.npz"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "a.npz") as answer:
        assert_equal({head: answer[head] for head in wanted}, {head: array[None] for head, array in wanted.items()})
        told = json.loads(str(answer["told"]))
    assert told["platform"] == "cyto-dl_torch"
    out_of_bounds, unknown = told["faults"]
    assert ("400" if protocol == "http" else "INVALID_ARGUMENT") in out_of_bounds
    assert "overlap" in out_of_bounds and "unheard_of" in unknown


def ome_tiff(image):
    file = io.BytesIO()
    write_image(file, image, spacing_um=(0.5, 0.2, 0.1)[1 - image.ndim :])
    return file.getvalue()


def png(plane):
    file = io.BytesIO()
    Picture.fromarray(plane).save(file, "png")
    return file.getvalue()


def arrays_of(response):
    return {output.name: output.as_numpy() for output in response.outputs}


def assert_equal(got, wanted):
    """The same heads, dtypes and bits."""
    assert set(got) == set(wanted)
    for head, array in wanted.items():
        assert got[head].dtype == array.dtype
        np.testing.assert_array_equal(got[head], array)
