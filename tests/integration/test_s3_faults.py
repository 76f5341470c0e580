"""Trainings whose checkpoints are on S3, and what goes wrong: a store that is down, damaged objects, two writers."""

import shutil
import threading

import pytest
from lightning import Callback

from cyto_dl.bundle.checkpoint import read_checkpoint
from cyto_dl.errors import StorageError
from cyto_dl.storage import ConflictError, fetch_published, publish, published
from cyto_dl.storage.s3 import exists, replace
from tests.integration.trainings_on_s3 import FOLDER, fit, pointer, remote
from tests.test_train import assert_same_weights

pytestmark = pytest.mark.integration


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


class Crash(Callback):
    """Stands for any error in the middle of the second epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            raise ArithmeticError


def delete(bucket, key):
    bucket.Object(key).delete()


def cut_off(bucket, key):
    bucket.put_object(Key=key, Body=bucket.Object(key).get()["Body"].read()[:-100])


@pytest.mark.parametrize("damage", [cut_off, delete], ids=["cut off", "absent"])
def test_a_damaged_last_checkpoint_is_found_and_the_best_one_takes_its_place(
    bucket, manifest_folder, tmp_path, caplog, damage
):
    folder = manifest_folder()
    with pytest.raises(ArithmeticError):
        fit(folder, tmp_path / "run", *remote(bucket), callbacks=[Crash()])
    damage(bucket, f"mine/checkpoints/{pointer(bucket)['object']}")
    shutil.rmtree(tmp_path / "run")
    weights = fit(folder, tmp_path / "run", *remote(bucket))
    assert "Going on from the best checkpoint, of step 2" in caplog.text
    assert_same_weights(weights, fit(folder, tmp_path / "uninterrupted"))
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


def test_of_two_first_writers_the_second_is_told_and_a_repeated_answer_is_not_an_error(bucket):
    address = f"s3://{bucket.name}/last.json"
    replace(address, b"one", etag=None)
    replace(address, b"one", etag=None)  # whose first answer was lost
    with pytest.raises(ConflictError, match="Somebody else has written it"):
        replace(address, b"two", etag=None)
    assert bucket.Object("last.json").get()["Body"].read() == b"one"


@pytest.mark.parametrize("earlier", [False, True], ids=["into an empty folder", "over an earlier checkpoint"])
def test_two_writers_at_once_never_leave_a_pointer_to_nothing(bucket, tmp_path, monkeypatch, earlier):
    folder = f"s3://{bucket.name}/{FOLDER}"
    for name in ("earlier", "mine", "other"):
        (tmp_path / f"{name}.ckpt").write_text(name)
    if earlier:
        publish(tmp_path / "earlier.ckpt", folder, "last", step=1)

    def other_was_faster(*arguments, **options):
        monkeypatch.setattr(published, "replace", replace)
        publish(tmp_path / "other.ckpt", folder, "last", step=2)
        replace(*arguments, **options)

    monkeypatch.setattr(published, "replace", other_was_faster)
    with pytest.raises(ConflictError):
        publish(tmp_path / "mine.ckpt", folder, "last", step=2)
    publish(tmp_path / "mine.ckpt", folder, "last", step=2)  # as the upload beside a training does
    assert exists(f"{folder}/{pointer(bucket)['object']}")
    assert fetch_published(folder, "last", tmp_path / "copy.ckpt") == 2
    assert (tmp_path / "copy.ckpt").read_text() == "mine"
