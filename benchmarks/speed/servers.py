"""Servers as child processes for the benchmarks beside this file, and the bundles that ours serves."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from cyto_dl.bundle import build_predictor, document_from_config, export_bundle

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 180  # a start takes some 10 s; on a busy machine several times that


@dataclass
class Server:
    """A server's process with its workers.

    Args:
        process: That was started.
        port: For HTTP.
        grpc_port: For gRPC, where it has one.
    """

    process: psutil.Process
    port: int
    grpc_port: int
    _connection: http.client.HTTPConnection | None = field(default=None, repr=False)

    def cpu_seconds(self) -> float:
        """User and system time so far, of all its processes."""
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(each.cpu_times().user + each.cpu_times().system for each in processes)

    def reconnect(self) -> None:
        """Leave a connection that the server may have closed since it was used."""
        if self._connection:
            self._connection.close()

    def ask(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
        """The body of an answer with status 200, over one connection that is kept."""
        self._connection = self._connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        self._connection.request(method, path, body, dict(headers or {}))
        response = self._connection.getresponse()
        content = response.read()
        assert response.status == 200, (response.status, content[:300])
        return content


@contextlib.contextmanager
def started(command: Sequence[str], *, log: Path, ready: str) -> Iterator[Server]:
    """A server that is ready; it is killed at the end, with its children.

    Args:
        command: With {port} and {grpc_port} where they belong.
        log: For what it prints.
        ready: Address that answers as soon as it is ready.
    """
    port, grpc_port = free_ports(2)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [each.format(port=port, grpc_port=grpc_port) for each in command]
    with log.open("wb") as output, contextlib.ExitStack() as at_end:
        child = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=output, stderr=output)
        at_end.callback(_kill, child)
        server = Server(psutil.Process(child.pid), port, grpc_port)
        deadline = time.monotonic() + PATIENCE_S
        while not _is_ready(port, ready):
            assert child.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield server


def ours(bundle: Path, *options: str) -> list[str]:
    """The command that serves a bundle."""
    ports = ["--http_port", "{port}", "--grpc_port", "{grpc_port}"]
    return [sys.executable, "-m", "serving", "--bundle", str(bundle), *ports, *options]


def peer(name: str) -> list[str]:
    """The command that runs one of `peers`."""
    return [sys.executable, str(Path(__file__).with_name("peers.py")), name, "{port}"]


def litserve(python: str) -> list[str]:
    """The command that runs LitServe with an interpreter that has it."""
    return [python, str(Path(__file__).with_name("peer_litserve.py")), "{port}"]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def identity_bundle(folder: Path, spatial_dims: int) -> Path:
    """A bundle whose network gives its input, without preprocessing: what it costs is everything else."""
    head = {"_target_": "cyto_dl.model.heads.IdentityHead", "activation": "identity"}
    return _export(folder, spatial_dims, {"_target_": "torch.nn.Identity"}, head)


def small_bundle(folder: Path) -> Path:
    """A bundle of a small 2-D U-Net, untrained, that parts objects: a few milliseconds an image."""
    backbone = {
        "_target_": "monai.networks.nets.UNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 4,
        "channels": [4, 8],
        "strides": [2],
    }
    head = {"_target_": "cyto_dl.model.heads.InstanceHead", "in_channels": 4, "spatial_dims": 2}
    return _export(folder, 2, backbone, head)


def _export(folder: Path, spatial_dims: int, backbone: dict[str, Any], head: dict[str, Any]) -> Path:
    """A bundle of these, with random weights, that sees images in one piece."""
    reader = {"_target_": "cyto_dl.data.ReadImaged", "keys": "raw", "spatial_dims": spatial_dims}
    loss = {"_target_": "torch.nn.BCEWithLogitsLoss"}
    config = {
        "run_name": "model",
        "raw_im_channels": 1,
        "data": {"transforms": {"load": [reader], "preprocess": []}},
        "model": {
            "x_key": "raw",
            "backbone": backbone,
            "task_heads": {"image": {"head": head, "loss": loss}},
            "inference": {"roi_size": None},
        },
    }
    torch.manual_seed(0)
    weights = build_predictor(document_from_config(config)).network.state_dict()  # type: ignore[attr-defined]
    folder.mkdir()
    state = {f"network.{name}": value for name, value in weights.items()}
    torch.save({"state_dict": state, "config": config}, folder / "untrained.ckpt")
    sample = np.random.default_rng(0).integers(0, 255, (1, *[32] * spatial_dims), np.uint8)
    return export_bundle(folder / "untrained.ckpt", folder / "bundle", sample=sample)


def binary_request(image: np.ndarray, *, name: str = "raw") -> tuple[bytes, dict[str, str]]:
    """Body and headers of a V2 request for one image C (Z) Y X, with binary tensors both ways."""
    datatype = {"uint8": "UINT8", "uint16": "UINT16", "float32": "FP32"}[image.dtype.name]
    tensor = {
        "name": name,
        "shape": [1, *image.shape],
        "datatype": datatype,
        "parameters": {"binary_data_size": image.nbytes},
    }
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    return header + image.tobytes(), headers


def _is_ready(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        for each in psutil.Process(child.pid).children(recursive=True):
            each.kill()
        child.kill()
    child.wait(PATIENCE_S)
