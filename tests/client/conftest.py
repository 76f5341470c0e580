import asyncio
import dataclasses
import threading
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import uvicorn

from cyto_dl.inference.predictor import Predictor
from serving.access import Access
from serving.executor import Executor
from serving.jobs.queue import computing
from serving.model import BundleModel
from serving.server import BundleServer
from tests.serving.conftest import make_predictor
from tests.serving.process import PATIENCE_S, free_ports

TOKEN = "0123456789abcdef"


@dataclass(frozen=True)
class Listening:
    """A server in a thread of this process."""

    http: str
    grpc: str
    predictors: dict[str, Predictor]


@contextmanager
def listening(*dims, access=None, changes=None, **settings):
    """A server on loopback ports, with the models cells_2 and cells_3, or one of them; with changed predictors."""
    executor = Executor(max_running=1, max_waiting=2)
    server = BundleServer(executor, load=None, **({"access": access} if access else {}), **settings)
    predictors = {f"cells_{each}": dataclasses.replace(make_predictor(each), **(changes or {})) for each in dims}
    for name, predictor in predictors.items():
        server.register_model(BundleModel(name, predictor, executor))
    (port,) = free_ports(1)
    started, loops = threading.Event(), []
    http = uvicorn.Server(uvicorn.Config(server.app, port=port, log_config=None))

    async def serve():
        calls = server.grpc_server(0)
        await calls.start()
        loops.append(calls.port)
        async with computing(server.jobs):
            serving = asyncio.create_task(http.serve())
            while not http.started:
                await asyncio.sleep(0.01)
            started.set()
            await serving
        await calls.stop(0)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    try:
        assert started.wait(PATIENCE_S)
        yield Listening(f"http://127.0.0.1:{port}", f"grpc://127.0.0.1:{loops[0]}", predictors)
    finally:
        http.should_exit = True
        thread.join(PATIENCE_S)


@pytest.fixture(scope="session")
def served():
    with listening(2, 3) as server:
        yield server


@pytest.fixture(scope="session")
def guarded():
    """A server with one model that asks for a token."""
    with listening(2, access=Access(tokens=(TOKEN,))) as server:
        yield server
