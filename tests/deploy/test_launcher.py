import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.cluster.launcher import run_train_job
from components.cluster.train_job import Nodes, train_job
from cyto_dl.errors import ConfigError, StorageError

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["experiment=im2im/segmentation"]
JOB = train_job("r1", "imaging", "cyto-dl:0.1.0", WORDS, Nodes(2))
NAME = JOB["metadata"]["name"]
PATH = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/imaging/trainjobs/{NAME}"


def add_pod(cluster, index, *, phase="Running", exit_code=None, finished="2026-01-01T00:00:00Z"):
    name = f"{NAME}-node-0-{index}"
    status = {"name": "node", "image": "i", "imageID": "i", "ready": True, "restartCount": 0}
    if exit_code is not None:
        status["state"] = {"terminated": {"exitCode": exit_code, "finishedAt": finished}}
    labels = {
        "jobset.sigs.k8s.io/jobset-name": NAME,
        "jobset.sigs.k8s.io/replicatedjob-name": "node",
        "batch.kubernetes.io/job-completion-index": str(index),
    }
    cluster.objects[f"/api/v1/namespaces/imaging/pods/{name}"] = {
        "metadata": {"name": name, "labels": labels},
        "status": {"phase": phase, "containerStatuses": [status]},
    }
    return name


def ended(condition, message=""):
    return {"conditions": [{"type": condition, "status": "True", "message": message}]}


def run(lines=None, **choices):
    said = [] if lines is None else lines
    return run_train_job(JOB, poll_s=0.01, say=said.append, **choices)


@pytest.fixture
def training(cluster):
    """A job whose first node says one line more at each look, and which ends after three."""
    pod = add_pod(cluster, 0)
    add_pod(cluster, 1)
    cluster.logs[pod] = ""

    def look(job):
        epoch = cluster.logs[pod].count("\n")
        cluster.logs[pod] += f"epoch {epoch}\n"
        if epoch == 2:
            job["status"] = ended("Complete")

    cluster.look = look
    return cluster


def test_a_training_is_started_followed_and_removed(training):
    lines = []
    assert run(lines) == 0
    assert lines == ["epoch 0", "epoch 1", "epoch 2"]
    assert training.methods() == ["POST", "DELETE"]
    assert PATH not in training.objects


def test_a_step_that_is_started_again_follows_the_job_of_its_first_attempt(training):
    training.objects[PATH] = JOB | {"metadata": JOB["metadata"] | {"uid": "first"}}
    assert run() == 0
    assert [body["metadata"]["name"] for method, _, body in training.requests if method == "POST"] == [NAME]
    assert training.methods() == ["POST", "DELETE"]  # the POST was refused with 409


def test_what_an_earlier_attempt_left_broken_is_started_anew(training):
    training.objects[PATH] = JOB | {"status": ended("Failed")}
    assert run() == 0
    assert training.methods() == ["POST", "DELETE", "POST", "DELETE"]


def test_the_exit_code_is_that_of_the_node_that_failed_first(cluster):
    cluster.logs[add_pod(cluster, 0, phase="Failed", exit_code=137, finished="2026-01-01T00:00:09Z")] = "killed\n"
    add_pod(cluster, 1, phase="Failed", exit_code=4)
    cluster.look = lambda job: job.update(status=ended("Failed", "node 1"))
    assert run() == 4
    assert PATH not in cluster.objects


def test_a_job_that_never_ran_fails_too(cluster, caplog):
    add_pod(cluster, 0, phase="Pending")
    cluster.look = lambda job: job.update(status=ended("Failed", "DeadlineExceeded"))
    assert run() == 1
    assert "DeadlineExceeded" in caplog.text


def test_a_job_that_someone_deletes_is_a_failure(cluster):
    cluster.look = lambda job: cluster.objects.pop(PATH, None)
    assert run() == 1


def test_an_api_server_that_is_away_for_a_moment_does_not_end_it(training):
    look, answers = training.look, [(503, "etcd"), (503, "etcd")]

    def restarts(job):
        look(job)
        training.refuse, answers[:] = [*answers], []

    training.look = restarts
    assert run() == 0


def test_an_api_server_that_stays_away_ends_it(cluster):
    cluster.look = lambda _: cluster.refuse.extend([(503, "etcd")] * 1000)
    with pytest.raises(StorageError, match="503"):
        run(silence_s=0.1)


def test_a_log_that_is_not_there_yet_is_read_later(training):
    (pod,) = training.logs
    text, training.logs = training.logs, {}
    original = training.answer
    refused = [(400, {"message": "ContainerCreating"})]
    training.logs = text
    training.answer = lambda *request: refused.pop() if "/log" in request[1] and refused else original(*request)
    lines = []
    assert run(lines) == 0
    assert lines[0] == "epoch 0"
    assert pod in training.logs


def test_a_refused_job_says_what_to_do(cluster):
    cluster.refuse = [(403, "trainjobs is forbidden")]
    with pytest.raises(ConfigError, match="rights in deploy/pipeline"):
        run()


@pytest.mark.parametrize(("sent", "left"), [(signal.SIGTERM, False), (signal.SIGKILL, True)])
def test_a_canceled_step_takes_its_job_away_and_a_killed_one_leaves_it_to_the_next(cluster, sent, left):
    cluster.logs[add_pod(cluster, 0)] = "epoch 0\n"
    command = ["--run", "r1", "--namespace", "imaging", "--image", "cyto-dl:0.1.0", "--nodes", "2", *WORDS]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "components.cluster", *command],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert launcher.stdout
    assert launcher.stdout.readline() == "epoch 0\n"
    time.sleep(0.1)  # it waits for its next look
    launcher.send_signal(sent)
    assert launcher.wait(timeout=30) == (-sent if left else 128 + sent)
    assert (PATH in cluster.objects) == left
