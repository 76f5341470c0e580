import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.catalogue import PIPELINES
from pipelines.cli import main, parse_words

ROOT = Path(__file__).resolve().parents[2]


def test_help_needs_no_kfp():
    code = "import runpy, sys\nsys.argv = ['pipelines', '--help']\n"
    code += (
        "try:\n    runpy.run_module('pipelines', run_name='__main__')\nfinally:\n    assert 'kfp' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "submit" in done.stdout


def test_list_shows_every_pipeline_with_its_arguments(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("training: Train a model on a table of microscope images")
    assert "evaluation_split" in shown
    assert all(f"\n{name}: " in shown for name in PIPELINES[1:])


def test_compile_writes_every_pipeline_into_a_folder(tmp_path, capsys):
    assert main(["compile", "--all", "--output", str(tmp_path)]) == 0
    written = [str(tmp_path / f"{name}.yaml") for name in PIPELINES]
    assert sorted(str(path) for path in tmp_path.iterdir()) == sorted(written)
    assert capsys.readouterr().out.split() == written


@pytest.mark.parametrize("words", [["compile"], ["compile", "training", "--all"], ["compile", "nope"]])
def test_compile_without_exactly_one_known_pipeline_is_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert "training" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_arguments_of_a_pipeline_may_stand_before_and_after_options():
    options = parse_words(["submit", "training", "seed=1", "--host", "http://kfp", "manifest=a.csv", "--poll", "1"])
    assert (options.arguments, options.host, options.poll) == (["seed=1", "manifest=a.csv"], "http://kfp", 1.0)


@pytest.mark.parametrize("words", [["list", "seed=1"], ["run", "training", "seed=1", "--nope", "seed=2"]])
def test_words_that_are_neither_options_nor_arguments_are_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_run_with_wrong_arguments_makes_no_folder(tmp_path, capsys):
    assert main(["run", "training", "epochs=3", "--workspace", str(tmp_path / "runs")]) == 2
    assert "'manifest': required" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_run_ends_with_the_summary(toy_pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pipelines.catalogue.load_pipeline", lambda name: toy_pipeline)
    assert main(["run", "toy", "numbers=[3, 4]", "--workspace", str(tmp_path)]) == 0
    ending = capsys.readouterr().out.split("\n\n")[-1]
    assert ending.startswith("toy: succeeded after")
    assert "test/toy/sum  7.0000" in ending
    assert json.loads((tmp_path / "latest" / "summary.json").read_text())["report"] in ending


@pytest.mark.parametrize(
    ("ending", "code", "message"),
    [
        ("ManifestError", 2, "step add-numbers failed: ManifestError: manifest.csv: two problems\n  - row 3: no file"),
        ("ValueError", 1, "step add-numbers failed: ValueError: not a number"),
    ],
)
def test_run_ends_with_the_step_that_failed_and_its_error(
    toy_pipeline, tmp_path, monkeypatch, capsys, ending, code, message
):
    monkeypatch.setattr("pipelines.catalogue.load_pipeline", lambda name: toy_pipeline)
    assert main(["run", "toy", f"ending={ending}", "--workspace", str(tmp_path)]) == code
    assert message in capsys.readouterr().err


def test_submit_without_a_server_says_how_to_name_one(monkeypatch, capsys):
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    assert main(["submit", "training", "manifest=m.csv"]) == 2
    assert "--host" in capsys.readouterr().err
