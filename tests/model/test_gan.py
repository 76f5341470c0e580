"""Both players of a GAN learn, by their own optimizers and schedules, in every precision."""

import copy
import math

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from cyto_dl.data import DataframeDatamodule, ReadImaged
from cyto_dl.errors import ConfigError, TrainingError
from cyto_dl.model.losses.adversarial import ADVERSARIAL_LOSSES
from tests.model.test_multitask import DIMS, PATCH, build, config, sample

SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 1.0}
LEARNT = ("generator", "discriminator")


def gan(spatial_dims=2, *, adversarial=None, channels=1, **changes):
    """A tiny generator of `raw` from `raw`, and its discriminator."""
    node = config(
        spatial_dims,
        task_heads={
            "stain": {
                "head": {"_target_": "cyto_dl.model.heads.IdentityHead"},
                "loss": {"_target_": "torch.nn.L1Loss"},
            }
        },
        postprocessing=None,
        discriminator={
            "_target_": "cyto_dl.model.discriminators.MultiScalePatchDiscriminator",
            "spatial_dims": spatial_dims,
            "source_channels": 1,
            "target_channels": channels,
            "channels": 4,
            "strides": {2: [2, 2], 3: [[1, 2, 2], [1, 2, 2]]}[spatial_dims],
        },
        adversarial={"weight": 0.1, "noise_std": 0.1, "noise_epochs": 4, **(adversarial or {})},
    )
    for key in ("optimizer", "lr_scheduler"):
        node[key] = {role: copy.deepcopy(node[key]["generator"]) for role in LEARNT}
    return {**node, "_target_": "cyto_dl.model.GAN", **changes}


def pictures(space, num=4):
    return [
        {"raw": (one := sample(space, seed))["raw"], "stain": one["raw"] * 2, "path": one["path"]}
        for seed in range(num)
    ]


def fit_gan(model, spatial_dims=2, *, train=None, **settings):
    train = train or DataLoader(pictures(PATCH[spatial_dims]), batch_size=2)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(accelerator="cpu", **{"max_epochs": 1, "limit_val_batches": 0, **quiet, **settings})
    trainer.fit(model, train, DataLoader(pictures(PATCH[spatial_dims], 1)))
    return trainer


def parameters_of(model, role):
    of_discriminator = role == "discriminator"
    return {
        name: value.detach().clone()
        for name, value in model.named_parameters()
        if name.startswith("discriminator.") == of_discriminator
    }


def moved(model, before):
    """The length of the way that each role's weights have gone."""
    return {
        role: math.sqrt(
            sum((value - old[name]).square().sum().item() for name, value in parameters_of(model, role).items())
        )
        for role, old in before.items()
    }


def snapshot(model):
    return {role: parameters_of(model, role) for role in LEARNT}


