"""The Dockerfile, as far as it can be checked without building it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COPIED = [
    source for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for source in line.split()[:-1]
]


@pytest.mark.parametrize("source", COPIED)
def test_what_is_copied_exists_and_is_sent_to_the_builder(source):
    assert (ROOT / source).exists()
    assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines()


def test_the_last_stage_runs_as_a_user_without_rights_and_installs_nothing():
    last_stage = DOCKERFILE.rsplit("\nFROM ", 1)[1]
    assert re.findall(r"^USER (.+)$", last_stage, re.MULTILINE) == ["1000"]
    assert not re.search(r"\b(pip|apt-get)\b", last_stage)


def test_every_installation_is_pinned():
    installations = re.findall(r"pip install .+", DOCKERFILE)
    assert installations
    assert all("--constraint constraints.txt" in line for line in installations)
