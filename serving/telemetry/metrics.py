"""What Prometheus reads at /metrics: requests, waiting, the network's time, windows, voxels, drift, and which models.

KServe's four histograms are left out: their last bucket is 10 s, and what they call prediction contains the waiting.
Every server has a registry of its own; the names of models are those that it serves, never what a client wrote.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from fastapi import Request, Response
from kserve import Model
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    exposition,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.executor import Executor
from serving.telemetry.observation import JOB, Observation

if TYPE_CHECKING:
    from serving.limits import Buffered

# Seconds. A small image on a GPU takes 20 ms, a volume on a CPU minutes.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, float("inf"))
_SUCCESS = ("200", "OK", "succeeded")  # of REST, gRPC and jobs
# A quantity's distance from the training data in units of its threshold: beyond 1 a request is unusual.
SCORES = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 4, float("inf"))


class Metrics:
    """Counts what happens in one server.

    Args:
        models: Name -> model, as they are served at the time of reading.
        executor: That computes.
        buffered: The memory that bodies take.
    """

    def __init__(self, models: Mapping[str, Model], executor: Executor, buffered: "Buffered") -> None:
        self._models = models
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        registry.register(_Models(models))
        per_request, per_model = ["model", "protocol"], ["model"]
        self._requests = Counter(
            "cyto_dl_requests", "Predictions asked for.", [*per_request, "status"], registry=registry
        )
        self._seconds = Histogram(
            "cyto_dl_request_seconds", "From a request's head to its answer, a job's waiting included.",
            [*per_request, "status"], registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self._waited = Histogram(
            "cyto_dl_wait_seconds", "Until a thread took the request; jobs have a thread of their own.", per_model,
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self._network = Histogram(
            "cyto_dl_network_seconds", "The request's share of the network's time.", per_model, registry=registry,
            buckets=SECONDS,
        )  # fmt: skip
        self._windows = Counter("cyto_dl_windows", "Windows that the network saw.", per_model, registry=registry)
        self._voxels = Counter("cyto_dl_voxels", "Voxels of images that were predicted.", per_model, registry=registry)
        self._drift = Histogram(
            "cyto_dl_drift_score", "Distance of images from the training data; beyond 1 it is unusual.",
            ["model", "quantity"], registry=registry, buckets=SCORES,
        )  # fmt: skip
        for name, meaning, value in (
            ("running", "Requests that are computed.", lambda: min(executor.num_admitted, executor.max_running)),
            ("waiting", "Requests that wait.", lambda: max(0, executor.num_admitted - executor.max_running)),
            ("buffered_bytes", "Memory that the bodies of requests take.", lambda: buffered.num_bytes),
        ):
            Gauge(f"cyto_dl_{name}", meaning, registry=registry).set_function(value)

    def count(self, observed: Observation) -> None:
        """Count a request that is answered; what is no prediction is not counted."""
        if not observed.protocol:
            return
        # one that has a version was there when the request came, and may be unloaded by now
        model = (observed.model or "") if observed.version or observed.model in self._models else ""
        self._requests.labels(model, observed.protocol, observed.status).inc()
        self._seconds.labels(model, observed.protocol, observed.status).observe(observed.elapsed_s)
        if observed.work is not None and model:
            if observed.protocol != JOB:
                self._waited.labels(model).observe(observed.work.waited_s)
            self._network.labels(model).observe(observed.work.network_s)
            self._windows.labels(model).inc(observed.work.num_windows)
            if observed.status in _SUCCESS:
                self._voxels.labels(model).inc(observed.num_voxels)
        for quantity, score in observed.drift_scores.items():
            self._drift.labels(model, quantity).observe(score)

    def watch_jobs(self, counts: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Tell how many jobs there are of each model and state; `count` is told of those that end."""
        self.registry.register(_Jobs(counts))

    async def answer(self, request: Request) -> Response:
        """The answer to GET /metrics."""
        encode, content_type = exposition.choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self.registry), headers={"content-type": content_type})


class _Models(Collector):
    """One line per model that is served now."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Name, version, hash, engine and device of every model."""
        info = GaugeMetricFamily(
            "cyto_dl_model_info",
            "Models that are served.",
            labels=["model", "version", "sha256", "engine", "device"],
        )
        for name, model in list(self._models.items()):
            identity = model.identity
            info.add_metric([name, identity.version, identity.sha256, identity.engine, identity.device], 1)
        yield info


class _Jobs(Collector):
    """The jobs that are kept now."""

    def __init__(self, counts: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """How many there are of each model and state."""
        found = GaugeMetricFamily("cyto_dl_jobs", "Jobs that are kept, by their state.", labels=["model", "state"])
        for labels, number in self._counts().items():
            found.add_metric(labels, number)
        yield found
