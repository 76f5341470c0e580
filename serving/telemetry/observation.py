"""One request as the log, the metrics and the headers of its answer tell of it.

    REST middleware or gRPC interceptor --begins--> Observation --ends--> metrics, one line in the log
                                                        ^
                             who works on the request notes what it finds: `observation()`

The observation of the request at hand is a context variable: the model does not know which protocol it serves.
"""

import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

logger = logging.getLogger("serving.request")

JOB = "job"  # the protocol of what is computed when nobody waits

_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")  # what else comes could forge lines of a log
_CURRENT: ContextVar["Observation | None"] = ContextVar("observation", default=None)


class Progress(Protocol):
    """What of `serving.executor.Work` is told."""

    num_windows: int
    network_s: float
    waited_s: float


@dataclass(eq=False)
class Observation:
    """A request while it is answered.

    Args:
        id: Of the client (X-Request-Id), or made here.
        what: Method and path, or gRPC method.
        protocol: v1, v2, grpc or job for a prediction; "" for every other request.
        model: Name in the address; None until it is known.
    """

    id: str
    what: str
    protocol: str = ""
    model: str | None = None
    status: str = ""
    error: str = ""
    num_voxels: int = 0
    work: Progress | None = None
    version: str = ""  # of the bundle
    drift: str = ""  # what is unusual, in words
    drift_scores: Mapping[str, float] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self.begun

    def headers(self) -> dict[str, str]:
        """What the answer's headers, or its trailing metadata, say of the request."""
        found = {"x-request-id": self.id}
        if self.version:
            found["x-model-version"] = self.version
        if self.work is not None:
            found["x-windows"] = str(self.work.num_windows)
            found["x-seconds"] = f"{self.elapsed_s:.3f}"
            found["x-waited-seconds"] = f"{self.work.waited_s:.3f}"
        if self.drift:
            found["x-drift"] = self.drift
        return found

    def fields(self) -> dict[str, str | int | float]:
        """What the log says of the request."""
        found: dict[str, str | int | float] = {"request": self.what, "status": self.status}
        if self.protocol:
            found |= {"model": self.model or "", "version": self.version, "protocol": self.protocol}
        found["seconds"] = round(self.elapsed_s, 3)
        if self.work is not None:
            found |= {
                "waited": round(self.work.waited_s, 3),
                "network": round(self.work.network_s, 3),
                "windows": self.work.num_windows,
                "voxels": self.num_voxels,
            }
        extra = {"drift": self.drift, "error": self.error}
        return found | {name: value for name, value in extra.items() if value}


Listener = Callable[[Observation], None]


def request_id(headers: Mapping[str, str]) -> str:
    """The id that the client gave, where it is one; else a new one."""
    given = headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


def observation() -> Observation:
    """The observation of the request at hand; one that nobody reads where there is none, as in a test of a model."""
    return _CURRENT.get() or Observation("", "")


def begin(observed: Observation) -> None:
    """From here on, in this context and those that are copied from it, this is the request at hand."""
    _CURRENT.set(observed)


def end(observed: Observation, status: str, *, listener: Listener) -> None:
    """Tell the metrics and the log; predictions and faults at INFO and above, probes and the like at DEBUG."""
    observed.status = status
    listener(observed)
    is_refused = bool(observed.error) or status.startswith(("4", "5"))
    level = logging.WARNING if is_refused else logging.INFO if observed.protocol else logging.DEBUG
    logger.log(level, "%s", "request", extra={"fields": observed.fields(), "request_id": observed.id})
