import re
from pathlib import Path

import pytest
import yaml

from serving.settings import parse_arguments

RUNTIME = Path(__file__).resolve().parents[2] / "deploy/runtime/cluster-serving-runtime.yaml"


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_the_server_answers_the_probes_of_the_serving_runtime(send, probe):
    (container,) = yaml.safe_load(RUNTIME.read_text())["spec"]["containers"]
    path = re.sub(r"\{\{\.Name\}\}", "cells_2", container[probe]["httpGet"]["path"])
    assert send("GET", path).status_code == 200


def test_the_server_understands_the_serving_runtimes_arguments():
    (container,) = yaml.safe_load(RUNTIME.read_text())["spec"]["containers"]
    settings = parse_arguments(container["args"])
    assert settings.bundle == [(None, "/mnt/models")]
    assert settings.log_format == "json"
    megabytes = settings.max_buffered_mib + settings.max_running * settings.max_voxels * 4 / 2**20
    assert megabytes < 8 * 1024 / 2  # images as float32 and bodies; the other half is for what is computed from them
