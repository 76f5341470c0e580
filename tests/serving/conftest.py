import asyncio
import functools

import httpx
import numpy as np
import pytest
import torch
from monai.networks.nets import UNet

from cyto_dl.inference import InputSpec, Predictor, SlidingWindow
from cyto_dl.model.heads import ConvolutionHead
from cyto_dl.model.network import TaskNetwork
from cyto_dl.model.utils.postprocessing import identity, sigmoid_rescale
from serving.executor import Executor
from serving.model import BundleModel
from serving.server import BundleServer


def make_predictor(spatial_dims):
    """A real, untrained predictor with the heads seg (uint8) and distance (float32)."""
    torch.manual_seed(0)
    backbone = UNet(spatial_dims, in_channels=1, out_channels=2, channels=(2, 4), strides=(2,))
    head = {"in_channels": 2, "out_channels": 1, "spatial_dims": spatial_dims}
    spec = InputSpec("raw", spatial_dims, 1, {"spatial_dims": spatial_dims})
    output = {"kind": "segmentation", "activation": "sigmoid", "channels": 1, "axes": spec.axes}
    return Predictor(
        name="cells",
        input=spec,
        outputs={"seg": output | {"dtype": "uint8"}, "distance": output | {"dtype": "float32"}},
        network=TaskNetwork(backbone, {"seg": ConvolutionHead(**head), "distance": ConvolutionHead(**head)}).eval(),
        preprocess=[],
        postprocess={"seg": sigmoid_rescale, "distance": identity},
        window=SlidingWindow(roi_size=(16,) * spatial_dims),
        metadata={},
        device=torch.device("cpu"),
    )


@pytest.fixture(scope="session")
def executor():
    """What computes for all models of the server: two requests at once, and two may wait."""
    return Executor(max_running=2, max_waiting=2)


@pytest.fixture(scope="session")
def models(executor):
    """The models cells_2 and cells_3, by their spatial dimensions."""
    return {dims: BundleModel(f"cells_{dims}", make_predictor(dims), executor) for dims in (2, 3)}


@pytest.fixture(scope="session")
def server(models, executor):
    """The server before it listens, with all routes, middleware and error handlers."""
    server = BundleServer(executor, load=None)
    for model in models.values():
        server.register_model(model)
    return server


def client_of(server, **settings):
    """An HTTP client of a server in this process, to be used in one event loop."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://server", **settings)


def ask(server, method, path, **content):
    """Sends one HTTP request to a server in this process."""

    async def talk():
        async with client_of(server) as client:
            return await client.request(method, path, **content)

    return asyncio.run(talk())


@pytest.fixture
def send(server):
    """Sends one HTTP request to the server in this process."""
    return functools.partial(ask, server)


@pytest.fixture
def image():
    """Makes an image C(Z)YX of 16-bit noise, of a size that no window divides."""

    def make(spatial_dims, *, seed=0, channels=1):
        rng = np.random.default_rng(seed)
        return rng.integers(0, 4000, (channels, *(7, 21, 18)[-spatial_dims:]), np.uint16)

    return make
