"""`Client`: the model on a server as a function from an image to one image per head.

    Client("http://host:8080")             REST, binary tensors
    Client("grpc://host:8081", "nuclei")   gRPC

It has the methods of a `Predictor` that `cyto_dl.inference.batch` needs: what writes the files of a local model writes
those of a served one.
"""

import time
from collections.abc import Iterable, Mapping
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import numpy as np

from cyto_dl.client.jobs import RemoteJob
from cyto_dl.client.patience import EndpointError
from cyto_dl.client.tensors import Question, sendable
from cyto_dl.data.image import Image, SelectionError, read_image
from cyto_dl.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from cyto_dl.client.rest import RestTransport

_POLL_S = 1.0


class Transport(Protocol):
    """One of the two protocols that carry questions."""

    def infer(self, model: str, question: Question) -> dict[str, np.ndarray]:
        """The images of the heads, C (Z) Y X."""

    def metadata(self, model: str) -> dict[str, Any]:
        """What the server tells of a model."""

    def models(self) -> list[str]:
        """The names of the models that are served."""

    def is_ready(self, model: str) -> bool:
        """Whether a model can predict, asked once."""


class Client:
    """One model on a server. Failures that may pass are waited for, with growing pauses.

    Args:
        url: http://, https://, grpc:// or grpcs:// and the server's host and port.
        model: Its name; None: the only one that the server has.
        token: Bearer token, where the server asks for one.
        timeout_s: Seconds that a call may take, with all its attempts.

    Raises:
        ConfigError: The address is none.
    """

    def __init__(
        self, url: str, model: str | None = None, *, token: str | None = None, timeout_s: float = 600.0
    ) -> None:
        self.url, self._model, self._timeout_s = url, model, timeout_s
        self._transport = _transport(url, token=token, timeout_s=timeout_s)

    @cached_property
    def model(self) -> str:
        """The model's name on the server.

        Raises:
            ConfigError: The server has several, and none was chosen.
        """
        if self._model:
            return self._model
        names = self._transport.models()
        if len(names) != 1:
            there = f"has {', '.join(sorted(names))}" if names else "has no model"
            raise ConfigError(f"{self.url} {there}. Choose one (--model, model=).")
        return names[0]

    def metadata(self) -> dict[str, Any]:
        """What the server tells of the model now: tensors, parameters and their bounds, version; less over gRPC.

        Raises:
            EndpointError: The server cannot be reached.
            ConfigError: It has no such model, or wants another token.
        """
        return self._transport.metadata(self.model)

    def wait_until_ready(self, timeout_s: float = 300.0) -> None:
        """Return when the model can predict.

        Raises:
            EndpointError: It still cannot after `timeout_s` seconds; says why.
        """
        deadline, reason = time.monotonic() + timeout_s, "its model is not ready"
        while True:
            try:
                if self._transport.is_ready(self.model):
                    return
            except EndpointError as error:
                reason = str(error)
            if time.monotonic() + _POLL_S > deadline:
                raise EndpointError(f"{self.url} is not ready after {timeout_s:g} s: {reason}")
            time.sleep(_POLL_S)

    def predict(
        self,
        image: np.ndarray | Image | str,
        heads: Iterable[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        *,
        output_uri: str | None = None,
    ) -> dict[str, Any]:
        """One image per head, C (Z) Y X: what the bundle's `Predictor` gives for the same image.

        Args:
            image: Intensities as acquired, C (Z) Y X; without the channel axis where the model takes one channel. An
                `Image` brings its pixel size. A text is the address of a file that the server reads, as s3://...
            heads: Compute only these.
            parameters: As the metadata list them, as {"overlap": 0.5}.
            output_uri: With an address: folder where the server writes; the addresses are given instead of images.

        Raises:
            ImageError: The image is not one that the model takes, or too large.
            ConfigError: There is no such model, head or parameter, or the token is wrong.
            EndpointError: The server cannot be reached, has no room, or failed.
        """
        chosen = self._chosen(heads)
        if isinstance(image, str):
            return self._rest.predict_at(self.model, _document(image, chosen, dict(parameters or {}), output_uri))
        if output_uri is not None:
            raise ConfigError("output_uri goes with the address of an image, or with submit(...).")
        array, path, asked = _told(image, parameters)
        if "axes" in asked and "N" not in str(asked["axes"]).upper():
            asked["axes"] = f"N{asked['axes']}"
        try:
            question = Question(self.input_name, sendable(array)[None], chosen, asked)
            return self._transport.infer(self.model, question)
        except ImageError as error:
            raise ImageError(f"{path}{error}") from error

    def submit(
        self,
        image: np.ndarray | Image | str,
        heads: Iterable[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        *,
        output_uri: str | None = None,
    ) -> RemoteJob:
        """Have an image predicted without waiting for it; over HTTP, where the operator allows it.

        A question whose answer was lost is asked again, and is no second job.

        Args:
            image, heads, parameters: As of `predict`.
            output_uri: Folder where the server writes the results, of an image that is sent too.

        Raises:
            ImageError, ConfigError, EndpointError: As `predict`.
        """
        chosen = self._chosen(heads)
        if isinstance(image, str):
            return self._job(
                self._rest.submit(self.model, None, _document(image, chosen, dict(parameters or {}), output_uri))
            )
        array, path, asked = _told(image, parameters)
        try:
            told = self._rest.submit(self.model, sendable(array), _document(None, chosen, asked, output_uri))
        except ImageError as error:
            raise ImageError(f"{path}{error}") from error
        return self._job(told)

    def job(self, identity: str) -> RemoteJob:
        """A job that was submitted before, by whichever client.

        Raises:
            ConfigError: The server has no such job, or not any more.
            EndpointError: The server cannot be reached.
        """
        return self._job(self._rest.document("GET", f"/v2/models/{self.model}/jobs/{identity}"))

    @property
    def outputs(self) -> dict[str, Any]:
        """What the metadata tell of the heads, by their names."""
        return {each["name"]: each for each in self._described["outputs"]}

    @property
    def input_name(self) -> str:
        """Of the image that the model takes, in tables and over HTTP."""
        return str(self._input["name"])

    def read(self, path: str | PathLike[str]) -> Image:
        """The image of a file on this machine, or s3://, with the channels and the plane that the model takes.

        Raises:
            ImageError: The file is unreadable, or holds another kind of image.
            ConfigError: The server does not tell what it takes of a file.
        """
        told = self._input.get("parameters") or {}
        if "load" not in told:
            raise ConfigError(f"{self.url} does not tell what it takes of a file; over http:// a CytoDL server does.")
        try:
            return read_image(path, **told["load"])
        except SelectionError as error:  # it speaks of the configuration, which a server's user does not have
            takes = f"the model takes {' '.join(told['axes'][1:])} with {self._input['shape'][1]} channel(s)"
            raise ImageError(f"{path}: {error.found}; {takes}. {error.remedy}") from error

    def _chosen(self, heads: Iterable[str] | None) -> tuple[str, ...]:
        chosen = () if heads is None else tuple(heads)
        if heads is not None and not chosen:
            raise ConfigError(f"no prediction without a head. Choose among {', '.join(self.outputs)}.")
        return chosen

    def _job(self, told: Mapping[str, Any]) -> RemoteJob:
        return RemoteJob(self._rest, self.model, told, patience_s=self._timeout_s)

    @property
    def _rest(self) -> "RestTransport":
        from cyto_dl.client.rest import RestTransport

        if not isinstance(self._transport, RestTransport):
            raise ConfigError(f"{self.url}: addresses and jobs are asked for over http:// or https://, not over gRPC.")
        return self._transport

    @cached_property
    def _described(self) -> dict[str, Any]:
        """The metadata as they were at the first question."""
        return self.metadata()

    @property
    def _input(self) -> dict[str, Any]:
        described: dict[str, Any] = self._described["inputs"][0]
        return described


def _told(image: np.ndarray | Image, parameters: Mapping[str, Any] | None) -> tuple[np.ndarray, str, dict[str, Any]]:
    """An image's pixels, how messages begin about it, and the parameters with its pixel size."""
    asked = dict(parameters or {})
    if not isinstance(image, Image):
        return np.asarray(image), "", asked
    if image.spacing_um is not None:
        asked.setdefault("spacing_um", list(image.spacing_um))
    return image.array, f"{image.path}: ", asked


def _document(
    address: str | None, heads: Iterable[str], parameters: Mapping[str, Any], output_uri: str | None
) -> dict[str, Any]:
    """A request by reference, as the server reads it."""
    places = {"image_uri": address, "output_uri": output_uri}
    given = {name: value for name, value in places.items() if value is not None}
    return {**given, "outputs": list(heads), "parameters": dict(parameters)}


def _transport(url: str, *, token: str | None, timeout_s: float) -> Transport:
    parts = urlsplit(url)
    if parts.netloc and parts.scheme in ("http", "https"):
        from cyto_dl.client.rest import RestTransport

        return RestTransport(url, token=token, timeout_s=timeout_s)
    if parts.netloc and parts.scheme in ("grpc", "grpcs"):
        from cyto_dl.client.grpc_transport import GrpcTransport

        is_encrypted = parts.scheme == "grpcs"
        return GrpcTransport(parts.netloc, is_encrypted=is_encrypted, token=token, timeout_s=timeout_s)
    raise ConfigError(f"{url!r} is no address of a server: it begins with http://, https://, grpc:// or grpcs://.")
