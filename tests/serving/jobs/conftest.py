"""A server that takes jobs, and how tests follow them."""

import asyncio
import contextlib
import dataclasses
import threading

import pytest

from serving.executor import Executor
from serving.identity import Identity
from serving.jobs.folder import JobFolder
from serving.jobs.queue import JobQueue, computing
from serving.limits import DEFAULTS
from serving.model import BundleModel
from serving.references.addresses import Addresses
from serving.server import BundleServer
from tests.serving.conftest import client_of, make_predictor

JOBS = "/v2/models/cells/jobs"
PATIENCE_S = 60


class HeldNetwork:
    """A network that waits before every batch until it is let go."""

    def __init__(self, network):
        self._network, self.entered, self.released = network, threading.Semaphore(0), threading.Event()

    @property
    def heads(self):
        return self._network.heads

    def only(self, heads):
        return self

    def __call__(self, windows):
        self.entered.release()
        assert self.released.wait(PATIENCE_S)
        return self._network(windows)


@pytest.fixture(params=[2, 3])
def dims(request):
    return request.param


@pytest.fixture
def serve(tmp_path):
    """Makes a server whose jobs lie in a folder, with the bundle `cells`; again and again in the same one."""

    def make(dims=2, *, network=None, metadata=None, serves=True, **settings):
        executor = Executor(max_running=2, max_waiting=2)
        addresses = Addresses((str(tmp_path),), (str(tmp_path / "out"),))

        def open_jobs(models):
            return JobQueue(JobFolder(tmp_path / "jobs"), models, limits=DEFAULTS, addresses=addresses, **settings)

        server = BundleServer(executor, load=None, addresses=addresses, open_jobs=open_jobs)
        predictor = make_predictor(dims)
        if network is not None:
            predictor = dataclasses.replace(predictor, network=network, metadata=metadata or {})
        if serves:
            server.register_model(BundleModel("cells", predictor, executor, identity=Identity("0123456789abcdef")))
        return server

    return make


async def until(client, location, *states):
    async with asyncio.timeout(PATIENCE_S):
        while (job := (await client.get(location)).json())["state"] not in states:
            await asyncio.sleep(0.01)
    return job


@contextlib.asynccontextmanager
async def running(server):
    async with client_of(server) as client, computing(server.jobs):
        yield client
