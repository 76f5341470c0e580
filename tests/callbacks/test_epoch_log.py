"""One short line an epoch."""

import logging

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from cyto_dl.callbacks import EpochLog


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_line_has_the_losses_and_what_callbacks_watch_and_nothing_else(
    tmp_path, make_model, loader, make_trainer, caplog, spatial_dims
):
    caplog.set_level(logging.INFO)
    best = ModelCheckpoint(tmp_path, monitor="valid/seg/dice", mode="max")
    trainer = make_trainer(EpochLog(), best, EarlyStopping("valid/seg/dice", mode="max"), max_epochs=2)
    trainer.fit(make_model(spatial_dims), loader(spatial_dims, patch=16), loader(spatial_dims, num_images=1))
    lines = [record.getMessage() for record in caplog.records if record.name == "cyto_dl.callbacks.epoch_log"]
    assert len(trainer.callback_metrics) > 3  # the loss of each head
    for number, line in enumerate(lines, start=1):
        start, _, values = line.partition(": ")
        assert start == f"epoch {number} of 2"
        names = [each.split()[0] for each in values.rpartition(" (")[0].split(", ")]
        assert names == ["train/loss", "valid/loss", "valid/seg/dice"]
    assert len(lines) == 2


def test_a_metric_that_is_watched_but_not_there_yet_is_left_out(make_model, loader, make_trainer, caplog):
    caplog.set_level(logging.INFO)
    stopping = EarlyStopping("valid/seg/dice", strict=False)
    make_trainer(EpochLog(), stopping).fit(make_model(), loader(patch=16))
    (line,) = [record.getMessage() for record in caplog.records if record.name == "cyto_dl.callbacks.epoch_log"]
    assert line.startswith("epoch 1 of 1: train/loss ") and "," not in line
