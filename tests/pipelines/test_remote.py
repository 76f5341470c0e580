import subprocess
import sys
from pathlib import Path

import pytest

from cyto_dl.errors import StorageError
from pipelines.cli import main
from pipelines.remote import Server, submit

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pipelines" / "compiled" / "training.yaml"


def submit_training(kubeflow, *words: str) -> int:
    return main(["submit", str(PACKAGE), "manifest=s3://images/m.csv", *words, "--host", kubeflow.host, "--poll", "0"])


def test_submit_waits_for_success_and_says_where_the_run_is(kubeflow, capsys):
    assert submit_training(kubeflow, "spatial_dims=3", 'overrides=["trainer=gpu"]') == 0
    (run,) = kubeflow.bodies("POST", "/apis/v2beta1/runs")
    assert run["runtime_config"]["parameters"] == {
        "manifest": "s3://images/m.csv",
        "spatial_dims": 3,
        "overrides": ["trainer=gpu"],
    }
    assert run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "cyto-dl-training"
    assert "platforms" in run["pipeline_spec"]["platform_spec"]
    assert run["experiment_id"] == "e1"
    assert f"succeeded: {kubeflow.host}/#/runs/details/r1" in capsys.readouterr().out
    assert len(kubeflow.bodies("GET", "/apis/v2beta1/runs/r1")) == 3  # PENDING, RUNNING, SUCCEEDED


@pytest.mark.parametrize("state", ["FAILED", "CANCELED", "SKIPPED"])
def test_submit_fails_when_the_run_does_not_succeed(kubeflow, capsys, state):
    kubeflow.states = ["RUNNING", state]
    assert submit_training(kubeflow) == 1
    assert f"{state.lower()}: {kubeflow.host}/#/runs/details/r1" in capsys.readouterr().out


def test_submit_stops_waiting_when_the_time_is_over(kubeflow, capsys):
    kubeflow.states = ["RUNNING"]
    assert submit_training(kubeflow, "--timeout", "0") == 75
    assert "is RUNNING after 0 s and goes on" in capsys.readouterr().err


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1), ("RUNNING", 75)])
def test_status_says_how_a_run_goes(kubeflow, capsys, state, code):
    kubeflow.states = [state]
    assert main(["status", "r1", "--host", kubeflow.host]) == code
    assert capsys.readouterr().out == f"{state.lower()}: {kubeflow.host}/#/runs/details/r1\n"


def test_status_of_a_run_that_does_not_exist_is_a_storage_error(kubeflow, capsys):
    assert main(["status", "r2", "--host", kubeflow.host]) == 3
    assert "has no run 'r2': 404" in capsys.readouterr().err


@pytest.mark.parametrize("cron", ["0 30 2 * * *", "0 */15 8-18 ? * MON-FRI"])
def test_a_schedule_is_left_with_the_server_and_not_waited_for(kubeflow, capsys, cron):
    assert submit_training(kubeflow, "spatial_dims=3", "--cron", cron) == 0
    (body,) = kubeflow.bodies("POST", "/apis/v2beta1/recurringruns")
    assert body["trigger"] == {"cron_schedule": {"cron": cron}}
    assert body["runtime_config"]["parameters"] == {"manifest": "s3://images/m.csv", "spatial_dims": 3}
    assert body["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "cyto-dl-training"
    assert "platforms" in body["pipeline_spec"]["platform_spec"]
    assert (body["max_concurrency"], body["no_catchup"], body["experiment_id"]) == (1, True, "e1")
    assert kubeflow.bodies("POST", "/apis/v2beta1/runs") == []
    assert f"scheduled: {kubeflow.host}/#/recurringrun/details/c1" in capsys.readouterr().out


@pytest.mark.parametrize(("cron", "count"), [("30 2 * * *", 5), ("a b c d e f", 6), ("0 30 2 * * MONDAY", 6)])
def test_a_schedule_that_is_no_clock_is_refused(kubeflow, capsys, cron, count):
    assert submit_training(kubeflow, "--cron", cron) == 2
    assert f"has {count} fields: write second minute hour" in capsys.readouterr().err
    assert kubeflow.requests == []


def test_a_namespace_and_a_token_reach_the_server(kubeflow, monkeypatch):
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "secret")
    assert submit_training(kubeflow, "--namespace", "imaging") == 0
    (experiment,) = kubeflow.bodies("POST", "/apis/v2beta1/experiments")
    assert experiment["namespace"] == "imaging"
    assert set(kubeflow.tokens) == {"Bearer secret"}


def test_a_pipeline_by_name_is_compiled_before_it_is_submitted(kubeflow):
    assert main(["submit", "training", "manifest=m.csv", "--host", kubeflow.host, "--poll", "0"]) == 0
    assert len(kubeflow.bodies("POST", "/apis/v2beta1/runs")) == 1


