"""What a request costs a server beside its network: ours, stock KServe, a bare FastAPI handler and LitServe.

    OMP_NUM_THREADS=1 python benchmarks/speed/serving.py
    OMP_NUM_THREADS=1 python benchmarks/speed/serving.py --litserve /path/of/another/venv/bin/python

Every server gives an image back with its numbers as float32; ours with a bundle whose network is the identity, hence
with all checks, windows and threads of a prediction. Counted is the CPU time of the server's processes, user and
system, a request; servers take turns, and the median of the rounds is told. LitServe is no dependency: it is measured
where an interpreter is named that has it.

The second part serves examples/bundles/nuclei, and an untrained 3-D network, and compares the server's CPU time for a
volume with that of `Predictor.predict` in a process of its own. Writes benchmarks/speed/results/serving.json.
"""

import argparse
import base64
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from benchmarks.results import write_result
from benchmarks.speed.servers import ROOT, Server, binary_request, identity_bundle, ours, peer, started
from benchmarks.speed.servers import litserve as serve_litserve
from benchmarks.speed.sliding_window import write_bundle
from cyto_dl.bundle import load_bundle

RESULT = Path(__file__).parent / "results" / "serving.json"
NUCLEI = ROOT / "examples" / "bundles" / "nuclei"
IMAGES = {"1x512x512 float32": ((1, 512, 512), "float32"), "1x32x256x256 uint8": ((1, 32, 256, 256), "uint8")}
VOLUMES = {"nuclei": (1, 384, 384), "3-D": (1, 32, 128, 128)}
TARGETS = {"ours / fastapi": 2.0, "kserve / ours": 20.0, "server / in process": 1.05}
MESSAGE_BYTES = 256 * 2**20  # gRPC's own limit for a client is 4 MiB

Ask = Callable[[], bytes]


def make_image(shape: Sequence[int], dtype: str) -> np.ndarray:
    """Noise C (Z) Y X, 0 to 254."""
    return np.random.default_rng(0).integers(0, 255, shape).astype(dtype)


def ask_v2(server: Server, image: np.ndarray, model: str) -> bytes:
    """Binary tensors over REST."""
    body, headers = binary_request(image)
    return server.ask("POST", f"/v2/models/{model}/infer", body, headers)


def ask_v1(server: Server, image: np.ndarray) -> bytes:
    """A .npy file over REST."""
    file = io.BytesIO()
    np.save(file, image)
    headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
    return server.ask("POST", "/v1/models/model:predict", file.getvalue(), headers)


def ask_fastapi(server: Server, image: np.ndarray) -> bytes:
    """Nothing but the bytes."""
    return server.ask("POST", "/", image.tobytes(), {"x-dtype": image.dtype.name})


def ask_litserve(server: Server, image: np.ndarray) -> bytes:
    """Base64 in JSON."""
    text = base64.b64encode(image.tobytes()).decode()
    body = json.dumps({"image": text, "dtype": image.dtype.name}).encode()
    return server.ask("POST", "/predict", body, {"Content-Type": "application/json"})


def grpc_asker(server: Server, image: np.ndarray) -> Ask:
    """Raw tensors over gRPC, in one channel."""
    options = [("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.max_send_message_length", MESSAGE_BYTES)]
    stub = GRPCInferenceServiceStub(grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=options))
    datatype = {"uint8": "UINT8", "float32": "FP32"}[image.dtype.name]
    tensor = ModelInferRequest.InferInputTensor(name="raw", datatype=datatype, shape=[1, *image.shape])
    request = ModelInferRequest(model_name="model", inputs=[tensor], raw_input_contents=[image.tobytes()])
    return lambda: stub.ModelInfer(request).raw_output_contents[0]


def compare_servers(folder: Path, image: np.ndarray, rounds: int, seconds: float, litserve: str) -> dict[str, float]:
    """CPU milliseconds a request of every server, after the check that each gives the image back."""
    bundle = identity_bundle(folder / f"{image.ndim - 1}d", image.ndim - 1)
    with contextlib.ExitStack() as stack:

        def start(name: str, command: Sequence[str], ready: str) -> Server:
            return stack.enter_context(started(command, log=folder / f"{name}.log", ready=ready))

        our_server = start("ours", ours(bundle), "/v2/models/model/ready")
        fastapi = start("fastapi", peer("fastapi"), "/v2/health/live")
        kserve = start("kserve", peer("kserve"), "/v2/models/identity/ready")
        asked: dict[str, tuple[Server, Ask]] = {
            "fastapi": (fastapi, partial(ask_fastapi, fastapi, image)),
            "ours, V2 binary": (our_server, partial(ask_v2, our_server, image, "model")),
            "ours, gRPC": (our_server, grpc_asker(our_server, image)),
            "ours, V1 .npy": (our_server, partial(ask_v1, our_server, image)),
            "kserve, V2 binary": (kserve, partial(ask_v2, kserve, image, "identity")),
        }
        if litserve:
            server = start("litserve", serve_litserve(litserve), "/health")
            asked["litserve, base64"] = (server, partial(ask_litserve, server, image))
        measured: dict[str, list[float]] = {name: [] for name in asked}
        for name, (server, ask) in asked.items():
            server.reconnect()
            assert ask().endswith(image.astype(np.float32).tobytes()), f"{name} gives another image"
        for _ in range(rounds):
            for name, (server, ask) in asked.items():
                measured[name].append(cpu_ms(server, ask, seconds))
    return {name: round(statistics.median(found), 2) for name, found in measured.items()}


