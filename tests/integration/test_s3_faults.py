"""Trainings whose checkpoints are on S3, and what goes wrong: killed nodes, a store that is down, damaged objects."""

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time

import boto3
import pytest
from lightning import Callback

from cyto_dl.bundle.checkpoint import read_checkpoint
from cyto_dl.config import compose_experiment
from cyto_dl.errors import StorageError
from cyto_dl.storage import fetch_published, publish
from cyto_dl.train import train
from tests.integration.object_store import object_store
from tests.integration.process import ROOT, run
from tests.test_train import assert_same_weights, overrides_for

pytestmark = pytest.mark.integration
EXTRA = ["trainer.max_epochs=3", "test=false", "~callbacks.previews", "+model.backbone.dropout=0.2"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with object_store(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture
def bucket(store, monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (store.variables | {"CYTO_DL_S3_RETRY_S": "60", "TMPDIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the keys of the test before
    monkeypatch.setattr(tempfile, "tempdir", None)  # so that it looks at TMPDIR
    name = f"runs-{len(boto3.client('s3').list_buckets()['Buckets'])}"
    boto3.client("s3").create_bucket(Bucket=name)
    return boto3.resource("s3").Bucket(name)


def remote(bucket):
    return ["callbacks=s3", f"callbacks.remote.address=s3://{bucket.name}/mine/checkpoints"]


def fit(folder, output_dir, *extra, callbacks=()):
    config = compose_experiment([*overrides_for(folder), *EXTRA, *extra], output_dir=output_dir)
    train(config, callbacks=callbacks)
    return read_checkpoint(output_dir / "checkpoints" / "last.ckpt")["state_dict"]


def pointer(bucket, name="last"):
    return json.loads(bucket.Object(f"mine/checkpoints/{name}.json").get()["Body"].read())


def keys(bucket):
    return sorted(each.key.removeprefix("mine/checkpoints/") for each in bucket.objects.all())


class EndWhenPublished(Callback):
    """Ends the process as a node does, at a step and when the checkpoint before it is on S3."""

    def __init__(self, step, bucket, signal_number):
        self.step, self.bucket, self.signal_number = step, bucket, signal_number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            deadline = time.monotonic() + 60
            while not list(
                boto3.resource("s3").Bucket(self.bucket).objects.filter(Prefix="mine/checkpoints/last.json")
            ):
                assert time.monotonic() < deadline, "no checkpoint was published"
                time.sleep(0.1)
            os.kill(os.getpid(), self.signal_number)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_whose_node_is_lost_goes_on_from_s3_to_the_same_weights(bucket, store, manifest_folder, tmp_path, ending):
    folder = manifest_folder()
    end = f"_target_: {__name__}.EndWhenPublished, step: 3, bucket: {bucket.name}, signal_number: {int(ending)}"
    given = [*overrides_for(folder), *EXTRA, *remote(bucket), f"+callbacks.end={{{end}}}"]
    command = [sys.executable, "cyto_dl/train.py", *given, f"hydra.run.dir={tmp_path / 'lost'}"]
    ended = run(command, values=store.variables | {"PYTHONPATH": str(ROOT)})
    assert ended.returncode == (-ending if ending == signal.SIGKILL else 143), ended.stderr
    assert pointer(bucket)["step"] == (2 if ending == signal.SIGKILL else 4)  # SIGTERM saves after its batch
    shutil.rmtree(tmp_path / "lost")

    weights = fit(folder, tmp_path / "lost", *remote(bucket))
    assert_same_weights(weights, fit(folder, tmp_path / "uninterrupted"))
    assert pointer(bucket)["step"] == 6
    assert keys(bucket) == sorted(
        ["best.json", "last.json", pointer(bucket)["object"], pointer(bucket, "best")["object"]]
    )


class StopTheStore(Callback):
    """Switches the store off when the training has begun, and on again after some seconds, or never."""

    def __init__(self, store, *, for_s=None):
        self.store, self.for_s = store, for_s

    def on_train_start(self, trainer, pl_module):
        self.store.stop()
        if self.for_s:
            threading.Timer(self.for_s, self.store.start).start()


def test_a_training_outlasts_a_store_that_is_down(bucket, store, manifest_folder, tmp_path):
    fit(manifest_folder(), tmp_path / "run", *remote(bucket), callbacks=[StopTheStore(store, for_s=8)])
    assert pointer(bucket)["step"] == 6
    assert fetch_published(f"s3://{bucket.name}/mine/checkpoints", "last", tmp_path / "copy.ckpt") == 6
    assert (tmp_path / "copy.ckpt").read_bytes() == (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()


def test_a_store_that_never_comes_back_fails_the_run_at_its_end_and_the_next_start_uploads(
    bucket, store, manifest_folder, tmp_path, monkeypatch
):
    folder = manifest_folder()
    monkeypatch.setenv("CYTO_DL_S3_RETRY_S", "1")
    try:
        with pytest.raises(StorageError, match=r"could not be uploaded to s3://.*The local files are complete"):
            fit(folder, tmp_path / "run", *remote(bucket), callbacks=[StopTheStore(store)])
        assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 6
        shutil.copytree(tmp_path / "run", tmp_path / "kept")
        with pytest.raises(StorageError, match="Could not connect"):  # nothing to go on from: not silently anew
            fit(folder, tmp_path / "elsewhere", *remote(bucket))
    finally:
        store.start()
    fit(folder, tmp_path / "kept", *remote(bucket))
    assert pointer(bucket)["step"] == 6


@pytest.mark.parametrize(
    ("variables", "address", "says"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "a-wrong-secret"}, "s3://{}/mine", "SignatureDoesNotMatch.*Check AWS_ACCESS_KEY_ID"),
        ({}, "s3://no-such-bucket/mine", "NoSuchBucket.*create it"),
    ],
    ids=["secret", "bucket"],
)
def test_what_will_not_pass_ends_a_run_before_its_first_step(
    bucket, manifest_folder, tmp_path, monkeypatch, variables, address, says
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    given = ["callbacks=s3", f"callbacks.remote.address={address.format(bucket.name)}"]
    with pytest.raises(StorageError, match=says):
        fit(manifest_folder(), tmp_path / "run", *given)
    assert not list(tmp_path.glob("run/checkpoints/*"))


def delete(bucket, key):
    bucket.Object(key).delete()


def cut_off(bucket, key):
    bucket.put_object(Key=key, Body=bucket.Object(key).get()["Body"].read()[:-100])


@pytest.mark.parametrize("damage", [cut_off, delete], ids=["cut off", "absent"])
def test_a_damaged_last_checkpoint_is_found_and_the_best_one_takes_its_place(
    bucket, manifest_folder, tmp_path, caplog, damage
):
    folder = manifest_folder()
    fit(folder, tmp_path / "run", *remote(bucket), "trainer.max_epochs=1")
    damage(bucket, f"mine/checkpoints/{pointer(bucket)['object']}")
    shutil.rmtree(tmp_path / "run")
    fit(folder, tmp_path / "run", *remote(bucket))
    assert "Going on from the best checkpoint, of step 2" in caplog.text
    assert pointer(bucket)["step"] == 6
    assert fetch_published(f"s3://{bucket.name}/mine/checkpoints", "last", tmp_path / "copy.ckpt") == 6


@pytest.mark.parametrize(
    ("damage", "says"),
    [(cut_off, "is damaged: it has"), (delete, "which does not exist")],
    ids=["cut off", "absent"],
)
def test_a_published_file_that_is_damaged_is_not_fetched(bucket, tmp_path, damage, says):
    (tmp_path / "one.ckpt").write_bytes(b"content" * 100)
    folder = f"s3://{bucket.name}/mine/checkpoints"
    publish(tmp_path / "one.ckpt", folder, "last", step=1)
    damage(bucket, f"mine/checkpoints/{pointer(bucket)['object']}")
    with pytest.raises(StorageError, match=says):
        fetch_published(folder, "last", tmp_path / "copy.ckpt")
    assert not (tmp_path / "copy.ckpt").exists()
