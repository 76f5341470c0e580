"""Servers as processes of their own: started, waited for, and always stopped."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
PATIENCE_S = 180  # MLflow's first start takes 10 to 30 s; on a busy machine several times that

# What a developer's shell holds must neither help nor break a test. Byte code makes the second start fast.
_REMOVED = ("MLFLOW_", "AWS_", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH")


def environment(**values: str) -> dict[str, str]:
    """The environment of a process: this one's, without what concerns servers, and with `values`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_REMOVED)}
    return kept | {"OMP_NUM_THREADS": "1"} | values


def run(
    command: Sequence[str | Path], *, cwd: Path = ROOT, values: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; what it printed is in the result."""
    given = environment(**(values or {}))
    return subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, timeout=600, check=False)


@contextmanager
def started(
    command: Sequence[str | Path], *, log: Path, values: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server and the processes that it starts; all of them are killed at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=log.parent, env=environment(**(values or {})), stdout=output, stderr=output, process_group=0
        )
        try:
            yield process
        finally:
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a server and the processes that it started, as a power cut does."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)


def wait_for(url: str, process: subprocess.Popen[bytes], *, log: Path, is_up: Callable[[int], bool]) -> None:
    """Wait until the server answers with a status that pleases `is_up`."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server of {url} ended by itself:\n{log.read_text()}"
        try:
            if is_up(httpx.get(url, timeout=5).status_code):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{url} does not answer after {PATIENCE_S} s:\n{log.read_text()}")
