"""What may go wrong with images, their cache and the disk, in the commands that users run."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Callback

from cyto_dl.bundle import export_bundle
from cyto_dl.bundle.checkpoint import read_checkpoint
from cyto_dl.data.image import write_image
from cyto_dl.errors import StorageError
from cyto_dl.steps import collect_step, plan_step, predict_step
from tests.bundle.tiny import SHAPE, checkpoint_of, experiment, write_images
from tests.integration.process import environment, run
from tests.integration.test_s3 import upload
from tests.integration.trainings_on_s3 import EXTRA, fit
from tests.test_train import assert_same_weights, overrides_for

pytestmark = pytest.mark.integration
CYTO_DL = [sys.executable, "-m", "cyto_dl.cli"]


def on_a_small_disk(folder: Path, size: str, command: list[str | Path]) -> list[str | Path]:
    """The command with a disk of a size at `folder`, which only it sees; its last lines are what it leaves there.

    Root is not needed: in a user namespace everybody may mount a tmpfs.
    """
    folder.mkdir()
    script = f'mount -t tmpfs -o size={size} tmpfs "$0" && "$@"; code=$?; echo "left there:"; ls -A "$0"; exit $code'
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, folder, *command]


def training(folder, output_dir, cache_dir):
    given = [*overrides_for(folder, cache_dir=cache_dir), *EXTRA]
    return [sys.executable, "cyto_dl/train.py", *given, f"hydra.run.dir={output_dir}"]


def weights(output_dir):
    return read_checkpoint(output_dir / "checkpoints" / "last.ckpt")["state_dict"]


def test_a_training_whose_cache_has_no_room_goes_on_to_the_same_weights(manifest_folder, tmp_path):
    folder, disk = manifest_folder(), tmp_path / "small"
    ended = run(on_a_small_disk(disk, "64k", training(folder, tmp_path / "run", disk)))
    assert ended.returncode == 0, ended.stderr
    assert "the disk is full. The training goes on" in ended.stdout + ended.stderr
    left = ended.stdout.partition("left there:\n")[2].split()
    assert all(name.endswith(".pt") and len(name) == 67 for name in left), "no part of a file is left"
    assert_same_weights(weights(tmp_path / "run"), fit(folder, tmp_path / "with room"))


def test_copies_of_objects_that_do_not_fit_on_the_disk_are_one_message(bucket, store, tmp_path):
    bucket.put_object(Key="tiny/bundle.yaml", Body=b"#" * 10**6)
    disk = tmp_path / "small"
    command = on_a_small_disk(disk, "256k", [*CYTO_DL, "inspect", f"s3://{bucket.name}/tiny"])
    ended = run(command, values=store.variables | {"TMPDIR": str(disk)})
    assert ended.returncode == 3, ended.stderr
    assert "the disk is full, no copy of" in ended.stderr and "Set TMPDIR to a larger disk" in ended.stderr
    assert "Traceback" not in ended.stderr


class BeforeTheFourthStep(Callback):
    """Does something to the store from which the images of the training come."""

    def __init__(self, disturb):
        self.disturb = disturb

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            self.disturb()


def test_a_training_whose_images_are_in_a_store_that_is_down_waits_for_it(bucket, store, manifest_folder, tmp_path):
    folder = manifest_folder()
    on_s3 = [f"data.path={upload(folder, bucket, 'blobs')}/manifest.csv", "data.cache_dir=null"]
    back = threading.Timer(5, store.start)

    def outage():
        store.stop()
        back.start()

    found = fit(folder, tmp_path / "run", *on_s3, callbacks=[BeforeTheFourthStep(outage)])
    back.join()
    assert_same_weights(found, fit(folder, tmp_path / "undisturbed"))


def test_a_training_whose_images_are_refused_ends_at_once_and_goes_on_with_another_key(
    bucket, store, manifest_folder, tmp_path, monkeypatch
):
    folder, key = manifest_folder(), store.secret_key
    on_s3 = [f"data.path={upload(folder, bucket, 'blobs')}/manifest.csv", "data.cache_dir=null"]
    disturbance = BeforeTheFourthStep(lambda: store.change_key("another-key-of-the-tests"))
    try:
        with pytest.raises(StorageError, match=f"s3://{bucket.name}/blobs/.*SignatureDoesNotMatch.*Check AWS_ACCESS"):
            fit(folder, tmp_path / "run", *on_s3, callbacks=[disturbance])
        assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 2
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", store.secret_key)
        found = fit(folder, tmp_path / "run", *on_s3)
    finally:
        store.change_key(key)
    assert_same_weights(found, fit(folder, tmp_path / "undisturbed"))


def cut_off(content):
    return content[: len(content) // 2]


def flip_a_bit(content):
    """In the middle, where the pixels are."""
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit])
def test_a_training_with_damaged_files_in_its_cache_computes_them_again(manifest_folder, tmp_path, caplog, damage):
    folder = manifest_folder()
    expected = fit(folder, tmp_path / "first")
    files = list((folder / "cache").glob("*.pt"))
    whole = {file: torch.load(file)["tensors"]["raw"] for file in files}
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    assert_same_weights(fit(folder, tmp_path / "second"), expected)
    assert caplog.text.count("is damaged") >= len(files) >= 3
    assert all(torch.equal(torch.load(file)["tensors"]["raw"], raw) for file, raw in whole.items())


def test_two_trainings_that_share_a_cache_at_the_same_time_do_not_disturb_each_other(manifest_folder, tmp_path):
    folder, names = manifest_folder(), ("one", "other")
    processes = [
        subprocess.Popen(
            training(folder, tmp_path / name, folder / "cache"),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert "is damaged" not in said
    shared = {path.name for path in (folder / "cache").iterdir()}
    alone = fit(folder, tmp_path / "alone", f"data.cache_dir={tmp_path / 'own'}")
    assert shared == {path.name for path in (tmp_path / "own").iterdir()}
    for name in names:
        assert_same_weights(weights(tmp_path / name), alone)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """A bundle, and the paths of 50 images of which the 18th cannot be read."""
    folder = tmp_path_factory.mktemp("batch")
    bundle = export_bundle(checkpoint_of(experiment(write_images(folder)), folder / "run/best.ckpt"), folder / "bundle")
    rng, paths = np.random.default_rng(0), []
    for number in range(50):
        paths.append(folder / f"field_{number:02}.ome.tif")
        write_image(paths[-1], rng.integers(0, 900, (1, *SHAPE[2]), np.uint16))
    paths[17].write_bytes(paths[17].read_bytes()[:500])
    pd.DataFrame({"raw": paths}).to_csv(folder / "fields.csv", index=False)
    return bundle, folder / "fields.csv", paths


def assert_one_failed(table):
    assert list(np.flatnonzero(table["status"] != "ok")) == [17]
    assert table["status"][17] == "failed"
    assert "field_17.ome.tif" in table["error"][17]
    predicted = table.drop(index=17)
    assert predicted["error"].isna().all()
    assert all(Path(path).stat().st_size > 0 for path in predicted["seg"])


def test_one_of_fifty_images_that_cannot_be_read_is_a_failed_row_of_a_prediction(batch, tmp_path):
    bundle, manifest, paths = batch
    ended = run([*CYTO_DL, "predict", bundle, "--manifest", manifest, "--output", tmp_path / "out"])
    assert ended.returncode == 2, ended.stderr
    assert "1 of 50 images could not be predicted" in ended.stderr and "field_17.ome.tif" in ended.stderr
    table = pd.read_csv(tmp_path / "out/predictions.csv")
    assert table["path"].tolist() == [str(path) for path in paths]
    assert_one_failed(table)


def test_one_of_fifty_images_that_cannot_be_read_fails_no_pipeline_and_alone_is_tried_again(batch, tmp_path):
    bundle, manifest, paths = batch
    whole, output = paths[17].read_bytes(), str(tmp_path / "out")

    def pipeline(name):
        plan = str(tmp_path / name)
        shards = plan_step(str(manifest), str(bundle), output, column="raw", num_shards=3, plan_dir=plan)
        tables = [str(tmp_path / f"{name}-{shard}") for shard in shards]
        for shard, table in zip(shards, tables, strict=True):
            predict_step(plan, shard, str(bundle), output, table_path=table)
        ends = {"table_path": str(tmp_path / f"{name}.csv"), "metrics_path": str(tmp_path / f"{name}.json")}
        return collect_step(tables, output, **ends)

    assert pipeline("first") == {"images": 50, "predicted": 49, "kept": 0, "failed": 1}
    assert_one_failed(pd.read_csv(tmp_path / "out/predictions.csv"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.tif")}
    assert pipeline("second") == {"images": 50, "predicted": 0, "kept": 49, "failed": 1}
    try:
        write_image(paths[17], np.ones((1, *SHAPE[2]), np.uint16))
        assert pipeline("mended") == {"images": 50, "predicted": 1, "kept": 49, "failed": 0}
    finally:
        paths[17].write_bytes(whole)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items()), "what was done is not done again"