def test_wrong_arguments_are_refused_before_the_server_is_asked(kubeflow, capsys):
    assert submit_training(kubeflow, "epochs=3") == 2
    assert "'epochs': no such argument" in capsys.readouterr().err
    assert kubeflow.requests == []


def test_a_server_that_does_not_answer_is_a_storage_error(capsys):
    # Port 9 (discard) is closed on every machine that runs tests; the connection is refused at once.
    code = main(["submit", str(PACKAGE), "manifest=m.csv", "--host", "http://127.0.0.1:9"])
    assert code == 3
    assert "Kubeflow Pipelines at http://127.0.0.1:9 cannot be used" in capsys.readouterr().err


LOGIN_PAGE = b"<!doctype html><title>Sign in</title>"


@pytest.mark.parametrize("answers_health", [True, False])
@pytest.mark.parametrize(
    "words",
    [["submit", str(PACKAGE), "manifest=m.csv", "--poll", "0"], ["status", "r1"]],
    ids=["submit", "status"],
)
def test_a_login_page_is_no_answer(kubeflow, monkeypatch, capsys, words, answers_health):
    answer = type(kubeflow).answer

    def sign_in(stub, method, path, body):
        return answer(stub, method, path, body) if answers_health and path.endswith("/healthz") else (200, LOGIN_PAGE)

    monkeypatch.setattr(type(kubeflow), "answer", sign_in)
    assert main([*words, "--host", kubeflow.host]) == 3
    assert "does not answer as Kubeflow Pipelines does" in capsys.readouterr().err


def test_a_schedule_that_the_server_does_not_name_is_none(kubeflow, monkeypatch, capsys):
    answer = type(kubeflow).answer

    def sign_in(stub, method, path, body):
        return (200, LOGIN_PAGE) if "recurringruns" in path else answer(stub, method, path, body)

    monkeypatch.setattr(type(kubeflow), "answer", sign_in)
    assert submit_training(kubeflow, "--cron", "0 30 2 * * *") == 3
    captured = capsys.readouterr()
    assert "does not answer as Kubeflow Pipelines does" in captured.err
    assert "scheduled" not in captured.out


@pytest.mark.parametrize(
    ("status", "page", "says"),
    [
        (401, {"error": "expired"}, "the token has expired"),
        (200, LOGIN_PAGE, "has stopped answering about"),
    ],
)
def test_a_token_that_expires_while_the_run_goes_on_is_told(kubeflow, monkeypatch, capsys, status, page, says):
    answer = type(kubeflow).answer

    def expired(stub, method, path, body):
        return (status, page) if path.endswith("/runs/r1") else answer(stub, method, path, body)

    monkeypatch.setattr(type(kubeflow), "answer", expired)
    assert submit_training(kubeflow) == 3
    assert says in capsys.readouterr().err


def test_a_server_that_stops_answering_about_a_run_is_a_storage_error(kubeflow, monkeypatch):
    answer = type(kubeflow).answer

    def forgetful(stub, method, path, body):
        return (503, {"error": "restarting"}) if path.endswith("/runs/r1") else answer(stub, method, path, body)

    monkeypatch.setattr(type(kubeflow), "answer", forgetful)
    with pytest.raises(StorageError, match="has stopped answering"):
        submit(PACKAGE, {"manifest": "m.csv"}, Server(kubeflow.host), experiment="x", timeout_s=60, poll_s=0)


def test_a_server_that_refuses_the_run_says_why(kubeflow, monkeypatch):
    answer = type(kubeflow).answer

    def strict(stub, method, path, body):
        refused = method == "POST" and path.endswith("/runs")
        return (400, {"error": "invalid spec"}) if refused else answer(stub, method, path, body)

    monkeypatch.setattr(type(kubeflow), "answer", strict)
    with pytest.raises(StorageError, match=r"refuses the run: 400 .*invalid spec"):
        submit(PACKAGE, {"manifest": "m.csv"}, Server(kubeflow.host), experiment="x", timeout_s=60, poll_s=0)


def kfp_command(kubeflow, *words: str) -> None:
    command = [str(Path(sys.executable).with_name("kfp")), "--endpoint", kubeflow.host, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kfp_run_create_takes_the_package_as_it_is(kubeflow):
    kfp_command(kubeflow, "run", "create", "-e", "CytoDL", "-f", str(PACKAGE), "manifest=m.csv")
    (run,) = kubeflow.bodies("POST", "/apis/v2beta1/runs")
    assert run["runtime_config"]["parameters"] == {"manifest": "m.csv"}
    assert "platforms" in run["pipeline_spec"]["platform_spec"]


def test_kfp_pipeline_create_takes_the_package_as_it_is(kubeflow):
    kfp_command(kubeflow, "pipeline", "create", "-p", "training", str(PACKAGE))
    (form,) = kubeflow.bodies("POST", "/apis/v2beta1/pipelines/upload")
    assert PACKAGE.read_bytes() in form
