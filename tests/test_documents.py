"""Documents are true: links lead somewhere, and every command in a shell block is one that exists."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from cyto_dl.cli import _parse as parse_cyto_dl
from cyto_dl.config import compose_experiment, experiments
from pipelines.catalogue import load_pipeline, parse_arguments
from pipelines.cli import parse_words
from serving.__main__ import parse_arguments as parse_serving

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
NOTEBOOKS = sorted(ROOT.glob("docs/**/*.ipynb"))
HYDRA_FLAGS = {"-m": 0, "--config-dir": 1, "--cfg": 1, "--resolve": 0}  # flag -> number of words that follow it


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def commands(start: str) -> list[tuple[str, list[str]]]:
    """(document, words after `start`) of every command in a shell block that begins so."""
    found = []
    for document in DOCUMENTS:
        for block in blocks(document, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[: len(start.split())] == start.split():
                    found.append((relative(document), words[len(start.split()) :]))
    return found


@pytest.mark.parametrize("document", [*DOCUMENTS, *NOTEBOOKS], ids=relative)
def test_links_between_documents_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (document.parent / target).resolve() if target else document
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


def anchors(document: Path) -> set[str]:
    """The names that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_documents_name_make_targets_and_experiments_that_exist(document):
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", document.read_text(), re.DOTALL))
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)\b", code):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for experiment in re.findall(r"experiment=(im2im/\w+)", code):
        assert (ROOT / "configs/experiment" / f"{experiment}.yaml").exists(), experiment


def test_the_reference_lists_every_experiment_with_its_command():
    document = ROOT / "docs/reference/experiments.md"
    table = re.findall(r"^\| `(im2im/\w+)`", document.read_text(), re.MULTILINE)
    shown = [
        words[0].removeprefix("experiment=") for place, words in commands("cyto-dl train") if "experiments.md" in place
    ]
    assert sorted(table) == sorted(shown) == experiments()


@pytest.mark.parametrize(
    ("document", "words"), [*commands("cyto-dl train"), *commands("cyto-dl eval")], ids=lambda value: " ".join(value)
)
def test_experiments_in_documents_compose(document, words, tmp_path):
    overrides, is_sweep = [], "-m" in words
    while words:
        word, *words = words
        if word in HYDRA_FLAGS:
            words = words[HYDRA_FLAGS[word] :]
        else:
            # `mine` stands for an experiment of the reader's; of a sweep's values the first is tried
            word = word.replace("experiment=mine", "experiment=im2im/segmentation")
            overrides.append(word.split(",")[0] if is_sweep else word)
    name = "eval.yaml" if any(word.startswith("ckpt_path=logs") for word in overrides) else "train.yaml"
    assert compose_experiment(overrides, output_dir=tmp_path, config_name=name)["model"]


@pytest.mark.parametrize("command", ["export", "predict", "inspect", "doctor"])
def test_commands_in_documents_are_understood(command):
    for document, words in commands(f"cyto-dl {command}"):
        assert parse_cyto_dl([command, *words]), document


def test_pipeline_commands_in_documents_are_understood():
    for document, words in commands("python -m pipelines"):
        options = parse_words(words)
        if hasattr(options, "arguments"):
            assert parse_arguments(load_pipeline(options.pipeline), options.arguments), document


def test_serving_commands_in_documents_are_understood():
    for document, words in commands("python -m serving"):
        assert all(path.startswith("bundle") for _, path in parse_serving(words).bundle), document


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_yaml_in_documents_can_be_read(document):
    for block in blocks(document, "yaml"):
        assert isinstance(yaml.safe_load(block), dict | list)


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_python_in_documents_compiles(document):
    for block in blocks(document, "python"):
        assert compile(block, relative(document), "exec")


def test_tests_that_documents_name_exist():
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for document in DOCUMENTS:
        for name in re.findall(r"`(test_\w+)`", document.read_text()):
            assert f"def {name}(" in written, f"{relative(document)}: {name}"
