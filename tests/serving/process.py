"""`python -m serving` as a process of its own, on loopback ports."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
PATIENCE_S = 180  # a start takes some 10 s; on a busy machine several times that


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen
    http_port: int
    grpc_port: int
    log: Path

    def call(self, method, path, **content):
        return httpx.request(method, f"http://127.0.0.1:{self.http_port}{path}", timeout=PATIENCE_S, **content)


def free_ports(count):
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def started(bundle, log, *, allow=None, code="", arguments=()):
    """The server's process, which may not be ready yet; it is killed at the end if it still runs.

    Args:
        bundle: The bundle's folder.
        log: File for what the process prints.
        allow: Dotted name of code that the bundle may use.
        code: Folder where that code is.
        arguments: Further words of the command line.
    """
    http_port, grpc_port = free_ports(2)
    command = [sys.executable, "-m", "serving", "--bundle", bundle, *arguments]
    command += ["--allow-target", allow] if allow else []
    command += ["--http_port", str(http_port), "--grpc_port", str(grpc_port)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{code}"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        try:
            yield Server(process, http_port, grpc_port, log)
        finally:
            process.kill()
            process.wait(PATIENCE_S)


def wait_until_ready(server, name):
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert server.process.poll() is None, server.log.read_text()
        try:
            if server.call("GET", f"/v2/models/{name}/ready").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"not ready after {PATIENCE_S} s: {server.log.read_text()}")
