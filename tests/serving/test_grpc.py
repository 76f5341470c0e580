"""gRPC in this process, on a loopback port: the same answers and the same refusals as REST."""

import asyncio
import threading
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from kserve.protocol.grpc.grpc_predict_v2_pb2 import (
    InferTensorContents,
    ModelInferRequest,
    ModelMetadataRequest,
    ModelReadyRequest,
    RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest,
    ServerReadyRequest,
)
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.serving.wire import DATATYPES, DTYPES

PATIENCE_S = 60


@contextmanager
def stub_of(server, *, kind=GRPCInferenceServiceStub):
    """A client of a server in this process, whose gRPC side listens as long; what `kind` makes of a channel."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def on_loop(task):
        return asyncio.run_coroutine_threadsafe(task, loop).result(PATIENCE_S)

    async def start():
        listener = server.grpc_server(0)
        await listener.start()
        return listener

    listener = on_loop(start())
    limits = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
    try:
        with grpc.insecure_channel(f"127.0.0.1:{listener.port}", options=limits) as channel:
            grpc.channel_ready_future(channel).result(PATIENCE_S)
            yield kind(channel)
    finally:
        on_loop(listener.stop(0))
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


@pytest.fixture(scope="module")
def stub(server):
    with stub_of(server) as stub:
        yield stub


def request(array, *, model="cells_2", outputs=(), raw=None, **changes):
    description = {"name": "raw", "shape": array.shape, "datatype": DATATYPES[str(array.dtype)]} | changes
    return ModelInferRequest(
        model_name=model,
        inputs=[ModelInferRequest.InferInputTensor(**description)],
        outputs=[ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
        raw_input_contents=[array.tobytes() if raw is None else raw],
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_grpc_predicts_as_the_predictor(stub, models, image, dims):
    batch = np.stack([image(dims, seed=0), image(dims, seed=1)])
    response = stub.ModelInfer(request(batch, model=f"cells_{dims}"))
    wanted = [models[dims].predictor.predict(picture) for picture in batch]
    assert [output.name for output in response.outputs] == ["seg", "distance"]
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        got = np.frombuffer(raw, DTYPES[output.datatype]).reshape(output.shape)
        np.testing.assert_array_equal(got, np.stack([one[output.name] for one in wanted]))


def test_grpc_takes_typed_contents_and_gives_only_the_requested_heads(stub, models, image):
    picture = image(2)[None]
    message = request(picture, outputs=["distance"], contents=InferTensorContents(uint_contents=picture.ravel()))
    del message.raw_input_contents[:]
    response = stub.ModelInfer(message)
    assert [output.name for output in response.outputs] == ["distance"]
    got = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(picture.shape)
    np.testing.assert_array_equal(got[0], models[2].predictor.predict(picture[0])["distance"])


PICTURE = np.zeros((1, 1, 3, 4), np.float32)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (request(PICTURE, name="image"), ["'raw'", "image"]),
        (request(PICTURE, datatype="BYTES"), ["raw", "BYTES", "FP32"]),
        (request(PICTURE, shape=[3, 4]), ["raw", "[3, 4]", "[N, 1, Y, X]"]),
        (request(PICTURE, shape=[1, 2, 3, 2]), ["raw", "1 channel"]),
        (request(PICTURE, shape=[1, 1, -1, 4]), ["raw", "-1"]),
        (request(PICTURE, shape=[1, 1, 0, 4], raw=b""), ["raw", "[1, 1, 0, 4]"]),
        (request(PICTURE, raw=PICTURE.tobytes()[:-1]), ["raw", "12"]),
        (request(PICTURE, raw=PICTURE.tobytes() + b"\0\0\0\0"), ["raw", "12"]),
        (request(PICTURE * np.nan), ["raw", "12 of 12"]),
        (request(PICTURE, outputs=["masks"]), ["masks", "seg"]),
        (ModelInferRequest(model_name="cells_2"), ["'raw'", "[]"]),
    ],
)
def test_a_wrong_request_is_an_invalid_argument(stub, message, words):
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(message)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert [word for word in words if word not in refused.value.details()] == []


def test_an_image_larger_than_8_mib_reaches_the_model(stub):
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(request(np.full((1, 1, 1536, 1536), np.inf, np.float32)))
    assert "2359296 of 2359296" in refused.value.details()


def test_a_fault_of_the_server_is_internal_and_has_an_id(stub, models, monkeypatch):
    monkeypatch.setattr(models[2], "_predict_images", None)
    with pytest.raises(grpc.RpcError) as fault:
        stub.ModelInfer(request(PICTURE))
    assert fault.value.code() == grpc.StatusCode.INTERNAL
    assert "(id " in fault.value.details()
    assert "NoneType" not in fault.value.details()


@pytest.mark.parametrize("action", ["Load", "Unload"])
def test_models_cannot_be_loaded_or_unloaded_over_grpc(stub, action):
    message = {"Load": RepositoryModelLoadRequest, "Unload": RepositoryModelUnloadRequest}[action]
    with pytest.raises(grpc.RpcError) as refused:
        getattr(stub, f"RepositoryModel{action}")(message(model_name="cells_2"))
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert stub.ModelReady(ModelReadyRequest(name="cells_2")).ready


def test_readiness_and_metadata_are_those_of_the_models(stub, models):
    assert stub.ServerReady(ServerReadyRequest()).ready
    metadata = stub.ModelMetadata(ModelMetadataRequest(name="cells_3"))
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.outputs] == [
        ("seg", "UINT8", [-1, 1, -1, -1, -1]),
        ("distance", "FP32", [-1, 1, -1, -1, -1]),
    ]
    models[3].stop()
    try:
        assert not stub.ModelReady(ModelReadyRequest(name="cells_3")).ready
        assert not stub.ServerReady(ServerReadyRequest()).ready
    finally:
        models[3].ready = True