class Recorder(nn.Module):
    """A discriminator that remembers the shapes it saw."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.seen = []

    def forward(self, source, image):
        self.seen.append((tuple(source.shape), tuple(image.shape)))
        return [[image * self.weight, image.mean(dim=1, keepdim=True) * self.weight]]


@DIMS
@pytest.mark.parametrize("loss", ADVERSARIAL_LOSSES)
def test_both_players_learn_and_report(spatial_dims, loss):
    torch.manual_seed(0)
    model = build(gan(spatial_dims, adversarial={"loss": loss}))
    before, passes = snapshot(model), []
    model.discriminator.register_forward_hook(lambda *_: passes.append(1))
    trainer = fit_gan(model, spatial_dims)

    assert all(way > 0 for way in moved(model, before).values())
    assert trainer.global_step == 2  # batches, though each has two steps
    assert len(passes) == (4 if loss == "wasserstein" else 2)  # once a batch; a penalty looks between the images, too
    assert all(group["lr"] == 0.5e-3 for optimizer in trainer.optimizers for group in optimizer.param_groups)
    expected = {"loss", "stain/loss", "generator/loss", "adversarial/loss", "feature_matching/loss"}
    expected |= {"discriminator/loss", "discriminator/real", "discriminator/fake"}
    expected |= {"discriminator/gradient_penalty"} if loss == "wasserstein" else set()
    assert set(trainer.callback_metrics) == {f"train/{name}" for name in expected}
    assert all(torch.isfinite(value) for value in trainer.callback_metrics.values())


@DIMS
def test_validation_and_the_checkpoint_are_those_of_the_generator(spatial_dims):
    model = build(gan(spatial_dims))
    model.discriminator.register_forward_hook(lambda *_: pytest.fail("the discriminator judged in a validation"))
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    images = DataLoader(pictures(PATCH[spatial_dims], 1))
    (metrics,) = trainer.validate(model, images, verbose=False)
    assert {"valid/loss", "valid/stain/loss", "valid/stain/pearson"} <= set(metrics)
    assert {name.split(".")[0] for name in model.state_dict()} == {"network", "discriminator"}


def test_without_weight_the_generator_learns_as_without_a_discriminator():
    def train(node):
        torch.manual_seed(0)
        model = build(node)
        fit_gan(model)
        return {name: value for name, value in model.state_dict().items() if name.startswith("network.")}

    node = gan(adversarial={"weight": 0.0, "feature_matching": 0.0, "noise_std": 0.0})
    alone = {key: value for key, value in node.items() if key not in ("discriminator", "adversarial")}
    alone |= {"_target_": "cyto_dl.model.MultiTaskIm2Im"}
    with_discriminator, without = train(node), train(alone)
    for name, value in without.items():  # + 0 * gradient is exact
        assert torch.equal(value, with_discriminator[name]), name


@DIMS
def test_bfloat16_trains_both(spatial_dims):
    torch.manual_seed(0)
    model = build(gan(spatial_dims, adversarial={"loss": "wasserstein"}))
    before = snapshot(model)
    trainer = fit_gan(model, spatial_dims, precision="bf16-mixed")
    assert all(way > 0 for way in moved(model, before).values())
    assert all(torch.isfinite(value) for value in trainer.callback_metrics.values())
    assert all(value.dtype == torch.float32 for value in model.parameters())


def test_a_loss_scale_that_changes_with_every_step_changes_neither_players_step():
    def train(scaler):
        torch.manual_seed(0)
        model = build(gan(optimizer={role: {**SGD, "lr": 0.01} for role in LEARNT}))
        before = snapshot(model)
        fit_gan(model, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
        return moved(model, before)

    growing = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=1)  # doubles after every step
    scaled, plain = train(growing), train(torch.amp.GradScaler("cpu", enabled=False))
    assert growing.get_scale() == 2.0**8
    for role in LEARNT:  # half precision keeps other small gradients; a scale that is off would double a step
        assert scaled[role] == pytest.approx(plain[role], rel=0.02)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
@pytest.mark.parametrize("role", LEARNT)
def test_gradients_are_clipped_per_role(role, precision):
    torch.manual_seed(0)
    model = build(gan(optimizer=dict.fromkeys(LEARNT, SGD), gradient_clip_val={role: 1e-4}))
    before = snapshot(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)] if precision == "16-mixed" else []
    fit_gan(model, limit_train_batches=1, plugins=plugins)
    way = moved(model, before)
    (other,) = set(LEARNT) - {role}
    assert way[role] == pytest.approx(1e-4, rel=0.01)  # weights near 1 keep seven digits
    assert way[other] > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_clip_val": 1.0}, "model.gradient_clip_val.generator and model.gradient_clip_val.discriminator"),
        ({"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches is not possible.*data.batch_size"),
    ],
)
def test_settings_of_the_trainer_for_one_optimizer_are_refused_with_what_to_set_instead(settings, message):
    with pytest.raises(ConfigError, match=message):
        fit_gan(build(gan()), **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"generator": SGD}}, "model.optimizer.discriminator is missing"),
        ({"lr_scheduler": {"discriminator": SGD}}, "lr_scheduler.generator is missing"),
        ({"discriminator": None}, r"model.discriminator is missing.*MultiScalePatchDiscriminator"),
        ({"discriminator": {"channels": 4}}, "model.discriminator is a dict, no torch.nn.Module"),
        (
            {"adversarial": {"loss": "hinge", "noise": 1}},
            "model.adversarial.noise: unknown, choose one of loss, weight",
        ),
        ({"gradient_clip_val": {"critic": 1}}, "gradient_clip_val.critic: unknown, choose one of generator, discrim"),
    ],
)
def test_what_is_missing_or_wrong_is_told_by_its_key(changes, message):
    from hydra.errors import InstantiationException

    with pytest.raises(InstantiationException) as told:
        build(gan(**changes))
    cause = told.value.__cause__
    assert isinstance(cause, ConfigError)
    with pytest.raises(ConfigError, match=message):
        raise cause


def test_masks_alone_need_no_discriminator():
    from hydra.errors import InstantiationException

    mask = {
        "head": {"_target_": "cyto_dl.model.heads.IdentityHead"},
        "loss": {"_target_": "torch.nn.BCEWithLogitsLoss"},
    }
    with pytest.raises(InstantiationException, match="no head that predicts intensities"):
        build(gan(task_heads={"mask": mask}))


def test_targets_that_no_training_image_has_together_cannot_be_judged():
    node = gan(task_heads={name: gan()["task_heads"]["stain"] for name in ("stain", "other")})
    image = np.ones((16, 16), np.float32)
    rows = [{"raw": image, "stain": image}, {"raw": image + 1, "other": image}]
    data = DataframeDatamodule(
        path={"train": rows},
        columns={"raw": "raw", "stain": "stain", "other": "other"},
        transforms=[ReadImaged(["raw", "stain", "other"], 2)],
    )
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ConfigError, match="no training image has all of the targets stain, other"):
        trainer.fit(build(node), data)


@pytest.mark.parametrize("role", LEARNT)
def test_a_loss_that_is_not_finite_names_the_images_and_the_role(role):
    torch.manual_seed(0)
    learning = {each: {**SGD, "lr": 1e30 if each == role else 0.0} for each in LEARNT}
    with pytest.raises(TrainingError, match=rf"image_\d.tif.*lower model.optimizer.{role}.lr.*clip_val.{role}"):
        fit_gan(build(gan(optimizer=learning)), max_epochs=3)


def heads_of_two_scales(spatial_dims):
    common = {"in_channels": 4, "spatial_dims": spatial_dims}
    return {
        "mask": {
            "head": {"_target_": "cyto_dl.model.heads.ConvolutionHead", "out_channels": 1, **common},
            "loss": {"_target_": "torch.nn.BCEWithLogitsLoss"},
        },
        "fine": {
            "head": {"_target_": "cyto_dl.model.heads.UpsamplingHead", "out_channels": 2, **common},
            "loss": {"_target_": "torch.nn.L1Loss"},
        },
    }


@DIMS
def test_the_discriminator_sees_the_intensities_of_the_images_that_have_them_on_the_targets_grid(spatial_dims):
    node = gan(spatial_dims, task_heads=heads_of_two_scales(spatial_dims), discriminator=None)
    node["backbone"]["out_channels"] = 4
    node["discriminator"] = {"_target_": "tests.model.test_gan.Recorder"}
    model, space = build(node), PATCH[spatial_dims]
    fine = tuple(2 * size for size in space)
    batch = {
        "raw": torch.rand(3, 1, *space),
        "mask": torch.ones(3, 1, *space),
        "fine": torch.rand(2, 2, *fine),
        "present": {"fine": torch.tensor([0, 2])},
    }
    nothing = {**batch, "fine": torch.rand(0, 2, *fine), "present": {"fine": torch.tensor([], dtype=torch.long)}}
    trainer = fit_gan(model, spatial_dims, train=DataLoader([batch, nothing], batch_size=None))
    assert model.discriminator.seen == [((4, 1, *fine), (4, 2, *fine))]  # two real and two generated images
    assert trainer.global_step == 2


def test_the_plane_that_a_stack_is_projected_to_is_judged_beside_the_mean_plane():
    node = gan(3)
    node["task_heads"]["stain"]["head"] = {
        "_target_": "cyto_dl.model.heads.ProjectionHead",
        "in_channels": 1,
        "out_channels": 1,
    }
    node["discriminator"] = {"_target_": "tests.model.test_gan.Recorder"}
    model = build(node)
    stacks = [{**each, "stain": each["stain"].mean(dim=1)} for each in pictures(PATCH[3])]
    fit_gan(model, 3, train=DataLoader(stacks, batch_size=2))
    assert set(model.discriminator.seen) == {((4, 1, 16, 16), (4, 1, 16, 16))}


def test_distributed_data_parallel_does_not_wait_for_gradients_of_the_other_role(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "0")

    def train(**settings):
        torch.manual_seed(0)
        optimizers = {role: {**SGD, "lr": 0.1} for role in LEARNT}
        model = build(gan(optimizer=optimizers, adversarial={"noise_std": 0.0}))  # starting processes draws numbers
        fit_gan(model, **settings)
        return dict(model.named_parameters())

    distributed = DDPStrategy(process_group_backend="gloo")  # one process: the wrapper, and nobody to wait for
    try:
        alone, wrapped = train(), train(strategy=distributed, devices=1, use_distributed_sampler=False)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(wrapped, alone, rtol=1e-4, atol=1e-6)  # sums in another order: memory lies elsewhere
