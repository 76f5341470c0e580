"""How fast the health route answers while a volume is predicted, and while 16 clients load the server.

    OMP_NUM_THREADS=1 python benchmarks/speed/liveness.py

Ours is asked GET /v2/health/live while it predicts; a bare FastAPI health route is asked beside the same computation in
a process of its own, in turn: one image after the other for one client, and as many at a time as the server computes
for 16. Each is asked over one connection every 20 ms from here; what loads is another process. JSON tensors are no part
of the load: reading them holds Python's interpreter lock (docs/reference/serving.md). The clients' network is a small
U-Net that parts objects, so that much of the load is not the network; the volume's an untrained 3-D one. Writes
benchmarks/speed/results/liveness.json.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results import write_result
from benchmarks.speed.servers import Server, binary_request, ours, peer, small_bundle, started
from benchmarks.speed.sliding_window import write_bundle

if TYPE_CHECKING:
    from cyto_dl.inference import Predictor

RESULT = Path(__file__).parent / "results" / "liveness.json"
LIVE = "/v2/health/live"
TARGET_RATIO = 3.0
CLIENTS = 16
RUNNING = 2  # requests that are computed at the same time
IMAGE = (1, 256, 256)  # of a client
EVERY_S = 0.02
SETTLE_S = 2.0  # after which whatever loads is under way


def asked(server: Server, seconds: float) -> list[float]:
    """Milliseconds of each answer of the health route."""
    found = []
    server.reconnect()
    server.ask("GET", LIVE)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        begin = time.perf_counter()
        server.ask("GET", LIVE)
        found.append(1e3 * (time.perf_counter() - begin))
        time.sleep(EVERY_S)
    return found


@contextlib.contextmanager
def loading(*arguments: object) -> Iterator[None]:
    """A process that loads, from when it tells that it does; killed at the end."""
    command = [sys.executable, __file__, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "loading\n"
            time.sleep(SETTLE_S)
            yield
            assert process.poll() is None, "the load ended before the measurement"
        finally:
            process.kill()


def load_server(port: int, model: str, shape: Sequence[int], num_clients: int) -> None:
    """Ask for predictions without end."""
    body, headers = binary_request(image_of(shape))

    def client(_: int) -> None:
        server = Server(None, port, 0)
        while True:
            server.ask("POST", f"/v2/models/{model}/infer", body, headers)

    print("loading", flush=True)
    with ThreadPoolExecutor(num_clients) as pool:
        list(pool.map(client, range(num_clients)))


def load_processor(bundle: Path, shape: Sequence[int], num_threads: int) -> None:
    """Predict without end, in this process."""
    from cyto_dl.bundle import load_bundle

    image = image_of(shape)

    def predict(predictor: "Predictor") -> None:
        while True:
            predictor.predict(image)

    predictors = [load_bundle(bundle, replay=False) for _ in range(num_threads)]
    print("loading", flush=True)
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(predict, predictors))


def image_of(shape: Sequence[int]) -> np.ndarray:
    """Noise C (Z) Y X."""
    return np.random.default_rng(0).integers(0, 255, shape, np.uint8)


def compare(folder: Path, bundle: Path, load: tuple[Sequence[int], int], seconds: float, rounds: int) -> dict[str, Any]:
    """Milliseconds of both health routes, in turn.

    Args:
        folder: For logs.
        bundle: That is served.
        load: Sides of the image, clients.
        seconds: That each is asked in a round.
        rounds: Of both.
    """
    shape, clients = load
    measured: dict[str, list[list[float]]] = {"fastapi": [], "ours": []}
    with (
        started(peer("fastapi"), log=folder / "fastapi.log", ready=LIVE) as fastapi,
        started(
            ours(bundle, "--model_name", "model", "--max-running", str(RUNNING)), log=folder / "ours.log", ready=LIVE
        ) as server,
    ):
        sides = json.dumps(shape)
        for _ in range(rounds):
            with loading("--processor", bundle, sides, min(clients, RUNNING)):
                measured["fastapi"].append(asked(fastapi, seconds))
            with loading("--server", server.port, sides, clients):
                measured["ours"].append(asked(server, seconds))
            time.sleep(SETTLE_S)  # what a killed client had asked for is given up
    return _summary(measured)


def _summary(measured: dict[str, list[list[float]]]) -> dict[str, Any]:
    found = {
        name: {
            f"{label}_ms": round(statistics.median(float(np.percentile(each, percent)) for each in rounds), 2)
            for label, percent in (("p50", 50), ("p99", 99), ("max", 100))
        }
        for name, rounds in measured.items()
    }
    answers = {name: sum(map(len, rounds)) for name, rounds in measured.items()}
    return {**found, "answers": answers, "p99_ratio": round(found["ours"]["p99_ms"] / found["fastapi"]["p99_ms"], 2)}


def run(volume: Sequence[int], seconds: float, rounds: int) -> dict[str, Any]:
    """Both loads."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        loads = {
            "one volume": (write_bundle(folder), ([1, *volume], 1)),
            f"{CLIENTS} clients": (small_bundle(folder / "small"), (list(IMAGE), CLIENTS)),
        }
        found = {name: compare(folder, bundle, load, seconds, rounds) for name, (bundle, load) in loads.items()}
    return {**found, "volume": list(volume), "target_ratio": TARGET_RATIO, "seconds": seconds, "rounds": rounds}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", type=int, nargs=3, default=(64, 512, 512), help="ZYX; some 30 s on one thread")
    parser.add_argument("--seconds", type=float, default=20, help="that each is asked in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--server", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--processor", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.server:
        port, shape, clients = chosen.server
        load_server(int(port), "model", json.loads(shape), int(clients))
    if chosen.processor:
        bundle, shape, threads = chosen.processor
        load_processor(Path(bundle), json.loads(shape), int(threads))
    result = run(chosen.volume, chosen.seconds, chosen.rounds)
    write_result(chosen.result, result)
    for load in ("one volume", f"{CLIENTS} clients"):
        for name in ("fastapi", "ours"):
            print(f"{load:12} {name:8}", ", ".join(f"{key} {value}" for key, value in result[load][name].items()))
        print(f"{load:12} p99 ratio {result[load]['p99_ratio']}, target at most {TARGET_RATIO}")


if __name__ == "__main__":
    main()
