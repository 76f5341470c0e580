"""The table of what each epoch reached is complete, also where a run goes on from a checkpoint alone."""

import math

import pandas as pd
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from cyto_dl.callbacks import AtomicCheckpointIO, LearningCurves


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_each_epoch_is_a_row_with_its_losses_metrics_and_seconds(
    tmp_path, make_model, loader, make_trainer, spatial_dims
):
    trainer = make_trainer(LearningCurves(tmp_path), max_epochs=2)
    trainer.fit(make_model(spatial_dims), loader(spatial_dims, patch=16), loader(spatial_dims, num_images=1))
    table = pd.read_csv(tmp_path / "learning_curves.csv")
    assert table["epoch"].tolist() == [1, 2]
    assert table["step"].tolist() == [4, 8]
    assert table["device"].tolist() == ["cpu", "cpu"]
    assert (table["seconds"] > 0).all()
    last = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert {"train/loss", "valid/loss", "valid/seg/dice"} <= set(last)
    assert table.iloc[-1][list(last)].astype(float).to_dict() == pytest.approx(last, nan_ok=True)


def test_a_run_that_goes_on_on_another_machine_has_the_rows_of_its_checkpoint(
    tmp_path, make_model, loader, make_trainer
):
    def train(folder, max_epochs, ckpt_path=None):
        checkpoints = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        callbacks = (LearningCurves(tmp_path / folder), checkpoints)
        trainer = make_trainer(*callbacks, plugins=[AtomicCheckpointIO()], max_epochs=max_epochs)
        trainer.fit(make_model(), loader(patch=16), loader(num_images=1), ckpt_path=ckpt_path, weights_only=True)
        return pd.read_csv(tmp_path / folder / "learning_curves.csv")

    first = train("first", 3)
    second = train("second", 4, tmp_path / "epoch=1.ckpt")  # the third epoch is run again
    assert second["epoch"].tolist() == [1, 2, 3, 4]
    pd.testing.assert_frame_equal(second[:2], first[:2])


def test_an_epoch_without_validation_has_no_values_of_the_one_before(tmp_path, make_model, loader, make_trainer):
    trainer = make_trainer(LearningCurves(tmp_path), max_epochs=3, check_val_every_n_epoch=2)
    trainer.fit(make_model(), loader(patch=16), loader(num_images=1))
    table = pd.read_csv(tmp_path / "learning_curves.csv")
    assert [math.isnan(value) for value in table["valid/loss"]] == [True, False, True]
    assert not table["train/loss"].isna().any()
