"""Trainings that are killed at a random moment, or whose store fails, and go on from S3 to the same weights."""

import logging
import os
import random
import shutil
import signal
import sys
import threading
import time

import boto3
import pytest
import torch
from lightning import Callback

from cyto_dl.bundle.checkpoint import read_checkpoint
from cyto_dl.callbacks import RemoteCheckpoints
from cyto_dl.errors import StorageError
from cyto_dl.storage import fetch_published, sha256
from tests.integration.process import ROOT, run
from tests.integration.trainings_on_s3 import EXTRA, FOLDER, fit, keys, pointer, published_step, remote
from tests.test_train import assert_same_weights, overrides_for

pytestmark = pytest.mark.integration
MOMENTS = ("on_train_batch_start", "on_before_optimizer_step", "on_validation_batch_start")


class EndAt(Callback):
    """Ends the process as a node does; for SIGKILL when what was complete an epoch ago is on S3."""

    def __init__(self, step, moment, bucket, signal_number):
        self.step, self.bucket, self.signal_number = step, bucket, signal_number
        setattr(self, moment, self.end)

    def end(self, trainer, *_):
        if trainer.global_step < self.step or trainer.sanity_checking:
            return
        complete = 2 * ((trainer.global_step - (not trainer.training)) // 2)
        deadline = time.monotonic() + 120
        while self.signal_number == signal.SIGKILL and (published_step(self.bucket) < complete):
            assert time.monotonic() < deadline, "no checkpoint was published"
            time.sleep(0.1)
        os.kill(os.getpid(), self.signal_number)


def end_at(step, moment, bucket, signal_number):
    """Hydra makes it from a bucket's name."""
    return EndAt(step, moment, boto3.resource("s3").Bucket(bucket), signal_number)


@pytest.mark.parametrize("seed", [0, 2, 5])  # which draw each of the moments, in the first, second and third epoch
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_lost_at_a_random_moment_goes_on_from_s3_to_the_same_weights(
    bucket, store, manifest_folder, tmp_path, ending, seed, caplog
):
    draw = random.Random(seed)
    step, moment = draw.randint(1, 4), draw.choice(MOMENTS)
    folder = manifest_folder()
    end = f"_target_: {__name__}.end_at, step: {step}, moment: {moment}, bucket: {bucket.name}"
    end = f"+callbacks.end={{{end}, signal_number: {int(ending)}}}"
    given = [*overrides_for(folder), *EXTRA, *remote(bucket), end]
    command = [sys.executable, "cyto_dl/train.py", *given, f"hydra.run.dir={tmp_path / 'lost'}"]
    ended = run(command, values=store.variables | {"PYTHONPATH": str(ROOT)})
    assert ended.returncode == (-ending if ending == signal.SIGKILL else 143), ended.stderr
    reached = published_step(bucket)
    assert 0 < reached < 6 or (ending == signal.SIGKILL and step < 3)  # else the first epoch was complete
    shutil.rmtree(tmp_path / "lost")

    with caplog.at_level(logging.INFO):
        weights = fit(folder, tmp_path / "elsewhere", *remote(bucket))
    assert ("fetched the checkpoints of this run" in caplog.text) == (reached > 0)
    assert_same_weights(weights, fit(folder, tmp_path / "uninterrupted"))
    best = [read_checkpoint(tmp_path / name / "checkpoints" / "best.ckpt") for name in ("elsewhere", "uninterrupted")]
    assert_same_weights(*(each["state_dict"] for each in best))
    assert pointer(bucket)["step"] == 6
    assert keys(bucket) == sorted(
        ["best.json", "last.json", pointer(bucket)["object"], pointer(bucket, "best")["object"]]
    )


class LargeState(Callback):
    """Makes a checkpoint as large as one of a real network: 80 MB, five parts of an upload."""

    def state_dict(self):
        return {"large": torch.arange(10 * 2**20)}


class OutageInAnUpload(Callback):
    """Stops the store for half a minute while parts of a checkpoint are on their way; the training waits for that."""

    def __init__(self, store, bucket):
        self.store, self.bucket = store, bucket
        self.is_down, self.was_down_at_the_end = threading.Event(), False
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        client, deadline = boto3.Session().client("s3"), time.monotonic() + 120
        while not client.list_multipart_uploads(Bucket=self.bucket.name).get("Uploads"):
            if time.monotonic() > deadline:
                return
        self.store.stop()
        self.is_down.set()
        time.sleep(30)
        self.is_down.clear()
        self.store.start()

    def on_train_start(self, trainer, pl_module):
        self.thread.start()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            assert self.is_down.wait(120), "no upload was seen"

    def on_train_end(self, trainer, pl_module):
        self.was_down_at_the_end = self.is_down.is_set()


def test_a_store_that_is_down_for_half_a_minute_in_an_upload_neither_stops_nor_delays_a_training(
    bucket, store, manifest_folder, tmp_path
):
    folder, outage = manifest_folder(), OutageInAnUpload(store, bucket)
    weights = fit(folder, tmp_path / "run", *remote(bucket), callbacks=[LargeState(), outage])
    outage.thread.join()
    assert outage.was_down_at_the_end
    assert_same_weights(weights, fit(folder, tmp_path / "undisturbed", callbacks=[LargeState()]))
    for name in ("best", "last"):
        fetch_published(f"s3://{bucket.name}/{FOLDER}", name, tmp_path / f"{name}.ckpt")
        assert sha256(tmp_path / f"{name}.ckpt") == sha256(tmp_path / "run" / "checkpoints" / f"{name}.ckpt")
    assert len(keys(bucket)) == 4, "nothing half-written is left where a reader looks"


class Crash(Callback):
    """Stands for any error in the middle of the second epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            raise ArithmeticError


def test_a_run_that_begins_while_the_store_is_down_waits_and_goes_on(bucket, store, manifest_folder, tmp_path):
    folder = manifest_folder()
    with pytest.raises(ArithmeticError):
        fit(folder, tmp_path / "lost", *remote(bucket), callbacks=[Crash()])
    shutil.rmtree(tmp_path / "lost")
    store.stop()
    back = threading.Timer(5, store.start)
    back.start()
    weights = fit(folder, tmp_path / "run", *remote(bucket))
    back.join()
    assert_same_weights(weights, fit(folder, tmp_path / "uninterrupted"))


class ChangeTheKey(Callback):
    """Has the store refuse the training's key from its fourth step on."""

    def __init__(self, store):
        self.store = store

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            self.store.change_key("another-key-of-the-tests")


def test_a_key_that_is_refused_in_a_training_fails_it_at_its_end_and_the_next_start_uploads(
    bucket, store, manifest_folder, tmp_path, monkeypatch
):
    folder, key = manifest_folder(), store.secret_key
    try:
        with pytest.raises(StorageError, match=r"SignatureDoesNotMatch(.|\n)*The local files are complete") as error:
            fit(folder, tmp_path / "run", *remote(bucket), callbacks=[ChangeTheKey(store)])
        assert "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in str(error.value)
        assert key not in str(error.value)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", store.secret_key)
        weights = fit(folder, tmp_path / "run", *remote(bucket))
    finally:
        store.change_key(key)
    assert_same_weights(weights, fit(folder, tmp_path / "undisturbed"))
    assert pointer(bucket)["step"] == 6


def test_a_refused_upload_is_not_waited_for(tmp_path, monkeypatch, bucket):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    monkeypatch.setenv("CYTO_DL_S3_RETRY_S", "3600")
    torch.save({"global_step": 1}, tmp_path / "last.ckpt")
    callback = RemoteCheckpoints(f"s3://{bucket.name}/mine", tmp_path)

    class Trainer:
        is_global_zero, fast_dev_run = True, False

    callback.setup(Trainer(), None, "fit")
    with pytest.raises(StorageError, match="SignatureDoesNotMatch"):
        callback.teardown(Trainer(), None, "fit")
