"""The schedules of a GAN's two optimizers step when what they count or watch is there."""

import pytest

from cyto_dl.errors import ConfigError
from tests.model.test_gan import fit_gan, gan
from tests.model.test_multitask import build


def scheduler(name, **settings):
    partial = {"_target_": f"torch.optim.lr_scheduler.{name}", "_partial_": True}
    return {**partial, **settings}


def test_schedules_step_by_batch_by_epoch_and_by_metric():
    by_step = {"scheduler": scheduler("StepLR", step_size=1, gamma=0.5), "interval": "step", "frequency": 2}
    plateau = {
        "scheduler": scheduler("ReduceLROnPlateau", patience=0, factor=0.1, threshold=1e9),  # never enough
        "monitor": "valid/stain/loss",
    }
    model = build(gan(lr_scheduler={"generator": by_step, "discriminator": plateau}))
    trainer = fit_gan(model, max_epochs=3, limit_val_batches=1)
    generator, discriminator = (optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers)
    assert generator == pytest.approx(1e-3 * 0.5**3)  # six batches, every second
    assert discriminator == pytest.approx(1e-3 * 0.1**3)  # three validations, and not the sanity check


def test_a_schedule_that_watches_what_is_not_reported_says_so():
    plateau = {"scheduler": scheduler("ReduceLROnPlateau"), "monitor": "valid/typo"}
    model = build(gan(lr_scheduler={"generator": plateau, "discriminator": scheduler("StepLR", step_size=1)}))
    with pytest.raises(ConfigError, match=r"model.lr_scheduler.generator watches 'valid/typo'.*valid/loss"):
        fit_gan(model, limit_val_batches=1)


def test_a_schedule_may_watch_a_metric_of_training():
    plateau = {
        "scheduler": scheduler("ReduceLROnPlateau", patience=0, factor=0.1, threshold=1e9),  # never enough
        "monitor": "train/discriminator/loss",
    }
    model = build(gan(lr_scheduler=dict.fromkeys(("generator", "discriminator"), plateau)))
    trainer = fit_gan(model, max_epochs=3, limit_val_batches=1)
    for optimizer in trainer.optimizers:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.1**3)  # once an epoch, from the first on


def test_a_schedule_that_watches_what_training_does_not_report_says_so():
    node = {"scheduler": scheduler("ReduceLROnPlateau"), "monitor": "train/typo"}
    model = build(gan(lr_scheduler={"generator": scheduler("StepLR", step_size=1), "discriminator": node}))
    with pytest.raises(ConfigError, match=r"discriminator watches 'train/typo'.*train/discriminator/loss"):
        fit_gan(model)