def cpu_ms(server: Server, ask: Ask, seconds: float) -> float:
    """CPU milliseconds a request, of as many as are answered in a while, and at least three."""
    server.reconnect()
    ask()
    begin, cpu_begin, count = time.monotonic(), server.cpu_seconds(), 0
    while count < 3 or time.monotonic() - begin < seconds:
        ask()
        count += 1
    return 1e3 * (server.cpu_seconds() - cpu_begin) / count


@contextlib.contextmanager
def predicting(bundle: Path, image: Path) -> Iterator[Callable[[int], float]]:
    """A process that predicts an image as often as asked, and tells the CPU milliseconds each time."""
    command = [sys.executable, __file__, "--in-process", str(bundle), str(image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        lines, answers = process.stdin, process.stdout

        def measured(count: int) -> float:
            print(count, file=lines, flush=True)
            return float(answers.readline())

        yield measured
        lines.close()


def predict_as_asked(bundle: Path, image: Path) -> None:
    """The other side of `predicting`."""
    predictor, array = load_bundle(bundle), np.load(image)
    predictor.predict(array)
    for line in sys.stdin:
        begin = time.process_time()
        for _ in range(int(line)):
            predictor.predict(array)
        print(1e3 * (time.process_time() - begin) / int(line), flush=True)


def compare_with_process(folder: Path, bundle: Path, shape: Sequence[int], rounds: int) -> dict[str, float]:
    """CPU milliseconds for one image of a real network: served, and in process."""
    image, model = make_image(shape, "uint8"), load_bundle(bundle, replay=False).name
    np.save(folder / "image.npy", image)
    served, in_process = [], []
    with (
        started(ours(bundle), log=folder / "real.log", ready=f"/v2/models/{model}/ready") as server,
        predicting(bundle, folder / "image.npy") as predict,
    ):
        for _ in range(rounds):
            in_process.append(predict(3))
            served.append(cpu_ms(server, partial(ask_v2, server, image, model), seconds=0))
    ratios = [one / other for one, other in zip(served, in_process, strict=True)]
    medians = {"served": statistics.median(served), "in process": statistics.median(in_process)}
    return {name: round(ms, 1) for name, ms in medians.items()} | {"ratio": round(statistics.median(ratios), 3)}


def run(rounds: int, seconds: float, litserve: str) -> dict[str, Any]:
    """Both parts; what is compared takes turns."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        overhead = {
            name: compare_servers(folder, make_image(shape, dtype), rounds, seconds, litserve)
            for name, (shape, dtype) in IMAGES.items()
        }
        bundles = {"nuclei": NUCLEI, "3-D": write_bundle(folder)}
        real = {name: compare_with_process(folder, bundles[name], VOLUMES[name], rounds) for name in VOLUMES}
    ratios = {
        name: {
            "ours / fastapi": round(found["ours, V2 binary"] / found["fastapi"], 2),
            "kserve / ours": round(found["kserve, V2 binary"] / found["ours, V2 binary"], 1),
        }
        for name, found in overhead.items()
    }
    return {
        "cpu_ms_per_request": overhead,
        "ratio": ratios,
        "server_of_real_networks_cpu_ms": real,
        "target": TARGETS,
        "rounds": rounds,
        "seconds_per_round": seconds,
    }


def table(result: dict[str, Any]) -> str:
    """The result for a person."""
    lines = []
    for image, found in result["cpu_ms_per_request"].items():
        lines += [image, *(f"  {name:20} {ms:9.2f} CPU ms a request" for name, ms in found.items())]
        lines += [f"  {name}: {ratio}" for name, ratio in result["ratio"][image].items()]
    for name, found in result["server_of_real_networks_cpu_ms"].items():
        lines.append(f"{name}: " + ", ".join(f"{kind} {value}" for kind, value in found.items()))
    return "\n".join([*lines, f"targets {result['target']}"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="that each server is asked in a round")
    parser.add_argument("--litserve", default="", metavar="PYTHON", help="an interpreter that has LitServe")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--in-process", nargs=2, type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.in_process:
        predict_as_asked(*chosen.in_process)
        return
    result = run(chosen.rounds, chosen.seconds, chosen.litserve)
    write_result(chosen.result, result)
    print(table(result))


if __name__ == "__main__":
    main()
