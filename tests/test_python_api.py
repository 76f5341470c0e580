"""CytoDL from Python, as a notebook uses it: arrays in memory in, and an event loop that goes on meanwhile."""

import asyncio
import dataclasses
import signal
import threading

import numpy as np
import pandas as pd
import pytest
import yaml
from lightning import Callback

from cyto_dl.bundle import export_bundle, load_bundle
from cyto_dl.bundle.checkpoint import read_checkpoint
from cyto_dl.config import compose_experiment
from cyto_dl.errors import ConfigError, ManifestError
from cyto_dl.train import train, train_async
from tests.bundle.tiny import experiment, predictor_of, write_images
from tests.test_train import overrides_for


def in_memory(blobs, spatial_dims=2):
    """One row for training, validation and test each; columns as in `manifest_folder`."""
    made = {split: blobs(spatial_dims, seed=seed) for seed, split in enumerate(["train", "valid", "test"])}
    return {split: [{"raw": raw, "seg": labels}] for split, (raw, labels) in made.items()}


def config_in_memory(images, tmp_path, *extra, spatial_dims=2):
    overrides = overrides_for(tmp_path, spatial_dims=spatial_dims)
    config = compose_experiment([*overrides, *extra], output_dir=tmp_path / "run")
    config["data"]["path"] = images
    return config


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_model_of_arrays_in_memory_is_trained_tested_exported_and_continued(blobs, tmp_path, spatial_dims):
    images = in_memory(blobs, spatial_dims)
    config = config_in_memory(images, tmp_path, spatial_dims=spatial_dims)
    metrics = train(config)
    assert {"valid/seg/dice", "test/seg/dice"} <= set(metrics)

    described = "in memory: 1 train, 1 valid, 1 test"
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["path"] == described
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")["config"]["data"]["path"] == described
    assert config["data"]["path"] is images

    raw = images["test"][0]["raw"]
    bundle = load_bundle(export_bundle(tmp_path / "run", tmp_path / "bundle", sample=raw))
    assert bundle.predict(raw)["seg"].shape == (1, *raw.shape)
    with pytest.raises(ConfigError, match="Or give an image for the bundle's sample"):
        export_bundle(tmp_path / "run", tmp_path / "another")

    config["trainer"]["max_epochs"] = 2
    train(config)
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2  # a step an epoch


@pytest.mark.parametrize("kind", [list, pd.DataFrame])
def test_rows_in_memory_may_say_their_split_in_a_column(blobs, tmp_path, kind):
    rows = [row | {"split": split} for split, found in in_memory(blobs).items() for row in found]
    assert "test/seg/dice" in train(config_in_memory(kind(rows), tmp_path))
    assert "path: 'in memory: 3 rows'" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_manifest_may_be_given_as_a_path_object(manifest_folder, tmp_path):
    path = manifest_folder() / "manifest.csv"
    assert "valid/seg/dice" in train(config_in_memory(path, tmp_path, "test=false"))
    assert f"path: {path}" in (tmp_path / "run" / "config.yaml").read_text()


class WaitForTheEventLoop(Callback):
    """Holds the training until the event loop has noticed that it began: blocked by it, the loop never would."""

    began, noticed = threading.Event(), threading.Event()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.began.set()
        assert self.noticed.wait(timeout=60)


WAIT = "+callbacks.wait={_target_: tests.test_python_api.WaitForTheEventLoop}"


async def began():
    while not WaitForTheEventLoop.began.is_set():
        await asyncio.sleep(0.001)


@pytest.fixture
def waiting():
    """The events of `WaitForTheEventLoop`, as if nothing had happened yet."""
    for event in (WaitForTheEventLoop.began, WaitForTheEventLoop.noticed):
        event.clear()


@pytest.mark.usefixtures("waiting")
def test_the_event_loop_goes_on_while_a_training_is_awaited(blobs, tmp_path):
    async def notebook():
        training = asyncio.create_task(train_async(config_in_memory(in_memory(blobs), tmp_path, WAIT)))
        await began()
        WaitForTheEventLoop.noticed.set()
        return await training

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    metrics = asyncio.run(notebook())
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert metrics == train(config_in_memory(in_memory(blobs), tmp_path / "again"))


@pytest.mark.usefixtures("waiting")
def test_a_cancelled_training_ends_at_its_next_batch_and_goes_on_when_it_is_awaited_again(blobs, tmp_path):
    config = config_in_memory(in_memory(blobs), tmp_path, WAIT, "trainer.max_epochs=100000", "test=false")

    async def press_stop():
        training = asyncio.create_task(train_async(config))
        await began()
        training.cancel()
        await asyncio.sleep(0)  # the cancellation arrives before the batch that must notice it
        WaitForTheEventLoop.noticed.set()
        await training

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(press_stop())
    config["trainer"]["max_epochs"] = 1
    assert "valid/seg/dice" in asyncio.run(train_async(config))


def test_errors_of_an_awaited_training_are_those_of_train(blobs, tmp_path):
    config = config_in_memory(in_memory(blobs), tmp_path, "data.patch_shape=[512,512]")
    with pytest.raises(ManifestError, match=r"data\.patch_shape"):
        asyncio.run(train_async(config))


def test_trainings_that_are_awaited_together_run_one_after_the_other(blobs, tmp_path):
    async def both():
        configs = [config_in_memory(in_memory(blobs), tmp_path / name, "test=false") for name in ("one", "other")]
        return await asyncio.gather(*map(train_async, configs))

    one, other = asyncio.run(both())
    assert one == other == train(config_in_memory(in_memory(blobs), tmp_path / "alone", "test=false"))


@pytest.fixture
def predictor(tmp_path):
    return predictor_of(experiment(write_images(tmp_path)))


def test_the_event_loop_goes_on_while_a_prediction_is_awaited(predictor):
    began, noticed = threading.Event(), threading.Event()

    def wait(logits):
        began.set()
        assert noticed.wait(timeout=60)  # for ever, if the prediction blocked the loop
        return logits

    async def server():
        waiting = dataclasses.replace(predictor, postprocess={**predictor.postprocess, "seg": wait})
        prediction = asyncio.create_task(waiting.predict_async(image, heads=["seg"]))
        while not began.is_set():
            await asyncio.sleep(0.001)
        noticed.set()
        return await prediction

    image = np.random.default_rng(0).normal(200, 20, (40, 56))
    assert asyncio.run(server())["seg"].shape == (1, 40, 56)


def test_predictions_that_are_awaited_together_are_those_of_predict(predictor):
    async def together():
        return await asyncio.gather(*map(predictor.predict_async, images))

    images = [np.random.default_rng(seed).normal(200, 20, (40, 56)) for seed in range(8)]
    for image, predicted in zip(images, asyncio.run(together()), strict=True):
        for head, expected in predictor.predict(image).items():
            np.testing.assert_array_equal(predicted[head], expected)
