"""One process that serves REST and gRPC until SIGTERM.

    start: bundles are loaded and warmed up -> it listens, and is ready
    SIGTERM: it is not ready, and computes no more jobs -> after a while no further requests, over REST and gRPC at
             once -> those that there are finish -> exit code 0

KServe's ModelServer is not used: it stops gRPC only when REST is done, and unloads the models before.
"""

import asyncio
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from kserve import ModelRepository
from kserve.protocol.grpc.servicer import InferenceServicer

from serving.access import EVERYBODY, Access
from serving.executor import Executor
from serving.grpc_server import CallGuard, GrpcServer
from serving.jobs.queue import JobQueue, computing
from serving.limits import DEFAULTS, Buffered, Limits
from serving.messages.dataplane import ImageDataPlane
from serving.model import BundleModel
from serving.references.addresses import NOWHERE, Addresses
from serving.repository import Load, Repository
from serving.rest.application import add_kserves_routes, build_application
from serving.rest.http_protocol import BoundedHead
from serving.rest.job_routes import add_job_routes
from serving.rest.page import add_page
from serving.rest.routes import add_routes
from serving.telemetry.metrics import Metrics


class BundleServer:
    """Everything of a server that does not depend on its ports.

    Args:
        executor: That computes for all models.
        load: Makes a model of a bundle.
        root: Folder or s3:// prefix whose bundles may be loaded by name.
        limits: Of requests.
        access: Who may ask what.
        origins: Of pages elsewhere that may ask from a browser.
        addresses: Of files that clients may name.
        open_jobs: Makes the queue of jobs; None: there are none.
    """

    def __init__(
        self,
        executor: Executor,
        load: Load,
        *,
        root: str | None = None,
        limits: Limits = DEFAULTS,
        access: Access = EVERYBODY,
        origins: Sequence[str] = (),
        addresses: Addresses = NOWHERE,
        open_jobs: Callable[[ModelRepository], JobQueue] | None = None,
    ) -> None:
        self.limits, self.executor = limits, executor
        self.models = ModelRepository()
        self.dataplane = ImageDataPlane(self.models)
        self.repository = Repository(self.models, load, root=root)
        self.buffered = buffered = Buffered(limits.buffered_bytes)
        self.metrics = Metrics(self.models.get_models(), executor, buffered)
        self._guard = (access, executor, limits, buffered, self.metrics.count)
        self.app = build_application(access, limits, buffered, origins=origins)
        add_page(self.app, self.dataplane)
        add_routes(self.app, self.dataplane, executor, addresses)
        self.jobs = open_jobs(self.models) if open_jobs else None
        if self.jobs is not None:
            self.jobs.listener = self.metrics.count
            self.metrics.watch_jobs(self.jobs.counts)
        add_job_routes(self.app, self.dataplane, self.jobs)
        add_kserves_routes(self.app, self.dataplane, self.repository, self.metrics)

    def register_model(self, model: BundleModel) -> None:
        """Serve a model that is loaded."""
        self.models.update(model)

    def grpc_server(self, port: int) -> GrpcServer:
        """The gRPC side; to be called on the event loop."""
        servicer = InferenceServicer(self.dataplane, self.repository)
        return GrpcServer(port, servicer, CallGuard(*self._guard), limits=self.limits)

    async def serve(self, *, http_port: int, grpc_port: int, drain_s: int = 0) -> None:
        """Listen until SIGTERM or SIGINT, and then until the last request is answered.

        Args:
            http_port: Of REST.
            grpc_port: Of gRPC.
            drain_s: Seconds between SIGTERM, from when it is not ready, and its end for new requests.
        """
        calls = self.grpc_server(grpc_port)
        await calls.start()
        config = uvicorn.Config(
            self.app,
            host="0.0.0.0",
            port=http_port,
            http=BoundedHead,
            log_config=None,  # serving.telemetry.logs has set it up
            access_log=False,  # every request has a line of ours
            server_header=False,
            timeout_graceful_shutdown=self.limits.timeout_s,  # no request is longer
            timeout_keep_alive=65,  # longer than load balancers keep a connection, as in KServe
        )
        stopping = asyncio.Event()
        draining = asyncio.create_task(self._drain(calls, stopping))
        async with computing(self.jobs) as stop_jobs:

            def announce() -> int:
                self.dataplane.is_stopping = True
                stop_jobs()  # they would only slow down the requests that somebody waits for
                return drain_s

            await _Server(config, stopping, announce).serve()
        stopping.set()
        await draining

    async def _drain(self, calls: GrpcServer, stopping: asyncio.Event) -> None:
        await stopping.wait()
        await calls.stop(self.limits.timeout_s)


class _Server(uvicorn.Server):
    """uvicorn, which tells of a signal and does not raise it again: that would be another exit code.

    Args:
        config: Of uvicorn.
        stopping: Set when it takes nothing more.
        announce: Called at the first SIGTERM; says how many seconds later that is.
    """

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event, announce: Callable[[], int]) -> None:
        super().__init__(config)
        self._stopping, self._announce = stopping, announce
        self._is_announced = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for each in signals:
            loop.add_signal_handler(each, self._stop, each)
        try:
            yield
        finally:
            for each in signals:
                loop.remove_signal_handler(each)

    def _stop(self, received: int) -> None:
        if received == signal.SIGTERM and not self._is_announced:
            self._is_announced = True
            if wait_s := self._announce():
                asyncio.get_running_loop().call_later(wait_s, self._end, received)
                return
        self._end(received)  # Ctrl+C, or whoever does not want to wait

    def _end(self, received: int) -> None:
        self.handle_exit(received, None)
        self._stopping.set()
