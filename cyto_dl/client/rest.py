"""V2 over REST with binary tensors: a JSON header, and after it the bytes of the images."""

import io
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import requests
from requests.auth import AuthBase

from cyto_dl.client.patience import EndpointError, PassingError, error_of_status, patiently
from cyto_dl.client.tensors import Question, array_of
from cyto_dl.errors import ConfigError

_LENGTH = "Inference-Header-Content-Length"
_NPY, _NPZ = "application/x-npy", "application/x-npz"
_CONNECT_S = 10.0
_LONGEST_WORDS = 500  # of an answer that is not ours, as a proxy's page


class RestTransport:
    """Talks to one server over HTTP.

    Args:
        url: http:// or https://, to which /v2/... is added.
        token: Bearer token.
        timeout_s: Seconds that one call may take, with all its attempts.
    """

    def __init__(self, url: str, *, token: str | None, timeout_s: float) -> None:
        self._url, self._timeout_s = url.rstrip("/"), timeout_s
        self._session = requests.Session()
        if token:
            self._session.auth = _Bearer(token)

    def infer(self, model: str, question: Question) -> dict[str, np.ndarray]:
        """The images of the heads, C (Z) Y X."""
        body, length = _encoded(question)
        headers = {_LENGTH: str(length), "Content-Type": "application/octet-stream"}
        return _decoded(self.call("POST", f"/v2/models/{model}/infer", data=body, headers=headers))

    def metadata(self, model: str) -> dict[str, Any]:
        """What the server tells of a model."""
        return dict(_json(self.call("GET", f"/v2/models/{model}")))

    def models(self) -> list[str]:
        """The names of the models that are served."""
        return list(_json(self.call("GET", "/v1/models"))["models"])

    def document(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        """The JSON object of an answer."""
        return dict(_json(self.call(method, path, **content)))

    def predict_at(self, model: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """The images of the heads, C (Z) Y X, of a file that the server reads; or where it has written them."""
        path, headers = f"/v1/models/{model}:predict", {} if "output_uri" in document else {"Accept": _NPZ}
        answer = self.call("POST", path, json=document, headers=headers)
        if "output_uri" in document:
            return {each["name"]: each["uri"] for each in _json(answer)["outputs"]}
        with np.load(io.BytesIO(answer.content), allow_pickle=False) as arrays:
            return dict(arrays)

    def submit(self, model: str, image: np.ndarray | None, document: Mapping[str, Any]) -> dict[str, Any]:
        """What the server tells of a new job: of an image that is sent, or of one whose address is in the document."""
        path, headers = f"/v2/models/{model}/jobs", {"X-Job-Id": uuid.uuid4().hex}
        if image is None:
            return self.document("POST", path, json=document, headers=headers)
        body = io.BytesIO()
        np.save(body, image, allow_pickle=False)
        query = {name: _text(value) for name, value in document["parameters"].items()}
        query |= {"output_uri": document["output_uri"]} if "output_uri" in document else {}
        headers |= {"Content-Type": _NPY, "X-Outputs": ",".join(document["outputs"])}
        return self.document("POST", path, data=body.getvalue(), params=query, headers=headers)

    def is_ready(self, model: str) -> bool:
        """Whether a model can predict, asked once."""
        try:
            self._ask("GET", f"/v2/models/{model}/ready", time_s=_CONNECT_S)
        except PassingError as error:
            raise EndpointError(str(error)) from error
        return True

    def call(self, method: str, path: str, **content: Any) -> requests.Response:
        """The answer to a request, which is tried again where that may help."""
        return patiently(lambda left_s: self._ask(method, path, time_s=left_s, **content), timeout_s=self._timeout_s)

    def _ask(self, method: str, path: str, *, time_s: float, **content: Any) -> requests.Response:
        """The answer to one attempt."""
        start, times = time.monotonic(), (min(_CONNECT_S, time_s), time_s)
        try:
            # a redirected POST would come back as a GET: where it leads is told instead
            answer = self._session.request(method, self._url + path, timeout=times, allow_redirects=False, **content)
        except requests.exceptions.ReadTimeout as error:
            waited = time.monotonic() - start
            raise EndpointError(f"{self._url} did not answer within {waited:.0f} s. Allow more (timeout_s).") from error
        except (requests.exceptions.SSLError, requests.exceptions.InvalidURL) as error:
            raise ConfigError(f"{self._url}: {error}") from error
        except requests.exceptions.RequestException as error:
            raise PassingError(f"{self._url} cannot be reached: {_reason(error)}. Is the server running?") from error
        if answer.ok and not answer.is_redirect:
            return answer
        raise _failure(answer, self._url)


class _Bearer(AuthBase):
    """Puts a token on a request; as a header alone, an entry of ~/.netrc would replace it."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """The request with its token."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _encoded(question: Question) -> tuple[bytes, int]:
    """The body, and the length of its JSON part."""
    header: dict[str, Any] = {
        "inputs": [
            {
                "name": question.name,
                "shape": question.batch.shape,
                "datatype": question.datatype,
                "parameters": {"binary_data_size": question.batch.nbytes},
            }
        ],
        "parameters": {**question.parameters, "binary_data_output": True},
    }
    if question.heads:
        header["outputs"] = [{"name": head} for head in question.heads]
    text = json.dumps(header).encode()
    return b"".join([text, question.batch.reshape(-1).view(np.uint8).data]), len(text)


def _decoded(answer: requests.Response) -> dict[str, np.ndarray]:
    try:
        length = int(answer.headers[_LENGTH])
        header, rest = json.loads(answer.content[:length]), memoryview(answer.content)[length:]
        images = {}
        for output in header["outputs"]:
            size = output["parameters"]["binary_data_size"]
            images[output["name"]] = array_of(output["name"], output["datatype"], output["shape"], rest[:size])
            rest = rest[size:]
    except (KeyError, TypeError, ValueError) as error:
        raise EndpointError(f"{answer.url}: the answer is not one of the V2 protocol with binary tensors") from error
    return images


def _json(answer: requests.Response) -> Mapping[str, Any]:
    try:
        document = answer.json()
    except ValueError as error:
        raise ConfigError(f"{answer.url} does not answer as a server of models does. Is the address right?") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{answer.url} does not answer as a server of models does. Is the address right?")
    return document


def _failure(answer: requests.Response, where: str) -> Exception:
    try:
        said = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        said = answer.headers.get("location") or answer.text[:_LONGEST_WORDS] or answer.reason
    error = error_of_status(answer.status_code, said.rstrip("."), where=where)
    if isinstance(error, PassingError):
        seconds = answer.headers.get("retry-after", "")
        error.retry_after_s = float(seconds) if seconds.isdecimal() else None
    return error


def _text(value: Any) -> str:
    """A parameter as an address has it."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _reason(error: Exception) -> str:
    """The innermost of the errors that requests wraps: the one that the operating system gave."""
    cause: BaseException = error
    while inner := (getattr(cause, "reason", None) or (cause.args and cause.args[0])):
        if not isinstance(inner, BaseException):
            break
        cause = inner
    return str(cause.args[-1] if isinstance(cause, OSError) and cause.args else cause).rpartition(": ")[2].rstrip(".")
