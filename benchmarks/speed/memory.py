"""What the server's memory does over 1,000 mixed requests: RssAnon after them and after the first 100.

    OMP_NUM_THREADS=1 python benchmarks/speed/memory.py

A small U-Net is asked in turn by V2 binary, V2 JSON, gRPC and V1 .npy, with images of several sizes, by eight
clients at once; each tenth request is wrong, and is refused. RssAnon (/proc/PID/status) is what the process holds
beyond files that are mapped. Writes benchmarks/speed/results/memory.json.
"""

import argparse
import http.client
import io
import itertools
import json
import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from benchmarks.results import write_result
from benchmarks.speed.servers import PATIENCE_S, Server, binary_request, ours, small_bundle, started

RESULT = Path(__file__).parent / "results" / "memory.json"
TARGET_RATIO = 1.05
SIDES = (64, 128, 256)  # of the images
CLIENTS = 8
PREDICT, INFER = "/v1/models/model:predict", "/v2/models/model/infer"


def rss_anon_mb(pid: int) -> float:
    """Anonymous memory of a process."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def ask(server: Server, number: int) -> int:
    """One request of the mix; its HTTP status."""
    side = SIDES[number % len(SIDES)]
    image = np.random.default_rng(number).integers(0, 255, (1, side, side), np.uint8)
    kind = number % 4
    if number % 10 == 9:
        return _post(server, INFER, b'{"inputs": [{"name": "nonsense"}]}', {"Content-Type": "application/json"})
    if kind == 0:
        return _post(server, INFER, *binary_request(image))
    if kind == 1:
        tensor = {"name": "raw", "shape": [1, *image.shape], "datatype": "UINT8", "data": image.ravel().tolist()}
        return _post(server, INFER, json.dumps({"inputs": [tensor]}).encode(), {"Content-Type": "application/json"})
    if kind == 2:
        return _call(server, image)
    file = io.BytesIO()
    np.save(file, image)
    return _post(server, PREDICT, file.getvalue(), {"Content-Type": "application/x-npy"})


def _post(server: Server, path: str, body: bytes, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def _call(server: Server, image: np.ndarray) -> int:
    tensor = ModelInferRequest.InferInputTensor(name="raw", datatype="UINT8", shape=[1, *image.shape])
    request = ModelInferRequest(model_name="model", inputs=[tensor], raw_input_contents=[image.tobytes()])
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        return 200 if GRPCInferenceServiceStub(channel).ModelInfer(request).raw_output_contents else 500


def run(steps: Sequence[int]) -> dict[str, Any]:
    """RssAnon after so many requests, in MB."""
    found: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(CLIENTS) as pool:
        log, bundle = Path(temporary) / "server.log", small_bundle(Path(temporary) / "small")
        with started(ours(bundle), log=log, ready="/v2/models/model/ready") as server:
            for begin, end in itertools.pairwise([0, *steps]):
                statuses = list(pool.map(lambda number: ask(server, number), range(begin, end)))
                assert set(statuses) <= {200, 400}, set(statuses)
                found[end] = round(rss_anon_mb(server.process.pid), 1)
                print(f"{end:5} requests: {found[end]:.1f} MB", flush=True)
    first, *_, last = found.values()
    return {"rss_anon_mb": found, "ratio": round(last / first, 3), "target_ratio": TARGET_RATIO}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=(100, 250, 500, 1000), help="requests")
    parser.add_argument("--result", type=Path, default=RESULT)
    chosen = parser.parse_args(arguments)
    result = run(chosen.steps)
    write_result(chosen.result, result)
    print(f"ratio {result['ratio']} (target at most {TARGET_RATIO})")


if __name__ == "__main__":
    main()
