import re
from pathlib import Path

import pytest
import yaml

RUNTIME = Path(__file__).resolve().parents[2] / "deploy/runtime/cluster-serving-runtime.yaml"


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_the_server_answers_the_probes_of_the_serving_runtime(send, probe):
    (container,) = yaml.safe_load(RUNTIME.read_text())["spec"]["containers"]
    path = re.sub(r"\{\{\.Name\}\}", "cells_2", container[probe]["httpGet"]["path"])
    assert send("GET", path).status_code == 200
