"""`RemoteJob`: a prediction that nobody waits for with an open connection, and that outlives server and client.

    submit -> id -> wait, however often client and server are started anew -> result

The id is drawn here and goes with the question: when the answer is lost, the question is asked again, and the server
finds the job that it has already.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyto_dl.client.patience import EndpointError
from cyto_dl.data.formats import FileInMemory
from cyto_dl.data.image import read_image
from cyto_dl.errors import ImageError
from cyto_dl.storage import atomic_path

if TYPE_CHECKING:
    from cyto_dl.client.rest import RestTransport

UNFINISHED = ("queued", "running")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


class RemoteJob:
    """A job on a server, as it was when the server was asked last.

    Args:
        transport: To the server.
        model: Name.
        told: What the server has told of the job.
        patience_s: Seconds for which `wait` bears with a server that is away: it may be started anew.
    """

    def __init__(self, transport: "RestTransport", model: str, told: Mapping[str, Any], *, patience_s: float) -> None:
        self._transport, self._model, self._told, self._patience_s = transport, model, told, patience_s

    @property
    def id(self) -> str:
        """With it `Client.job` takes up the job again, in another process too."""
        return str(self._told["id"])

    @property
    def state(self) -> str:
        """queued, running, succeeded, failed or cancelled."""
        return str(self._told["state"])

    @property
    def progress(self) -> tuple[int, int | None]:
        """Windows that are done, and all of them; None until the server knows."""
        return self._told["progress"]["windows"], self._told["progress"]["of"]

    def refresh(self) -> "RemoteJob":
        """Ask the server how far the job is; the same job.

        Raises:
            EndpointError: The server cannot be reached.
            ConfigError: It has no such job any more.
        """
        self._told = self._transport.document("GET", self._path)
        return self

    def wait(self, *, progress: bool = True) -> "RemoteJob":
        """Return when the job has ended, in whichever way; the same job.

        Args:
            progress: Show a bar of the windows on stderr.

        Raises:
            EndpointError: The server was away for longer than the client's `timeout_s`.
            ConfigError: It has no such job any more.
        """
        from rich.console import Console
        from rich.progress import Progress

        pause_s, heard = _FIRST_PAUSE_S, time.monotonic()
        with Progress(console=Console(stderr=True), disable=not progress) as bar:
            task = bar.add_task(f"job {self.id[:8]} {self.state}", total=None)
            while True:
                try:
                    self.refresh()
                    heard = time.monotonic()
                except EndpointError:
                    if time.monotonic() - heard > self._patience_s:
                        raise
                done, of = self.progress
                bar.update(task, description=f"job {self.id[:8]} {self.state}", completed=done, total=of)
                if self.state not in UNFINISHED:
                    return self
                time.sleep(pause_s)
                pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)

    def result(self, *, progress: bool = False) -> dict[str, Any]:
        """Wait, and give one image per head, C (Z) Y X; or its address, where `output_uri` was given.

        Raises:
            ImageError: The job failed, in the server's words, or was cancelled.
            EndpointError, ConfigError: As `wait`.
        """
        return {each["name"]: self._fetched(each) for each in self._outputs(progress)}

    def save(self, folder: str, name: str, *, progress: bool = False) -> dict[str, str]:
        """Wait, and keep the results as FOLDER/HEAD/NAME.ome.tif with their pixel size; head -> path.

        Of a job with `output_uri` nothing is kept here: the addresses are given.

        Raises:
            ImageError, EndpointError, ConfigError: As `result`.
        """
        places = {}
        for each in self._outputs(progress):
            head, uri = str(each["name"]), str(each["uri"])
            places[head] = str(Path(folder) / head / f"{name}.ome.tif") if self._is_here(uri) else uri
            if self._is_here(uri):
                with atomic_path(Path(places[head])) as temporary:
                    temporary.write_bytes(self._transport.call("GET", uri).content)
        return places

    def _outputs(self, progress: bool) -> list[dict[str, Any]]:
        """What the server tells of the results, once they are there."""
        self.wait(progress=progress)
        if self.state != "succeeded":
            reason = self._told.get("error") or "somebody has cancelled it"
            raise ImageError(f"the job {self.id} {'failed' if self.state == 'failed' else 'ended'}: {reason}.")
        return list(self._told["outputs"])

    def cancel(self) -> None:
        """Stop the job; one that has ended is forgotten, with the results that the server keeps.

        Raises:
            EndpointError: The server cannot be reached.
            ConfigError: It has no such job.
        """
        self._told = self._transport.document("DELETE", self._path)

    def __repr__(self) -> str:
        """Its id and state."""
        return f"RemoteJob({self.id!r}, {self.state})"

    @property
    def _path(self) -> str:
        return f"/v2/models/{self._model}/jobs/{self.id}"

    def _is_here(self, uri: str) -> bool:
        """Whether the server keeps a result for its client to fetch."""
        return uri.startswith(f"{self._path}/")

    def _fetched(self, output: Mapping[str, Any]) -> "np.ndarray | str":
        uri = str(output["uri"])
        if not self._is_here(uri):
            return uri
        shape = output["shape"]
        content = self._transport.call("GET", uri).content
        file = FileInMemory(content, f"{output['name']}.ome.tif", max_values=math.prod(shape))
        return read_image(file, spatial_dims=len(shape) - 1).array
