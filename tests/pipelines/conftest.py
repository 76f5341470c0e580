"""A small pipeline of trivial steps, and a Kubeflow Pipelines server that answers what it is told to."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Output

_CREATED = "2026-01-01T00:00:00Z"


@dsl.component(base_image="cyto-dl:0.1.0", install_kfp_package=False)
def make_numbers(numbers: list[float], dataset: Output[Dataset]) -> None:
    """Write numbers.

    Args:
        numbers: What to write.
    """
    import json
    import logging
    from pathlib import Path

    logging.getLogger("toy").info("writing %d numbers", len(numbers))
    Path(dataset.path).mkdir()
    (Path(dataset.path) / "numbers.json").write_text(json.dumps(numbers))
    (Path(dataset.path) / "mlflow.json").write_text('{"tracking_uri": "sqlite:///toy.db", "run_id": "abc"}')


@dsl.component(base_image="cyto-dl:0.1.0", install_kfp_package=False)
def add_numbers(dataset: Input[Dataset], ending: str, report: Output[HTML], metrics: Output[Metrics]) -> None:
    """Add numbers, or end in another way.

    Args:
        dataset: From make_numbers.
        ending: well, ManifestError, ValueError, killed, or waiting for a signal.
    """
    import json
    import logging
    import os
    import signal
    from pathlib import Path

    from cyto_dl.errors import ManifestError

    if ending == "ManifestError":
        raise ManifestError("manifest.csv: two problems\n  - row 3: no file\n  - row 4: no file")
    if ending == "ValueError":
        raise ValueError("not a number")
    if ending == "killed":
        logging.getLogger("toy").info("about to be killed")
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "waiting":
        signal.signal(signal.SIGTERM, lambda *_: exit("saved what there is"))
        logging.getLogger("toy").info("ready for a signal")
        signal.pause()
    total = sum(json.loads((Path(dataset.path) / "numbers.json").read_text()))
    Path(report.path).write_text(f"<p>{total}</p>")
    metrics.log_metric("test/toy/sum", total)


@dsl.pipeline(name="toy")
def toy(numbers: list[float] = [1, 2], ending: str = "well", tries: int = 3) -> None:  # noqa: B006  # KFP reads defaults off the signature
    """Add numbers.

    Args:
        numbers: What to add.
        ending: How the second step ends.
        tries: Not used.
    """
    made = make_numbers(numbers=numbers).set_display_name("Make numbers")
    added = add_numbers(dataset=made.outputs["dataset"], ending=ending)
    # Locally a step is not tried again; if it were, a failing test would take ten minutes.
    added.set_retry(num_retries=5, backoff_duration="120s").set_cpu_limit("1")


@pytest.fixture
def toy_pipeline() -> Any:
    """Two steps, make-numbers and add-numbers; the argument `ending` decides how the second one ends."""
    return toy


@dataclass
class KubeflowStub:
    """A server that records what it is asked and lets a run go through `states`."""

    states: list[str]
    host: str = ""
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)

    def bodies(self, method: str, path: str) -> list[Any]:
        return [body for verb, where, body in self.requests if verb == method and where.split("?")[0] == path]

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        self.requests.append((method, path, body))
        resource = path.split("?")[0].removeprefix("/apis/v2beta1/")
        if resource == "healthz":
            return 200, {"multi_user": False}
        if resource == "experiments":
            return 200, {"experiment_id": "e1", "display_name": "CytoDL"} if method == "POST" else {"experiments": []}
        if resource == "runs" and method == "POST":
            return 200, {"run_id": "r1", "display_name": body["display_name"], "state": "PENDING"}
        if resource == "recurringruns" and method == "POST":
            return 200, {"recurring_run_id": "c1", "display_name": body["display_name"]}
        if resource == "pipelines/upload":
            return 200, {"pipeline_id": "p1", "display_name": "training", "created_at": _CREATED}
        if resource == "pipelines/p1/versions":
            version = {"pipeline_version_id": "v1", "pipeline_id": "p1", "created_at": _CREATED}
            return 200, {"pipeline_versions": [version]}
        if resource == "runs/r1":
            state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            return 200, {"run_id": "r1", "state": state, "created_at": _CREATED}
        return 404, {"error": f"the stub does not know {method} {path}"}


def _handler(stub: KubeflowStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _respond(self) -> None:
            stub.tokens.append(self.headers.get("Authorization"))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            is_json = self.headers.get_content_type() == "application/json"  # an upload is a form
            status, answer = stub.answer(self.command, self.path, json.loads(body) if body and is_json else body)
            is_page = isinstance(answer, bytes)
            text = answer if is_page else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if is_page else "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = _respond

        def log_message(self, format: str, *args: Any) -> None:
            """A test's output is not the place for an access log."""

    return Handler


@pytest.fixture
def kubeflow() -> Iterator[KubeflowStub]:
    """A server on this machine; its `states` say how the run goes."""
    stub = KubeflowStub(states=["PENDING", "RUNNING", "SUCCEEDED"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stub))
    stub.host = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield stub
    server.shutdown()
    server.server_close()
    thread.join()
