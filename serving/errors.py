"""The errors of a server, and what each is answered with, over REST and gRPC alike.

    ServerFault       the prediction failed                          REST 500, INTERNAL
    Closed            an administrative route                        REST 403, PERMISSION_DENIED
    Unknown           no token, or a wrong one                       REST 401, UNAUTHENTICATED
    Busy              no room for one more request                   REST 429, RESOURCE_EXHAUSTED
    TooLarge          a body or an image beyond the limits           REST 413, RESOURCE_EXHAUSTED
    NotAcceptable     no format that the client takes                REST 406, INVALID_ARGUMENT
    TooSlow           the request's time is over                     REST 504, DEADLINE_EXCEEDED
    Stalled           the body did not arrive in time                REST 408, DEADLINE_EXCEEDED
    Gone              the client went away: nobody reads the answer  REST 499, CANCELLED

All are gRPC errors. Those of KServe are answered beside them: `InvalidInput` is a request that is wrong (REST 400,
INVALID_ARGUMENT). KServe's own `InferenceError` is not used: over gRPC it says INVALID_ARGUMENT, which blames the
client. Whatever else is raised becomes a `ServerFault`: its text may hold paths, and stays in the log.
"""

import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastapi.exceptions import RequestValidationError
from google.protobuf.message import DecodeError
from grpc import StatusCode
from grpc_interceptor.exceptions import (
    Cancelled,
    DeadlineExceeded,
    GrpcException,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)
from kserve.errors import (
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    ServerNotLive,
    ServerNotReady,
    UnsupportedProtocol,
)
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

logger = logging.getLogger(__name__)

# Beside ours; a subclass of NotImplementedError is what KServe raises for what a model does not do.
_OTHERS: Mapping[type[Exception], tuple[int, StatusCode]] = {
    InvalidInput: (400, StatusCode.INVALID_ARGUMENT),
    DecodeError: (400, StatusCode.INVALID_ARGUMENT),  # bytes that are no message
    RequestValidationError: (400, StatusCode.INVALID_ARGUMENT),
    ModelNotFound: (404, StatusCode.NOT_FOUND),
    NotImplementedError: (404, StatusCode.UNIMPLEMENTED),
    UnsupportedProtocol: (404, StatusCode.UNIMPLEMENTED),
    ModelNotReady: (503, StatusCode.UNAVAILABLE),
    ServerNotReady: (503, StatusCode.UNAVAILABLE),
    ServerNotLive: (503, StatusCode.UNAVAILABLE),
    ClientDisconnect: (499, StatusCode.CANCELLED),  # while it sent its body; afterwards it is Gone
}
ANSWERED = (GrpcException, HTTPException, *_OTHERS)


class ServerFault(Internal):
    """The prediction failed. The client gets `id`; the trace stands under it in the log."""

    http_status = 500

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex[:8]
        super().__init__(f"the prediction failed on the server (id {self.id}); the server's log tells why")


class Closed(PermissionDenied):
    """The route exists in KServe, but is not offered here."""

    http_status = 403


class Unknown(Unauthenticated):
    """The server does not know who asks."""

    http_status = 401


class Busy(ResourceExhausted):
    """The queue is full, or the memory for bodies.

    Args:
        retry_after_s: Seconds until there is probably room.
        what: What there is no room in.
    """

    http_status = 429

    def __init__(self, *, retry_after_s: int, what: str = "its queue is full") -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"the server is busy and {what}; try again in {retry_after_s} s")
        self.args = (self.details,)  # for str(): the base class does not pass it on


class TooLarge(ResourceExhausted):
    """A body or an image is larger than this server takes."""

    http_status = 413


class NotAcceptable(InvalidArgument):
    """The answer does not come in a format that the client takes."""

    http_status = 406


class TooSlow(DeadlineExceeded):
    """The request's time is over."""

    http_status = 504


class Stalled(DeadlineExceeded):
    """The client sends its request too slowly."""

    http_status = 408


class Gone(Cancelled):
    """The client went away or cancelled."""

    http_status = 499  # nginx's; no client is there to see it


@dataclass(frozen=True)
class Answer:
    """What a client hears of an error."""

    status: int  # of HTTP
    code: StatusCode  # of gRPC
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)


def answer_to(error: Exception) -> Answer:
    """The answer to any error; one that is not listed above is logged under the id that the answer names."""
    if isinstance(error, GrpcException):
        status = getattr(error, "http_status", 500)
        return Answer(status, error.status_code, str(error.details), _headers(error))
    if isinstance(error, HTTPException):
        return Answer(error.status_code, StatusCode.UNKNOWN, str(error.detail), dict(error.headers or {}))
    for kind, (status, code) in _OTHERS.items():
        if isinstance(error, kind):
            return Answer(status, code, _words(error))
    fault = ServerFault()
    logger.error("a request failed (id %s)", fault.id, exc_info=error)
    return answer_to(fault)


def _headers(error: GrpcException) -> dict[str, str]:
    if isinstance(error, Busy):
        return {"retry-after": str(error.retry_after_s)}
    return {"www-authenticate": "Bearer"} if isinstance(error, Unknown) else {}


def _words(error: Exception) -> str:
    if isinstance(error, RequestValidationError):
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
    if isinstance(error, ClientDisconnect):
        return "the client closed the connection"
    return str(error) or "this server does not do that"
