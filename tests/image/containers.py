"""Containers of one image as a careful cluster runs them: read-only, without rights, under a user id of its choice."""

import io
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from tests.serving.wire import npy

ROOT = Path(__file__).parents[2]
PATIENCE_S = 600  # a training of a tiny network takes 20 s; on a busy machine many times that
USER = "12345:0"  # what OpenShift does: an id that the image does not know, in group 0


def ask(address: str, model: str, head: str, picture: np.ndarray) -> np.ndarray:
    """What a server of `model` answers for one head and an array C (Z) Y X: the same axes."""
    response = httpx.post(
        f"{address}/v1/models/{model}:predict",
        content=npy(picture),
        headers={"Content-Type": "application/x-npy", "X-Outputs": head},
        timeout=PATIENCE_S,
    )
    assert response.status_code == 200, response.text
    return np.load(io.BytesIO(response.content), allow_pickle=False)


@dataclass(frozen=True)
class Image:
    """An image of this machine, by the name of its engine's command, docker or podman, and by its own."""

    engine: str
    name: str

    def inspect(self, template: str) -> str:
        """A property of the image, by a template of Go, e.g. {{.Size}}."""
        return self._call("image", "inspect", "--format", template, self.name).stdout.strip()

    def run(self, *command: str | Path, folder: Path | None = None) -> str:
        """What a command prints in a container without a network that sees `folder`; it has to succeed."""
        volume = [] if folder is None else ["--volume", f"{folder}:{folder}:z"]
        return self._call("run", "--rm", "--network=none", *self._restrictions(), *volume, self.name, *command).stdout

    def open_to_all(self, folder: Path) -> None:
        """Let this process remove what containers wrote under other user ids."""
        options = ("--rm", "--network=none", "--user=0", "--volume", f"{folder}:{folder}:z")
        self._call("run", *options, self.name, "chmod", "-R", "a+rwX", folder)

    @contextmanager
    def server(self, bundle: Path, *command: str, model: str) -> Iterator[str]:
        """The address of a server of `bundle`, when it is ready; it has to end well when it is asked to.

        Args:
            bundle: Folder on this machine.
            command: What runs; by default what the image says.
            model: Name by which the server knows the bundle.
        """
        options = ("--detach", "--publish=127.0.0.1::8080", "--volume", f"{bundle}:/mnt/models:ro,z")
        container = self._call("run", *options, *self._restrictions(), self.name, *command).stdout.strip()
        try:
            port = self._call("port", container, "8080/tcp").stdout.split(":")[-1].strip()
            self._wait_for(container, f"http://127.0.0.1:{port}/v2/models/{model}/ready")
            yield f"http://127.0.0.1:{port}"
            self._call("stop", "--time=120", container)
            assert self._call("inspect", "--format={{.State.ExitCode}}", container).stdout.strip() == "0"
        finally:
            self._call("rm", "--force", container)

    def _wait_for(self, container: str, address: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            running = self._call("inspect", "--format={{.State.Running}}", container).stdout.strip()
            assert running == "true", self._log(container)
            try:
                if httpx.get(address, timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        raise AssertionError(f"not ready after {PATIENCE_S} s:\n{self._log(container)}")

    def _log(self, container: str) -> str:
        ended = self._call("logs", container)
        return ended.stdout + ended.stderr

    def _restrictions(self) -> Sequence[str]:
        # podman would make /run, /var/tmp and more writable in a read-only container; Kubernetes does not
        strict = ["--read-only-tmpfs=false"] if Path(self.engine).name == "podman" else []
        rights = [f"--user={USER}", "--cap-drop=all", "--security-opt=no-new-privileges"]
        return ["--read-only", *strict, "--tmpfs=/tmp", *rights, "--env=OMP_NUM_THREADS=1"]

    def _call(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run([self.engine, *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert ended.returncode == 0, f"{words}: exit code {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        return ended
