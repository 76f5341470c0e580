"""The rules of the house: who may import whom, what stays light, what is packaged."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
ROOMS = ("cyto_dl", "components", "pipelines", "serving")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
HEAVY = {"torch", "monai", "lightning", "mlflow", "skimage", "scipy", "kfp", "kserve"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[str]:
    """Dotted names that import statements bring in; `from a import b` gives "a.b"."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def all_imports(path: Path) -> set[str]:
    return set(imported(ast.walk(ast.parse(path.read_text()))))


def top_level_packages(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


FORBIDDEN = {
    "cyto_dl": {"kfp", "kserve", "components", "pipelines", "serving"},
    "components": {"kserve", "pipelines", "serving"},
    "pipelines": {"kserve", "serving"},
    "serving": {"kfp", "components", "pipelines"},
}


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_nothing_imports_upwards(path):
    room = path.relative_to(ROOT).parts[0]
    assert not top_level_packages(all_imports(path)) & FORBIDDEN[room]


@pytest.mark.parametrize("path", sorted((ROOT / "components").glob("*.py")), ids=relative)
def test_a_component_needs_only_kfp_and_the_standard_library_to_be_compiled(path):
    at_module_level = set(imported(ast.parse(path.read_text()).body))
    assert top_level_packages(at_module_level) <= {"kfp", "components", *sys.stdlib_module_names}


@pytest.mark.parametrize(
    "path", [p for p in MODULES if relative(p).startswith(("components", "pipelines"))], ids=relative
)
def test_annotations_that_kfp_reads_are_not_strings(path):
    assert "__future__.annotations" not in all_imports(path)


def test_no_file_of_the_library_imports_in_a_circle():
    names = {module_name(path): path for path in MODULES if relative(path).startswith("cyto_dl")}
    graph = {name: {nearest_module(i, names) for i in all_imports(path)} - {None, name} for name, path in names.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def nearest_module(name: str, modules: dict[str, Path]) -> str | None:
    """`cyto_dl.errors.ImageError` -> `cyto_dl.errors`; None for other libraries."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


@pytest.mark.parametrize(
    "module",
    [
        "cyto_dl",
        "cyto_dl.bundle",
        "cyto_dl.cli",
        "cyto_dl.config",
        "cyto_dl.data",
        "cyto_dl.data.image",
        "cyto_dl.data.manifest",
        "cyto_dl.data.prepare",
        "cyto_dl.errors",
        "cyto_dl.inference",
        "cyto_dl.model",
        "cyto_dl.storage",
    ],
)
def test_importing_what_does_not_compute_brings_in_no_heavy_library(module):
    code = f"import {module}, sys; print(*sorted({HEAVY} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert loaded.stdout.split() == []


def test_files_can_be_read_in_a_sitting():
    tests = ROOT.glob("tests/**/*.py")
    lines = {relative(path): len(path.read_text().splitlines()) for path in [*MODULES, *tests]}
    assert {name: count for name, count in lines.items() if count > 350} == {}


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text())) or not path.read_text().strip()


@pytest.mark.parametrize("path", CONFIGS, ids=relative)
def test_every_configuration_begins_with_a_sentence(path):
    first = next(line for line in path.read_text().splitlines() if not line.startswith("# @package"))
    assert re.match(r"# [A-Z`].{10,}", first), "begin the file with a comment: what it is and the command that runs it"


def test_no_configuration_computes():
    resolvers = {found for path in CONFIGS for found in re.findall(r"\$\{([a-z_.]+):", path.read_text())}
    assert resolvers <= {"oc.env", "oc.select", "oc.dict.keys", "hydra", "now"}


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines if "==" in line)}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_pin_a_fitting_version_of_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # wandb is only a logger that a configuration may name: it is not part of what is tested
    requirements = [*project["dependencies"], *(line for extra in extras if extra != "wandb" for line in extras[extra])]
    versions = pinned()
    for requirement in map(Requirement, requirements):
        if requirement.name != "cyto-dl":
            assert versions.get(canonical(requirement.name)) in requirement.specifier, str(requirement)


def test_the_wheel_holds_the_library_and_its_configurations_only(tmp_path):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], check=True, cwd=ROOT)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {f"cyto_dl/{relative(path)}" for path in CONFIGS} <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"cyto_dl"}


def test_make_without_a_target_lists_every_target():
    declared = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    printed = subprocess.run(["make"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert declared
    assert set(declared[1].split()) == set(re.findall(r"make ([a-z-]+)", printed))


def test_the_example_is_complete_and_no_image_is_in_two_splits():
    folder = ROOT / "examples/nuclei"
    table = pd.read_csv(folder / "manifest.csv")
    assert table["split"].value_counts().to_dict() == {"train": 44, "valid": 8, "test": 12}
    contents = [(folder / path).read_bytes() for path in table["raw"]]
    assert len(set(contents)) == len(table)
    assert all((folder / path).exists() for path in table["nuclei"])
