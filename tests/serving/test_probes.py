import re
from pathlib import Path

import pytest
import yaml

from serving.settings import parse_arguments

GIB, MIB = 2**30, 2**20
RUNTIME = Path(__file__).resolve().parents[2] / "deploy/runtime/cluster-serving-runtime.yaml"


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_the_server_answers_the_probes_of_the_serving_runtime(send, probe):
    (container,) = yaml.safe_load(RUNTIME.read_text())["spec"]["containers"]
    path = re.sub(r"\{\{\.Name\}\}", "cells_2", container[probe]["httpGet"]["path"])
    assert send("GET", path).status_code == 200


def test_the_server_understands_the_serving_runtimes_arguments():
    (container,) = yaml.safe_load(RUNTIME.read_text())["spec"]["containers"]
    settings = parse_arguments([word.replace("{{.Name}}", "nuclei") for word in container["args"]])
    assert settings.bundle == [(None, "/mnt/models")]
    assert settings.log_format == "json"


def test_the_largest_load_that_is_allowed_fits_into_the_memory_of_the_serving_runtime():
    spec = yaml.safe_load(RUNTIME.read_text())["spec"]
    (container,) = spec["containers"]
    settings = parse_arguments([word.replace("{{.Name}}", "nuclei") for word in container["args"]])
    per_voxel = 16 + 12 * 3 + 64  # bytes; the sum in docs/how-to/serve.md, for an object head and one more channel
    request = 0.2 * GIB + settings.max_voxels * per_voxel
    json = settings.max_body_mib * MIB * 21  # empty lists, the largest that JSON becomes before it is looked at
    (shared,) = [volume["emptyDir"] for volume in spec["volumes"] if volume["emptyDir"].get("medium") == "Memory"]
    assert shared["sizeLimit"] == "1Gi"
    total = GIB + GIB + 2 * settings.max_buffered_mib * MIB + settings.max_running * max(request, json)
    assert container["resources"]["limits"]["memory"] == "8Gi"
    assert total < 8 * GIB
    assert settings.max_body_mib * MIB >= settings.max_voxels * 4  # every image that is allowed can be sent as float32
    assert settings.max_message_mib * MIB >= settings.max_voxels * 4 * 3  # and its answer taken
