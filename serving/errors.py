"""The errors of a server that are no wrong request, for REST and gRPC alike.

    ServerFault       the prediction failed                          REST 500, INTERNAL
    Closed            an administrative route                        REST 403, PERMISSION_DENIED
    Busy              no room for one more request                   REST 429, RESOURCE_EXHAUSTED
    TooLarge          a body or an image beyond the limits           REST 413, RESOURCE_EXHAUSTED
    TooSlow           the request's time is over                     REST 504, DEADLINE_EXCEEDED
    Gone              the client went away: nobody reads the answer  REST 499, CANCELLED

All are gRPC errors, which KServe passes on as they are; `answer_error` gives the REST answer. A request that is wrong
is KServe's `InvalidInput`: REST 400, INVALID_ARGUMENT. KServe's own `InferenceError` is not used: over gRPC it says
INVALID_ARGUMENT, which blames the client.
"""

import uuid

from fastapi import Request
from fastapi.responses import JSONResponse
from grpc_interceptor.exceptions import (
    Cancelled,
    DeadlineExceeded,
    GrpcException,
    Internal,
    PermissionDenied,
    ResourceExhausted,
)


class ServerFault(Internal):
    """The prediction failed. The client gets `id`; the trace stands under it in the log."""

    http_status = 500

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex[:8]
        super().__init__(f"the prediction failed on the server (id {self.id}); the server's log tells why")


class Closed(PermissionDenied):
    """The route exists in KServe, but is not offered here."""

    http_status = 403


class Busy(ResourceExhausted):
    """The queue is full.

    Args:
        retry_after_s: Seconds until there is probably room.
    """

    http_status = 429

    def __init__(self, *, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"the server is busy and its queue is full; try again in {retry_after_s} s")
        self.args = (self.details,)  # for str(): the base class does not pass it on


class TooLarge(ResourceExhausted):
    """A body or an image is larger than this server takes."""

    http_status = 413


class TooSlow(DeadlineExceeded):
    """The request's time is over."""

    http_status = 504


class Gone(Cancelled):
    """The client went away or cancelled."""

    http_status = 499  # nginx's; no client is there to see it


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """The REST answer to any of these errors."""
    assert isinstance(error, GrpcException)
    status = getattr(error, "http_status", 500)
    headers = {"retry-after": str(error.retry_after_s)} if isinstance(error, Busy) else None
    return JSONResponse({"error": error.details}, status, headers)
