"""The whole way on real images, as `make demo` runs it:  python examples/nuclei/demo.py

    manifest.csv -> training pipeline -> report, bundle -> server -> one image over HTTP
                                               └-> cyto-dl predict -> the same image, to the last bit

Everything lies in `demo/`, which is made anew. Exits non-zero if a stage fails, if the held-out Dice is below 0.90 or
not above Otsu's threshold on the same images, or if the server's answer differs from `cyto-dl predict`.
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cyto_dl.data.image import read_image

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = Path(__file__).with_name("manifest.csv")
DEMO = ROOT / "demo"
BIN = Path(sys.executable).parent
MODEL_NAME = "nuclei"
HEAD = "seg"
NEEDED_DICE = 0.90  # a small U-Net reaches 0.92 to 0.94 on these images, Otsu's threshold 0.893
SERVER_START_S = 180  # imports and replay take 15 s; a busy machine may need far longer

seconds: dict[str, float] = {}


class DemoError(Exception):
    """A stage did not do what it should."""


def main() -> int:
    """Run every stage; the exit code."""
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    try:
        summary = train()
        dice, otsu = held_out_dice(summary["metrics"])
        image = MANIFEST.parent / str(pd.read_csv(MANIFEST).query("split == 'test'")["raw"].iloc[0])
        with server(summary["bundle"]) as port:
            line = ask(port, image)
        compare(summary["bundle"], image)
    except DemoError as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    tell(summary, dice, otsu, line, port)
    if dice < NEEDED_DICE or dice <= otsu:
        wanted = f"at least {NEEDED_DICE:.2f} and more than Otsu's {otsu:.3f}"
        print(f"\nThe demo failed: the held-out Dice is {dice:.3f}, wanted is {wanted}", file=sys.stderr)
        return 1
    return 0


def train() -> dict[str, Any]:
    """Prepare, train, evaluate and export with the local runner; what came out, and where it is."""
    command = [sys.executable, "-m", "pipelines", "run", "training", f"manifest={MANIFEST}", "--workspace", str(DEMO)]
    run("pipeline", command, MLFLOW_TRACKING_URI=f"sqlite:///{DEMO / 'mlflow.db'}")
    summary: dict[str, Any] = json.loads((DEMO / "latest" / "summary.json").read_text())
    seconds.update(summary["steps"])
    return summary


def held_out_dice(metrics: dict[str, float]) -> tuple[float, float]:
    """Mean Dice of the model and of Otsu's threshold over the same test images."""
    return metrics[f"test/{HEAD}/dice"], metrics[f"test/{HEAD}/otsu_dice"]


@contextmanager
def server(bundle: str) -> Iterator[int]:
    """Serve the bundle on a free port of this machine, which is given; the server is always stopped."""
    http_port, grpc_port = free_ports(2)
    options = ["--model_name", MODEL_NAME, "--http_port", str(http_port), "--grpc_port", str(grpc_port)]
    log = DEMO / "server.log"
    with log.open("w") as output:
        command = [sys.executable, "-m", "serving", "--bundle", bundle, *options]
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            with stage("server start"):
                wait_until_ready(process, f"http://127.0.0.1:{http_port}/v2/models/{MODEL_NAME}/ready", log)
            yield http_port
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nothing listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    """Return when the server has replayed its sample and answers."""
    deadline = time.monotonic() + SERVER_START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(f"the server ended with exit code {process.returncode}:\n{log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise DemoError(f"the server was not ready after {SERVER_START_S} s; see {log}")


def ask(port: int, image: Path) -> str:
    """Send one image as a client would; the answer is in demo/answer.npy. Returns the curl line that was used."""
    request, answer = DEMO / "image.npy", DEMO / "answer.npy"
    address = f"http://127.0.0.1:{port}/v1/models/{MODEL_NAME}:predict"
    np.save(request, read_image(image, spatial_dims=2).array)
    line = (
        f"curl --silent --show-error --fail --data-binary @{relative(request)} "
        f"-H 'Content-Type: application/x-npy' {address} --output {relative(answer)}"
    )
    if shutil.which("curl"):
        run("request", shlex.split(line))
        return line
    with stage("request"):  # a machine without curl: the same request
        body = urllib.request.Request(address, request.read_bytes(), {"Content-Type": "application/x-npy"})
        with urllib.request.urlopen(body) as response:
            answer.write_bytes(response.read())
    return line


def compare(bundle: str, image: Path) -> None:
    """Predict the same image with the command line; raises unless both answers are equal to the last bit."""
    run("predict", [str(BIN / "cyto-dl"), "predict", bundle, str(image), "--output", str(DEMO / "predictions")])
    table = pd.read_csv(DEMO / "predictions" / "predictions.csv")
    predicted = read_image(table[HEAD].iloc[0], spatial_dims=2).array
    served = np.load(DEMO / "answer.npy")
    if predicted.dtype != served.dtype or not np.array_equal(predicted, served):
        raise DemoError(
            f"the server answered {served.dtype} {served.shape}, cyto-dl predict wrote "
            f"{predicted.dtype} {predicted.shape}, and they differ"
        )


def tell(summary: dict[str, Any], dice: float, otsu: float, line: str, port: int) -> None:
    """Print what was reached, and where everything is."""
    store = f"sqlite:///{relative(DEMO / 'mlflow.db')}"
    bundle = relative(Path(summary["bundle"]))
    times = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    print(f"""
held-out Dice   {dice:.3f}   (Otsu's threshold on the same images: {otsu:.3f})
server          answered as cyto-dl predict does, to the last bit
report          {relative(Path(summary["report"]))}
bundle          {bundle}
MLflow          {store}   (look: .venv/bin/mlflow ui --backend-store-uri {store})
curl line used  {line}
  served by     .venv/bin/python -m serving --bundle {bundle} --model_name {MODEL_NAME} --http_port {port}
seconds         {times}""")


def relative(path: Path) -> str:
    """As one would type it in the checkout."""
    return os.path.relpath(path, ROOT)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Measure a stage."""
    start = time.monotonic()
    yield
    seconds[name] = time.monotonic() - start


def run(name: str, command: list[str], **environment: str) -> None:
    """Run one stage's command in the checkout, showing its output."""
    with stage(name):
        code = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode
    if code:
        raise DemoError(f"{name} ended with exit code {code}: {shlex.join(command)}")


if __name__ == "__main__":
    sys.exit(main())
