"""A metric that nobody reports is found before the first step."""

import pytest

from cyto_dl.callbacks import check_monitors
from cyto_dl.config import compose_experiment, instantiate
from cyto_dl.errors import ConfigError
from cyto_dl.train import build_trainer

PLATEAU = "{scheduler: {_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, _partial_: true}, monitor: valid/los}"


def check(tmp_path, *overrides):
    quiet = ["trainer=cpu", "extras=notebook", "model.backbone.filters=[4,4,8,8]"]
    config = compose_experiment([*quiet, "data.path=m.csv", *overrides], output_dir=tmp_path)
    check_monitors(build_trainer(config), instantiate(config["model"], "model"), config)


@pytest.mark.parametrize("metric", ["valid/seg/dice_pooled", "valid/loss", "train/seg/loss"])
def test_what_a_model_reports_may_be_watched(tmp_path, metric):
    check(tmp_path, "experiment=im2im/segmentation", f"optimized_metric={metric}")


def test_a_gan_reports_the_losses_of_its_discriminator_too(tmp_path):
    monitor = ["spatial_dims=2", "callbacks.early_stopping.monitor=train/discriminator/loss"]
    check(tmp_path, "experiment=im2im/gan", *monitor)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["optimized_metric=val/seg/dice"], "optimized_metric is 'val/seg/dice'.*Did you mean valid/seg/dice?"),
        (["optimized_metric=valid/seg/dise"], "optimized_metric is 'valid/seg/dise'.*Choose .*valid/seg/iou"),
        (["callbacks.best.monitor=test/seg/dice"], "the monitor of ModelCheckpoint is 'test/seg/dice'"),
        (
            ["~model.lr_scheduler.generator", f"+model.lr_scheduler.generator={PLATEAU}"],
            "model.lr_scheduler.generator.monitor is 'valid/los'.*Did you mean valid/loss",
        ),
    ],
)
def test_a_metric_that_the_model_does_not_report_is_refused_by_name(tmp_path, overrides, says):
    with pytest.raises(ConfigError, match=says):
        check(tmp_path, "experiment=im2im/segmentation", *overrides)
