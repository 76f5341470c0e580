"""The commands of docs/how-to/deploy.md and many-nodes.md, as they are written there."""

import json
import re
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from components.cluster.__main__ import main
from cyto_dl.config import compose_experiment

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ROOT / "docs/how-to"


def command(document: str, start: str) -> list[str]:
    """The words of the one command in a document's shell blocks that begins so."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (DOCUMENTS / document).read_text(), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    (found,) = [words for line in lines if (words := shlex.split(line))[: len(start.split())] == start.split()]
    return found


@pytest.fixture
def kubeflow():
    """Kubeflow Pipelines, as far as a recurring run needs it: its address, and the run that it was given."""
    given = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = {"experiment_id": "e1", "display_name": "nuclei"}
            if "recurringruns" in self.path:
                given.append(json.loads(body))
                answer = {"recurring_run_id": "j1", "display_name": "nightly", "created_at": "2026-01-01T00:00:00Z"}
            elif self.command == "GET" and "experiments" in self.path:
                answer = {"experiments": [answer]}
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", given
    server.shutdown()
    server.server_close()


def test_the_nightly_run_is_created_as_written(kubeflow):
    address, given = kubeflow
    (code,) = re.findall(r"^```python\n(.*?)^```", (DOCUMENTS / "deploy.md").read_text(), re.DOTALL | re.MULTILINE)
    program = [sys.executable, "-c", code.replace("https://kubeflow.example.org/pipeline", address)]
    subprocess.run(program, cwd=ROOT / "pipelines/compiled", capture_output=True, text=True, check=True)
    (run,) = given
    assert run["trigger"]["cron_schedule"]["cron"] == "0 0 2 * * *"
    assert run["max_concurrency"] == 1
    assert run["no_catchup"]
    assert run["runtime_config"]["parameters"] == {
        "manifest": "s3://images/manifest.csv",
        "model_name": "nuclei",
        "overrides": ["trainer=gpu"],
    }
    assert run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "cyto-dl-training"


def test_the_training_on_several_nodes_is_one_that_can_be_composed(capsys, tmp_path):
    words = command("many-nodes.md", "python -m components.cluster")[3:]
    assert main([*words, "--print"]) == 0
    overrides = [line.strip(" -") for line in capsys.readouterr().out.splitlines() if re.match(r" *- [\w.]+=", line)]
    config = compose_experiment(overrides, output_dir=tmp_path)
    assert (config["trainer"]["num_nodes"], config["trainer"]["devices"]) == (2, 4)


def test_a_node_runs_what_the_document_runs_by_hand(tmp_path):
    words = command("many-nodes.md", "python -m torch.distributed.run")
    assert words[3:5] == ["--module", "cyto_dl.train"]
    config = compose_experiment(words[5:], output_dir=tmp_path)
    assert config["trainer"]["num_nodes"] == 2
