"""KServe's gRPC server, with our refusals and observations.

    call --> may it? is there room? --> its message --> KServe's servicer --> answer, and trailing metadata
              no: nothing of the message is read

Trailing metadata say what REST says in headers: x-request-id, x-model-version, x-windows, retry-after, ...
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc import HandlerCallDetails, RpcMethodHandler
from grpc.aio import ServerInterceptor, ServicerContext
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from kserve.protocol.grpc.servicer import InferenceServicer

from serving.access import Access
from serving.errors import Busy, Stalled, answer_to
from serving.executor import Executor
from serving.limits import RETRY_AFTER_S, Buffered, Limits
from serving.telemetry.observation import Listener, Observation, begin, end, request_id

_MOST_CALLS = 100  # of one connection at a time, HTTP/2's usual bound; further ones wait at the client
_SILENCE_S = 60  # then a connection is asked whether anybody is there: a machine that vanished closes nothing
Servicer = Callable[[Any, ServicerContext], Awaitable[Any]]


class CallGuard(ServerInterceptor):
    """Refuses calls before their message is read, and tells of all of them.

    Args:
        access: Who may call what.
        executor: That has room, or not.
        limits: Of messages.
        buffered: The memory that messages take together, from when they are read.
        listener: That counts.
    """

    def __init__(
        self, access: Access, executor: Executor, limits: Limits, buffered: Buffered, listener: Listener
    ) -> None:
        self._access, self._executor, self._limits = access, executor, limits
        self._buffered, self._listener = buffered, listener
        # a message's size is known when it is there: as many are read at once as fit at their largest
        self._readers = asyncio.Semaphore(max(1, limits.buffered_bytes // limits.message_bytes))

    async def intercept_service(
        self,
        continuation: Callable[[HandlerCallDetails], Awaitable[RpcMethodHandler]],
        handler_call_details: HandlerCallDetails,
    ) -> RpcMethodHandler:
        """The handler of a call; its one message and its one answer are streams.

        Only a stream can be left unread, and only of a stream is it known when the answer was taken.
        """
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        method, servicer = handler_call_details.method.rpartition("/")[2], handler.unary_unary

        async def answer(messages: AsyncIterator[Any], context: ServicerContext) -> None:
            await self._answer(method, servicer, messages, context)

        return grpc.stream_stream_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)

    async def _answer(
        self, method: str, servicer: Servicer, messages: AsyncIterator[Any], context: ServicerContext
    ) -> None:
        headers = {key: str(value) for key, value in context.invocation_metadata() or ()}
        observed = Observation(request_id(headers), method, "grpc" if method == "ModelInfer" else "")
        begin(observed)
        code = grpc.StatusCode.CANCELLED
        try:
            self._access.check_call(method, headers)
            async with self._message(method, messages) as message:
                observed.model = getattr(message, "model_name", None)
                response = await servicer(message, context)
                context.set_trailing_metadata(tuple(observed.headers().items()))
                await context.write(response)  # until the client has taken it, it is in memory
            code = grpc.StatusCode.OK
        except Exception as error:  # noqa: BLE001  # whatever it is, the client hears a status without a trace
            told = answer_to(error)
            observed.error, code = told.message, told.code
            context.set_trailing_metadata(tuple({**observed.headers(), **told.headers}.items()))
            await context.abort(told.code, told.message)
        finally:
            end(observed, code.name, listener=self._listener)

    @asynccontextmanager
    async def _message(self, method: str, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The message of a call; that of a prediction counts as memory until it is answered."""
        if method != "ModelInfer":
            yield await anext(messages)
            return
        self._executor.check_room()
        with self._buffered.share() as share:
            message = await self._read(messages)
            share.take(message.ByteSize())
            yield message

    async def _read(self, messages: AsyncIterator[Any]) -> Any:
        try:
            await asyncio.wait_for(self._readers.acquire(), RETRY_AFTER_S)
        except TimeoutError:
            raise Busy(retry_after_s=RETRY_AFTER_S, what="reads as many messages as it has memory for") from None
        try:
            return await asyncio.wait_for(anext(messages), self._limits.timeout_s)
        except TimeoutError:
            raise Stalled(f"the message did not arrive within {self._limits.timeout_s} s") from None
        finally:
            self._readers.release()


class GrpcServer:
    """Listens on a port until it is stopped.

    Args:
        port: To listen on; 0: any.
        servicer: KServe's, around our data plane.
        guard: That sees every call first.
        limits: Of messages, and of time.
    """

    def __init__(self, port: int, servicer: InferenceServicer, guard: CallGuard, *, limits: Limits) -> None:
        options = [
            ("grpc.max_send_message_length", limits.message_bytes),
            ("grpc.max_receive_message_length", limits.message_bytes),
            # An answer that nobody takes ends only with its connection. Clients open another one by themselves, and
            # calls go on with the old one: at most as long as sending, computing and taking last.
            ("grpc.max_connection_age_ms", round(1000 * limits.timeout_s)),
            ("grpc.max_connection_age_grace_ms", round(3000 * limits.timeout_s)),
            ("grpc.max_concurrent_streams", _MOST_CALLS),
            ("grpc.keepalive_time_ms", 1000 * _SILENCE_S),
            ("grpc.keepalive_timeout_ms", 1000 * _SILENCE_S // 3),
        ]
        self._server = grpc.aio.server(interceptors=[guard], options=options)
        add_GRPCInferenceServiceServicer_to_server(servicer, self._server)
        self.port = self._server.add_insecure_port(f"[::]:{port}")

    async def start(self) -> None:
        """Listen from now on."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no further calls, and let those that there are finish."""
        await self._server.stop(grace_s)
