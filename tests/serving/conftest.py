import asyncio

import httpx
import kserve.model_server
import numpy as np
import pytest
from kserve.protocol.rest.server import RESTServer

from serving.model import BundleModel
from serving.server import build_server


@pytest.fixture(scope="session")
def models(predictors):
    """Models over real bundles: cells_2 and cells_3, heads seg (uint8) and distance (float32)."""
    return {dims: BundleModel(f"cells_{dims}", predictor) for dims, predictor in predictors.items()}


@pytest.fixture(scope="session")
def server(models):
    """The server before it listens, with KServe's own routes, middleware and error handlers."""
    server = build_server(list(models.values()), http_port=8080, grpc_port=8081)
    RESTServer("", server.dataplane, server.model_repository_extension, 8080).create_application()
    return server


@pytest.fixture
def send(server):
    """Sends one HTTP request to the server in this process; an error of the server becomes its 500."""

    def send(method, path, **content):
        async def talk():
            transport = httpx.ASGITransport(kserve.model_server.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, **content)

        return asyncio.run(talk())

    return send


@pytest.fixture
def image():
    """Makes an image C(Z)YX of 16-bit noise, of a size that no window divides."""

    def make(spatial_dims, *, seed=0, channels=1):
        rng = np.random.default_rng(seed)
        return rng.integers(0, 4000, (channels, *(7, 21, 18)[-spatial_dims:]), np.uint16)

    return make
