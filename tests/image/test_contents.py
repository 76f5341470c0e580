"""What is in the image, and what is not."""

import re

import pytest

import cyto_dl
from tests.image.containers import ROOT

pytestmark = pytest.mark.integration
COMPILERS = ("cc", "gcc", "c++", "g++", "clang", "as", "ld", "make")


def test_its_labels_say_what_it_is_and_from_which_commit(image):
    label = '{{{{index .Config.Labels "org.opencontainers.image.{}"}}}}'.format
    assert image.inspect(label("title")) == "CytoDL"
    assert image.inspect(label("version")) == cyto_dl.__version__
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", image.inspect(label("revision")))
    assert "python" in image.inspect(label("base.name"))


def test_it_runs_as_a_user_without_rights_who_is_a_number(image):
    assert image.inspect("{{.Config.User}}") == "1000"


def test_for_processors_it_is_smaller_than_3_gigabytes(image):
    accelerator = image.inspect('{{index .Config.Labels "io.cyto-dl.accelerator"}}')
    size = int(image.inspect("{{.Size}}"))
    assert size < (3e9 if accelerator == "cpu" else 10e9)  # CUDA's libraries alone are some 5 GB


def test_it_has_no_compiler_and_no_other_root(image):
    found = image.run("sh", "-c", f"for tool in {' '.join(COMPILERS)}; do command -v $tool; done; true")
    assert found == ""


def test_every_package_in_it_has_the_version_that_the_tests_pass_with(image):
    pinned = {line.lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    frozen = image.run("pip", "freeze", "--exclude", "cyto-dl").lower()
    installed = {re.sub(r"\+\w+$", "", line).replace("_", "-") for line in frozen.splitlines()}
    assert installed
    assert installed <= {line.replace("_", "-") for line in pinned}


def test_only_kfp_lacks_what_it_asks_for(image):
    complaints = image.run("sh", "-c", "pip check || true").splitlines()
    assert {line.split()[0] for line in complaints} == {"kfp"}  # a step needs of it what its own command imports


@pytest.mark.parametrize("module", ["components.cluster", "serving", "cyto_dl.train", "torch.distributed.run"])
def test_what_manifests_start_by_name_is_found_from_any_folder(image, module):
    assert "usage" in image.run("python", "-m", module, "--help").lower() or module == "cyto_dl.train"
