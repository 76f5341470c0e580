"""The upload beside a training: what it takes, when it is waited for, what becomes of a failure."""

import threading

import pytest
import torch
from lightning import LightningModule, Trainer

from cyto_dl.callbacks import RemoteCheckpoints, remote_checkpoints
from cyto_dl.errors import ConfigError, StorageError

ADDRESS = "s3://lab/runs/mine/checkpoints"


class Store:
    """The edge of the process: takes files while it is open, refuses them while `error` is set."""

    def __init__(self, monkeypatch):
        self.taken, self.error, self.is_open, self.asked = [], None, threading.Event(), threading.Event()
        monkeypatch.setattr(remote_checkpoints, "publish", self.publish)

    def publish(self, path, folder, name, *, step):
        self.asked.set()
        assert self.is_open.wait(60)
        if self.error:
            raise self.error
        self.taken.append((folder, name, step, torch.load(path, weights_only=True)["weight"]))


@pytest.fixture
def store(monkeypatch):
    return Store(monkeypatch)


def write(folder, name, step):
    torch.save({"global_step": step, "weight": step}, folder / "new")
    (folder / "new").rename(folder / f"{name}.ckpt")


def begin(folder):
    callback = RemoteCheckpoints(ADDRESS + "/", folder)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    callback.setup(trainer, LightningModule(), "fit")
    return lambda: callback.teardown(trainer, LightningModule(), "fit")


def test_a_training_goes_on_while_an_upload_takes_long_and_what_was_replaced_meanwhile_is_skipped(store, tmp_path):
    end = begin(tmp_path)
    write(tmp_path, "last", 1)
    assert store.asked.wait(60)
    for step in (2, 3):  # the first upload has not ended
        write(tmp_path, "last", step)
    store.is_open.set()
    end()
    assert store.taken == [(ADDRESS, "last", 1, 1), (ADDRESS, "last", 3, 3)]


def test_the_end_waits_for_both_checkpoints(store, tmp_path):
    store.is_open.set()
    end = begin(tmp_path)
    write(tmp_path, "best", 1)
    write(tmp_path, "last", 2)
    end()
    assert {name: step for _, name, step, _ in store.taken} == {"best": 1, "last": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_store_that_stays_away_is_an_error_at_the_end_only(store, tmp_path, monkeypatch):
    monkeypatch.setenv("CYTO_DL_S3_RETRY_S", "0")
    store.is_open.set()
    store.error = StorageError("s3://lab does not answer.")
    write(tmp_path, "last", 1)
    end = begin(tmp_path)
    with pytest.raises(StorageError, match=r"could not be uploaded.*does not answer\. The local files are complete"):
        end()


def test_an_address_that_is_not_on_s3_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"callbacks\.remote\.address is 'runs'"):
        RemoteCheckpoints("runs", tmp_path)
