"""The Dockerfile, as far as it can be checked without building it; tests/image checks what is built."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from components.image import DEFAULT_IMAGE

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LAST_STAGE = DOCKERFILE.rsplit("\nFROM ", 1)[1]
COPIED = [
    source for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for source in line.split()[:-1]
]


@pytest.mark.parametrize("source", COPIED)
def test_what_is_copied_exists_and_is_sent_to_the_builder(source):
    assert (ROOT / source).exists()
    assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines()


def test_the_last_stage_runs_as_a_user_without_rights_and_installs_nothing():
    assert re.findall(r"^USER (.+)$", LAST_STAGE, re.MULTILINE) == ["1000"]
    assert not re.search(r"\b(pip|apt-get)\b", LAST_STAGE)


def test_every_installation_is_pinned():
    installations = re.findall(r"pip install .+", DOCKERFILE)
    assert installations
    assert all("--constraint constraints.txt" in line for line in installations)


@pytest.mark.parametrize(
    ("choice", "tag", "accelerator"),
    [([], DEFAULT_IMAGE, "cpu"), (["ACCELERATOR=cu130"], f"{DEFAULT_IMAGE}-cu130", "cu130")],
)
def test_make_tags_the_image_as_compiled_pipelines_and_manifests_name_it(choice, tag, accelerator):
    command = ["make", "--dry-run", "image", "DOCKER=docker", *choice]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert f"docker build --tag {tag} " in printed
    assert f"--build-arg ACCELERATOR={accelerator} " in printed


def test_make_says_what_is_missing_where_there_is_no_engine():
    ended = subprocess.run(["make", "image", "DOCKER="], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode != 0
    assert "docker or podman" in ended.stdout


def test_kserve_runs_the_image_as_the_image_runs_itself():
    runtime = yaml.safe_load((ROOT / "deploy/runtime/cluster-serving-runtime.yaml").read_text())
    (container,) = runtime["spec"]["containers"]
    itself = json.loads(re.findall(r"^CMD (.+)$", LAST_STAGE, re.MULTILINE)[0])
    assert [*container["command"], *container["args"]][: len(itself)] == itself
    exposed = re.findall(r"^EXPOSE (.+)$", LAST_STAGE, re.MULTILINE)[0].split()
    assert {str(port["containerPort"]) for port in container["ports"]} <= set(exposed)
    assert container["image"] == DEFAULT_IMAGE
    (folder,) = re.findall(r"^WORKDIR (.+)$", LAST_STAGE, re.MULTILINE)
    written = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {folder, *re.findall(r"(?:HOME|TMPDIR)=(\S+)", LAST_STAGE)} <= written  # all else is read-only
