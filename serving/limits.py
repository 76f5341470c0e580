"""How much one client may send, and how much all of them together: memory is bounded before it is taken.

    head of a request --> larger than body_bytes: 413, nothing is read
    each part of its body --> more than it said, or than body_bytes: 413
                          --> all bodies together beyond buffered_bytes: 429, and what it sent is forgotten
    its body not complete in time: 408
    its answer not taken in time: the connection is closed

A body counts until its request is answered: until then the image is a view of it. So does a large answer until it is
taken.
"""

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import Busy, Stalled, TooLarge, answer_to
from serving.telemetry.observation import observation

MIB = 2**20
_PART_BYTES = MIB  # of an answer: uvicorn waits for a client only between two parts, and keeps all of one
RETRY_AFTER_S = 5  # an upload that holds memory is over by then, or a prediction


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Args:
        body_bytes: Of one request over REST.
        message_bytes: Of one message over gRPC, in either direction.
        buffered_bytes: Of all requests that are being received and answered, together.
        voxels: Of the images of one request, channels included.
        timeout_s: Seconds that sending a body, and then answering it, may take.
    """

    body_bytes: int = 256 * MIB
    message_bytes: int = 256 * MIB
    buffered_bytes: int = 1024 * MIB
    voxels: int = 256 * 10**6
    timeout_s: int = 300

    def check_voxels(self, shape: Sequence[int], *, name: str) -> None:
        """Refuse an image by its shape, before anything of it is converted.

        Raises:
            TooLarge: It has too many voxels.
        """
        count = math.prod(shape)
        if count > self.voxels:
            raise TooLarge(
                f"{name}: shape {list(shape)} has {count} voxels, and this server takes up to {self.voxels} in a "
                "request. Cut the image, or ask the operator."
            )


DEFAULTS = Limits()


class Buffered:
    """The memory that bodies take at the moment; changed on the event loop only."""

    def __init__(self, limit: int) -> None:
        self.limit, self.num_bytes = limit, 0

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """A request's part of it, given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self.num_bytes -= share.num_bytes


class Share:
    """What one request takes."""

    def __init__(self, buffered: Buffered) -> None:
        self._all, self.num_bytes = buffered, 0

    def take(self, num_bytes: int) -> None:
        """Count bytes that came.

        Raises:
            TooLarge: This request alone takes too much.
            Busy: All requests together do.
        """
        if self.num_bytes + num_bytes > self._all.limit:
            raise TooLarge(f"this server has memory for {self._all.limit} bytes of requests, and this one has more")
        if self._all.num_bytes + num_bytes > self._all.limit:
            raise Busy(retry_after_s=RETRY_AFTER_S, what="has no memory left for this request")
        self.num_bytes += num_bytes
        self._all.num_bytes += num_bytes

    @contextmanager
    def holding(self, num_bytes: int) -> Iterator[None]:
        """Count an answer, which is there already; further requests have to wait for it."""
        self.num_bytes += num_bytes
        self._all.num_bytes += num_bytes
        try:
            yield
        finally:
            self.num_bytes -= num_bytes
            self._all.num_bytes -= num_bytes


class BodyLimit:
    """ASGI middleware that keeps requests within `Limits`.

    What still comes of a refused body is read and forgotten, so that its sender hears the answer.
    """

    def __init__(self, app: ASGIApp, limits: Limits, buffered: Buffered) -> None:
        self._app, self._limits, self._buffered = app, limits, buffered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with a `receive` that counts."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "").lstrip("0")  # int() takes no thousands of digits
        if length.isdigit() and int(length) > self._limits.body_bytes:
            await refuse(self._too_large(int(length)), scope, receive, send)
            return
        with self._buffered.share() as share:
            await self._app(scope, self._counting(receive, share), self._within_time(send, share))

    def _counting(self, receive: Receive, share: Share) -> Receive:
        deadline = asyncio.get_running_loop().time() + self._limits.timeout_s
        is_complete = False

        async def counted() -> Message:
            nonlocal is_complete
            if is_complete:  # what comes now is that the client goes away, whenever
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise Stalled(f"the body did not arrive within {self._limits.timeout_s} s") from None
            share.take(len(message.get("body", b"")))
            if share.num_bytes > self._limits.body_bytes:
                raise self._too_large()
            is_complete = not message.get("more_body", False)
            return message

        return counted

    def _within_time(self, send: Send, share: Share) -> Send:
        deadline: float | None = None  # of the whole answer, from its head on

        async def sent_part(message: Message) -> None:
            nonlocal deadline
            deadline = deadline or asyncio.get_running_loop().time() + self._limits.timeout_s
            try:
                async with asyncio.timeout_at(deadline):
                    await send(message)
            except TimeoutError:
                raise Stalled(f"the client did not take its answer within {self._limits.timeout_s} s") from None

        async def sent(message: Message) -> None:
            body = message.get("body", b"")
            if len(body) <= _PART_BYTES:
                await sent_part(message)
                return
            with share.holding(len(body)):
                for start in range(0, len(body), _PART_BYTES):
                    part = memoryview(body)[start : start + _PART_BYTES]
                    await sent_part({**message, "body": part, "more_body": True})
                await sent_part({**message, "body": b""})

        return sent

    def _too_large(self, num_bytes: int | None = None) -> TooLarge:
        sent = "is larger than that" if num_bytes is None else f"has {num_bytes}"
        return TooLarge(
            f"this server takes bodies up to {self._limits.body_bytes} bytes, and this one {sent}. Send the image with "
            "the numbers that the camera gave, in binary rather than JSON, or in parts."
        )


async def refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with an error."""
    answer = answer_to(error)
    observation().error = answer.message
    await JSONResponse({"error": answer.message}, answer.status, dict(answer.headers))(scope, receive, send)
