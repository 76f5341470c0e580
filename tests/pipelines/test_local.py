import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from subprocess import PIPE

import psutil
import pytest
from kfp import dsl

from pipelines import local
from pipelines.catalogue import load_pipeline
from pipelines.local import run_locally

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_that_succeeds_tells_its_story_and_leaves_a_summary(toy_pipeline, tmp_path, capsys):
    summary = run_locally(toy_pipeline, {"numbers": [1, 2.5]}, workspace=tmp_path / "runs")
    written = json.loads((tmp_path / "runs" / "latest" / "summary.json").read_text())
    told = capsys.readouterr().out
    assert summary.exit_code == 0
    assert written["status"] == "succeeded"
    assert written["metrics"] == {"test/toy/sum": 3.5}
    assert list(written["steps"]) == ["make-numbers", "add-numbers"]
    assert (Path(written["dataset"]) / "numbers.json").read_text() == "[1.0, 2.5]"
    assert written["mlflow"] == {"tracking_uri": "sqlite:///toy.db", "run_id": "abc"}
    assert "[1 of 2] make-numbers" in told and "[2 of 2] add-numbers" in told
    assert "writing 2 numbers" in told
    assert "executor_input" not in told and "parameterValues" not in told  # KFP's own log stays in run.log
    assert "executor_input" in (summary.folder / "run.log").read_text()


def test_a_page_is_copied_to_a_file_that_a_browser_recognizes(toy_pipeline, tmp_path):
    summary = run_locally(toy_pipeline, {}, workspace=tmp_path)
    report = Path(summary.places["report"])
    assert (report.name, report.read_text()) == ("report.html", "<p>3.0</p>")


def test_a_page_of_a_step_inside_a_condition_is_copied_too(tmp_path):
    @dsl.component(base_image="cyto-dl:0.1.0", install_kfp_package=False)
    def compare(comparison: dsl.Output[dsl.HTML]) -> bool:
        with open(comparison.path, "w") as file:
            file.write("<p>better</p>")
        return True

    @dsl.pipeline(name="conditional")
    def conditional(model_name: str = "nuclei"):
        with dsl.If(model_name != ""):
            compare()

    summary = run_locally(conditional, {}, workspace=tmp_path)
    assert summary.exit_code == 0
    assert Path(summary.places["comparison"]).read_text() == "<p>better</p>"


@pytest.mark.parametrize(
    ("ending", "exit_code", "error"),
    [
        ("ManifestError", 2, "manifest.csv: two problems\n  - row 3: no file\n  - row 4: no file"),
        ("ValueError", 1, "not a number"),
        ("killed", 1, "the process ended without an error; its last lines:\nabout to be killed\nKilled"),
    ],
)
def test_a_step_that_fails_is_named_with_its_error_and_decides_the_exit_code(
    toy_pipeline, tmp_path, capsys, ending, exit_code, error
):
    summary = run_locally(toy_pipeline, {"ending": ending}, workspace=tmp_path)
    written = json.loads((summary.folder / "summary.json").read_text())
    assert summary.exit_code == exit_code
    assert (written["status"], written["failed_step"], written["error"]) == ("failed", "add-numbers", error)
    assert "numbers.json" in os.listdir(written["dataset"])  # what the steps before it made is there
    # The traceback helps only where CytoDL has no explanation; the log has it always.
    assert ("Traceback" in capsys.readouterr().out) == (ending == "ValueError")
    assert ("Traceback" in (summary.folder / "run.log").read_text()) == (ending != "killed")


def test_sigterm_is_handed_on_to_the_step_that_runs(tmp_path):
    """As `kill` or a batch system sends it, to the command alone."""
    code = (
        "import sys\nfrom pipelines import catalogue, cli\nfrom tests.pipelines.conftest import toy\n"
        "catalogue.load_pipeline = lambda name: toy\n"
        f"sys.exit(cli.main(['run', 'toy', 'ending=waiting', '--workspace', {str(tmp_path)!r}]))\n"
    )
    with subprocess.Popen([sys.executable, "-u", "-c", code], cwd=ROOT, stdout=PIPE, stderr=PIPE, text=True) as command:
        for line in command.stdout:
            if "ready for a signal" in line:
                break
        steps = psutil.Process(command.pid).children(recursive=True)
        command.send_signal(signal.SIGTERM)
        out, err = command.communicate(timeout=60)
    assert command.returncode == 143, err
    assert "saved what there is" in out
    assert "SIGTERM ended the run" in err
    assert steps and not any(step.is_running() for step in steps)
    written = json.loads((tmp_path / "latest" / "summary.json").read_text())
    assert (written["status"], list(written["steps"])) == ("failed", ["make-numbers", "add-numbers"])


def test_runs_in_one_workspace_stand_side_by_side(toy_pipeline, tmp_path):
    (tmp_path / "precious.txt").write_text("a user's file")
    first = run_locally(toy_pipeline, {}, workspace=tmp_path)
    second = run_locally(toy_pipeline, {}, workspace=tmp_path)
    assert first.folder != second.folder
    assert (tmp_path / "latest").resolve() == second.folder
    assert Path(first.places["dataset"]).is_dir()
    assert (tmp_path / "precious.txt").read_text() == "a user's file"


def test_a_run_changes_neither_the_environment_nor_the_pipeline_and_does_not_warn(toy_pipeline, tmp_path):
    before = dict(os.environ)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_locally(toy_pipeline, {}, workspace=tmp_path)
    assert dict(os.environ) == before
    assert toy_pipeline.pipeline_spec.root.dag.tasks["add-numbers"].retry_policy.max_retry_count == 5


def test_of_the_branches_of_a_condition_one_is_counted():
    """From check_settings to compare they are six; register and deploy, or only register: the longer; finish."""
    assert local._count_steps(load_pipeline("training").pipeline_spec) == 9


def test_no_step_is_tried_again_on_one_machine_wherever_it_stands():
    specification = local._for_one_machine(load_pipeline("training")).pipeline_spec
    nodes = [specification.root, *specification.components.values()]
    assert not [name for node in nodes for name, task in node.dag.tasks.items() if task.HasField("retry_policy")]


def test_a_step_on_one_machine_does_not_claim_to_run_in_the_image():
    pipeline = load_pipeline("training")
    for each, names_image in ((pipeline, True), (local._for_one_machine(pipeline), False)):
        assert ("CYTO_DL_IMAGE" in str(each.pipeline_spec.deployment_spec)) == names_image
