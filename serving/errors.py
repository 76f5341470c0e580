"""The errors that are not the client's fault or not its business, for REST and gRPC alike.

    ServerFault   the prediction failed         REST 500, INTERNAL
    Closed        an administrative route       REST 403, PERMISSION_DENIED

Both are gRPC errors, which KServe passes on as they are; `answer_error` gives the REST answer. A request that is wrong
is KServe's `InvalidInput`: REST 400, INVALID_ARGUMENT. KServe's own `InferenceError` is not used: over gRPC it says
INVALID_ARGUMENT, which blames the client.
"""

import uuid
from http import HTTPStatus

from fastapi import Request
from fastapi.responses import JSONResponse
from grpc_interceptor.exceptions import Internal, PermissionDenied


class ServerFault(Internal):
    """The prediction failed. The client gets `id`; the trace stands under it in the log."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex[:8]
        super().__init__(f"the prediction failed on the server (id {self.id}); the server's log tells why")


class Closed(PermissionDenied):
    """The route exists in KServe, but is not offered here."""


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """The REST answer to a `ServerFault` or `Closed`."""
    assert isinstance(error, ServerFault | Closed)
    status = HTTPStatus.FORBIDDEN if isinstance(error, Closed) else HTTPStatus.INTERNAL_SERVER_ERROR
    return JSONResponse({"error": error.details}, status)
