"""V2 over gRPC, for whom `pip install 'cyto-dl[grpc]'`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cyto_dl.client.patience import EndpointError, PassingError, error_of_status, patiently
from cyto_dl.client.tensors import Question, array_of
from cyto_dl.client.v2_messages import SERVICE, message_classes
from cyto_dl.errors import ConfigError

try:
    import grpc
except ImportError as error:
    raise ConfigError("grpc:// needs grpcio: pip install 'cyto-dl[grpc]'; or ask over http://") from error

_READY_S = 10.0
_MESSAGES = message_classes()
# As HTTP would say it.
_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNIMPLEMENTED: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 413,  # 429 with the metadata retry-after
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


class GrpcTransport:
    """Talks to one server over gRPC.

    Args:
        address: HOST:PORT.
        is_encrypted: grpcs:// instead of grpc://.
        token: Bearer token.
        timeout_s: Seconds that one call may take, with all its attempts.
    """

    def __init__(self, address: str, *, is_encrypted: bool, token: str | None, timeout_s: float) -> None:
        self._address, self._timeout_s = address, timeout_s
        self._headers = [("authorization", f"Bearer {token}")] if token else []
        # the server has limits of its own, and says so
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        if is_encrypted:
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(), options)
        else:
            self._channel = grpc.insecure_channel(address, options)

    def infer(self, model: str, question: Question) -> dict[str, np.ndarray]:
        """The images of the heads, C (Z) Y X."""
        tensor = {"name": question.name, "datatype": question.datatype, "shape": question.batch.shape}
        answer = self._patiently(
            "ModelInfer",
            model_name=model,
            parameters={name: _parameter(value) for name, value in question.parameters.items()},
            inputs=[tensor],
            outputs=[{"name": head} for head in question.heads],
            raw_input_contents=[question.batch.tobytes()],
        )
        pairs = zip(answer.outputs, answer.raw_output_contents, strict=True)
        return {each.name: array_of(each.name, each.datatype, each.shape, content) for each, content in pairs}

    def metadata(self, model: str) -> dict[str, Any]:
        """Names, datatypes and shapes: gRPC has no place for more."""
        answer = self._patiently("ModelMetadata", name=model)
        return {
            "name": answer.name,
            "platform": answer.platform,
            "inputs": [_described(each) for each in answer.inputs],
            "outputs": [_described(each) for each in answer.outputs],
        }

    def models(self) -> list[str]:
        """Cannot be asked over gRPC.

        Raises:
            ConfigError: Always; says what to do.
        """
        raise ConfigError(f"grpc://{self._address}: over gRPC a model must be named: Client(url, model='NAME').")

    def is_ready(self, model: str) -> bool:
        """Whether a model can predict, asked once."""
        try:
            return bool(self._ask("ModelReady", _READY_S, name=model).ready)
        except PassingError as error:
            raise EndpointError(str(error)) from error

    def _patiently(self, method: str, **content: Any) -> Any:
        return patiently(lambda left_s: self._ask(method, left_s, **content), timeout_s=self._timeout_s)

    def _ask(self, method: str, time_s: float, **content: Any) -> Any:
        """The answer to one attempt."""
        call = self._channel.unary_unary(
            f"{SERVICE}/{method}",
            request_serializer=_MESSAGES[f"{method}Request"].SerializeToString,
            response_deserializer=_MESSAGES[f"{method}Response"].FromString,
        )
        message = _MESSAGES[f"{method}Request"](**content)
        try:
            return call(message, timeout=time_s, metadata=self._headers)
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def _failure(self, error: Any) -> Exception:
        trailing: Mapping[str, str] = dict(error.trailing_metadata() or ())
        status, wait = _STATUS.get(error.code(), 500), trailing.get("retry-after", "")
        if status == 413 and wait:
            status = 429
        failure = error_of_status(status, str(error.details()).rstrip("."), where=f"grpc://{self._address}")
        if isinstance(failure, PassingError):
            failure.retry_after_s = float(wait) if wait.isdecimal() else None
        return failure


def _parameter(value: Any) -> dict[str, Any]:
    """A value as the protocol has it: without fractions, which go as text."""
    if isinstance(value, bool):
        return {"bool_param": value}
    if isinstance(value, int):
        return {"int64_param": value}
    return {"string_param": ",".join(map(repr, value)) if isinstance(value, list | tuple) else str(value)}


def _described(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
