"""A GAN that was stopped goes on as if it had not been."""

import pytest
from lightning import Callback

from cyto_dl.errors import ConfigError
from tests.test_train import assert_same_weights, run, weights


class StopAtStep(Callback):
    """Ends a run as an error does, before the given step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise ConnectionAbortedError


def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_bit_for_bit(manifest_folder, tmp_path):
    folder = manifest_folder()
    extra = ["trainer.max_epochs=2", "test=false", "model.adversarial.noise_epochs=3", "~callbacks.previews"]
    extra += ["callbacks.last.every_n_epochs=null", "callbacks.last.every_n_train_steps=1"]
    stop = "+callbacks.stop={_target_: tests.model.test_gan_resume.StopAtStep, step: 3}"  # the second step of epoch two
    with pytest.raises(ConnectionAbortedError):
        run(folder, tmp_path / "stopped", *extra, stop, experiment="im2im/gan")
    run(folder, tmp_path / "stopped", *extra, experiment="im2im/gan")
    run(folder, tmp_path / "whole", *extra, experiment="im2im/gan")
    assert_same_weights(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


def test_checkpoints_by_time_which_lightning_would_never_write_are_refused(manifest_folder, tmp_path):
    half_an_hour = "+callbacks.last.train_time_interval={_target_: datetime.timedelta, minutes: 30}"
    with pytest.raises(ConfigError, match=r"train_time_interval.*every_n_train_steps"):
        run(
            manifest_folder(),
            tmp_path / "run",
            "callbacks.last.every_n_epochs=null",
            half_an_hour,
            experiment="im2im/gan",
        )
