"""The model trains, validates on whole images, and says by configuration key what does not fit."""

import copy
from functools import partial

import lightning
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from cyto_dl.data import DataframeDatamodule, ReadImaged
from cyto_dl.data.collate import collate
from cyto_dl.errors import ConfigError, TrainingError
from cyto_dl.metrics import Dice
from cyto_dl.model import MultiTaskIm2Im, activate
from cyto_dl.model.utils import postprocessing

SPACE = {2: (24, 29), 3: (9, 24, 21)}
PATCH = {2: (16, 16), 3: (8, 16, 16)}
DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])


def config(spatial_dims=2, out_channels=1, **changes):
    """The literal example of the documentation, small."""
    rescale = {"_target_": "cyto_dl.model.utils.postprocessing.rescale", "_partial_": True}
    node = {
        "_target_": "cyto_dl.model.MultiTaskIm2Im",
        "x_key": "raw",
        "backbone": {
            "_target_": "monai.networks.nets.DynUNet",
            "spatial_dims": spatial_dims,
            "in_channels": 1,
            "out_channels": out_channels,
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, 1],
            "upsample_kernel_size": [2, 1],
            "filters": [4, 4, 4],
        },
        "task_heads": {
            "seg": {
                "head": {"_target_": "cyto_dl.model.heads.IdentityHead"},
                "loss": {"_target_": "monai.losses.DiceCELoss", "sigmoid": True},
            }
        },
        "optimizer": {"generator": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1.0e-3}},
        "lr_scheduler": {
            "generator": {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "_partial_": True, "gamma": 0.5}
        },
        "postprocessing": {
            "input": {"raw": rescale, "seg": rescale},
            "prediction": {
                "seg": {"_target_": "cyto_dl.model.utils.postprocessing.sigmoid_rescale", "_partial_": True}
            },
        },
        "inference": {"roi_size": list(PATCH[spatial_dims]), "overlap": 0.25},
    }
    return {**node, **changes}


def multitask(spatial_dims=2):
    """Two heads on features of four channels."""
    head = {"_target_": "cyto_dl.model.heads.ConvolutionHead", "in_channels": 4, "spatial_dims": spatial_dims}
    heads = {
        "seg": {"head": {**head, "out_channels": 1}, "loss": {"_target_": "torch.nn.BCEWithLogitsLoss"}},
        "dna": {"head": {**head, "out_channels": 2}, "loss": {"_target_": "torch.nn.MSELoss"}},
    }
    return config(spatial_dims, 4, task_heads=heads, postprocessing=None)


def build(node):
    return instantiate(node, _convert_="all")


def sample(space, seed, channels=1):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.rand((1, *space), generator=generator)
    return {
        "raw": raw,
        "seg": (raw > 0.5).float(),
        "dna": torch.cat([raw, 1 - raw]),
        "path": f"image_{seed}.tif",
    }


def fit(model, spatial_dims, *, train=None, **trainer):
    train = train or [sample(PATCH[spatial_dims], seed) for seed in range(4)]
    valid = [sample(SPACE[spatial_dims], seed) for seed in range(2)]
    settings = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = lightning.Trainer(accelerator="cpu", **{**settings, **trainer})
    trainer.fit(model, DataLoader(train, batch_size=2), DataLoader(valid))
    return trainer


@DIMS
def test_the_documented_configuration_trains_and_reports_segmentation_metrics(spatial_dims):
    torch.manual_seed(0)
    model = build(config(spatial_dims))
    before = copy.deepcopy(model.state_dict())
    metrics = fit(model, spatial_dims).callback_metrics
    assert set(metrics) == {
        *("train/loss", "train/seg/loss", "valid/loss", "valid/seg/loss", "valid/seg/dice", "valid/seg/iou"),
        *("valid/seg/dice_pooled", "valid/seg/iou_pooled"),
    }
    assert not torch.equal(before[(key := next(iter(before)))], model.state_dict()[key])
    assert all(key.startswith("network.") for key in before)


@DIMS
def test_validation_reports_the_mean_over_whole_images(spatial_dims):
    torch.manual_seed(0)
    model = build(config(spatial_dims))
    metrics = fit(model, spatial_dims).callback_metrics
    model.eval()
    expected = []
    for seed in range(2):
        image = sample(SPACE[spatial_dims], seed)
        logits = model.window(image["raw"][None], model.network)["seg"]
        assert logits.shape[2:] == SPACE[spatial_dims]
        expected.append(Dice().per_image(activate(logits, "sigmoid"), image["seg"][None]).item())
    assert metrics["valid/seg/dice"].item() == pytest.approx(sum(expected) / 2)


@DIMS
def test_the_loss_is_the_sum_of_the_heads_losses(spatial_dims):
    metrics = fit(build(multitask(spatial_dims)), spatial_dims).callback_metrics
    for split in ("train", "valid"):
        parts = metrics[f"{split}/seg/loss"] + metrics[f"{split}/dna/loss"]
        assert torch.allclose(metrics[f"{split}/loss"], parts)
    assert {"valid/seg/dice", "valid/dna/pearson", "valid/dna/ssim", "valid/dna/psnr", "valid/dna/r2"} < set(metrics)


@DIMS
def test_the_loss_weighs_the_heads_in_training_and_validation(spatial_dims):
    node = multitask(spatial_dims) | {"loss_weights": {"dna": 0.1}}
    metrics = fit(build(node), spatial_dims).callback_metrics
    for split in ("train", "valid"):
        assert torch.allclose(
            metrics[f"{split}/loss"], metrics[f"{split}/seg/loss"] + 0.1 * metrics[f"{split}/dna/loss"]
        )


def test_the_optimizer_learns_the_weights_of_the_losses_and_no_bundle_holds_them():
    node = multitask() | {"loss_weights": {"_target_": "cyto_dl.model.weighting.UncertaintyWeights"}}
    model = build(node)
    fit(model, 2)
    learned = {name: value.item() for name, value in model.state_dict().items() if not name.startswith("network.")}
    assert set(learned) == {"weighting.log_variances.seg", "weighting.log_variances.dna"}
    assert all(learned.values())  # they were 0


@DIMS
def test_heads_of_different_scale_train_together(spatial_dims):
    node = multitask(spatial_dims)
    node["task_heads"]["dna"]["head"] |= {"_target_": "cyto_dl.model.heads.UpsamplingHead", "scale": 2}
    rows = [{key: np.asarray(value) for key, value in sample(SPACE[spatial_dims], seed).items()} for seed in range(3)]
    for row in rows:
        row["dna"] = np.kron(row["dna"], np.ones((1, *[2] * spatial_dims), np.float32))
    data = DataframeDatamodule(
        path={"train": rows[:2], "valid": rows[2:]},
        columns={"raw": "raw", "seg": "seg", "dna": "dna"},
        transforms=[ReadImaged(["raw", "seg", "dna"], spatial_dims)],
        patch_shape=PATCH[spatial_dims],
        patches_per_image=2,
        batch_size=2,
    )
    settings = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(accelerator="cpu", enable_model_summary=False, **settings)
    trainer.fit(build(node), data)
    assert trainer.global_step == 2
    assert {"train/dna/loss", "valid/seg/dice", "valid/dna/psnr"} < set(trainer.callback_metrics)


def test_the_test_split_has_the_same_metrics():
    model = build(config())
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    (metrics,) = trainer.test(model, DataLoader([sample(SPACE[2], 0)]), verbose=False)
    names = ("dice", "dice_pooled", "iou", "iou_pooled", "loss")
    assert set(metrics) == {"test/loss", *(f"test/seg/{name}" for name in names)}


def test_the_same_seed_gives_the_same_loss():
    def loss():
        lightning.seed_everything(3, verbose=False)
        return fit(build(multitask()), 2).callback_metrics["train/loss"].item()

    assert loss() == loss()


@DIMS
def test_without_inference_the_whole_image_is_one_window(spatial_dims):
    model = build(config(spatial_dims, inference=None))
    image = sample(SPACE[spatial_dims], 0)["raw"][None]
    assert model.window(image, model)["seg"].shape == image.shape


def test_a_scheduler_may_come_with_its_settings():
    scheduler = {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 1, "gamma": 0.5}
    settings = {"scheduler": scheduler, "interval": "step"}
    model = build(config(lr_scheduler={"generator": settings}))
    trainer = fit(model, 2)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 / 4)  # two steps


@pytest.mark.parametrize(("monitor", "expected"), [(None, "valid/loss"), ("valid/seg/dice", "valid/seg/dice")])
def test_reduce_on_plateau_watches_the_validation_loss_unless_told_otherwise(monitor, expected):
    scheduler = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "_partial_": True}
    generator = {"scheduler": scheduler, "monitor": monitor} if monitor else scheduler
    model = build(config(lr_scheduler={"generator": generator}))
    chosen = model.configure_optimizers()["lr_scheduler"]
    assert isinstance(chosen["scheduler"], ReduceLROnPlateau)
    assert chosen["monitor"] == expected
    fit(model, 2)


def test_a_loss_that_is_not_finite_names_the_images():
    patches = [sample(PATCH[2], 0), sample(PATCH[2], 1)]
    patches[1]["raw"][..., 0] = float("nan")
    with pytest.raises(TrainingError, match=r"train/seg/loss is nan at epoch 0, batch 0.*image_0.tif, image_1.tif"):
        fit(build(config()), 2, train=patches)


def test_a_loss_that_is_not_finite_in_validation_names_its_head_and_image():
    model = build(multitask())
    torch.nn.init.constant_(model.tasks["dna"].head.convolution.bias, float("inf"))
    with pytest.raises(TrainingError, match=r"valid/dna/loss is inf at epoch 0, batch 0, of the images image_0.tif"):
        fit(model, 2, num_sanity_val_steps=1)


def test_a_missing_target_is_told_by_its_column():
    patches = [{"raw": torch.rand(1, 16, 16), "path": "a.tif"}]
    with pytest.raises(ConfigError, match=r"no target 'seg' \(it has raw, path\).*data.columns.seg"):
        fit(build(config()), 2, train=patches)


def test_a_mask_of_255_is_refused_before_the_first_step():
    patches = [sample(PATCH[2], 0)]
    patches[0]["seg"] *= 255
    with pytest.raises(ConfigError, match="values from 0 to 255"):
        fit(build(config()), 2, train=patches)


def test_a_target_of_other_channels_than_the_head_is_refused():
    node = config(2, 3)
    with pytest.raises(ConfigError, match=r"task_heads.seg.*\(2, 3, 16, 16\).*\(2, 1, 16, 16\)"):
        fit(build(node), 2)


@pytest.mark.parametrize("shape", [(1, 1, 15, 15), (1, 3, 16, 16)])
def test_an_image_that_the_backbone_cannot_take_is_told_with_what_to_change(shape):
    with pytest.raises(ConfigError, match=r"model.backbone cannot take.*data.patch_shape.*raw_im_channels") as told:
        build(config())(torch.rand(shape))
    assert str(shape) in str(told.value)


class EverySecondHead(torch.nn.Module):
    """Predicts every second row, or plane, and is told the pixel size of the targets that it encodes."""

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(self, features):
        return features[:, :, ::2]

    def encode(self, target, spacing_um):
        self.told.append(spacing_um)
        return target


@DIMS
def test_a_target_of_other_scale_is_encoded_with_its_own_pixel_size(spatial_dims):
    head = EverySecondHead()
    node = config(spatial_dims, task_heads={"seg": {"head": head, "loss": torch.nn.MSELoss()}}, postprocessing=None)
    source = sample(PATCH[spatial_dims], 0) | {"spacing_um": (1.0, 0.5, 0.25)[-spatial_dims:]}
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    images = DataLoader([source | {"seg": source["seg"][:, ::2]}], collate_fn=collate)
    trainer.validate(build(node | {"inference": None}), images, verbose=False)
    assert head.told == [{2: (1.0, 0.25), 3: (2.0, 0.5, 0.25)}[spatial_dims]]


REQUIRED = {
    "x_key": "raw",
    "backbone": torch.nn.Identity(),
    "task_heads": {"seg": {"head": torch.nn.Identity(), "loss": torch.nn.MSELoss()}},
    "optimizer": {"generator": torch.optim.SGD},
    "lr_scheduler": {"generator": partial(torch.optim.lr_scheduler.StepLR, step_size=1)},
}


def test_everything_that_is_missing_is_told_at_once():
    with pytest.raises(ConfigError) as told:
        MultiTaskIm2Im()
    for key in ("x_key", "backbone", "task_heads", "optimizer.generator", "lr_scheduler.generator"):
        assert f"model.{key} is missing" in str(told.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_key": ""}, "model.x_key is missing"),
        ({"optimizer": {"adam": 1}}, "model.optimizer.generator is missing"),
        ({"optimizer": {"generator": {"lr": 1}}}, "model.optimizer.generator makes no optimizer; add _partial_"),
        ({"lr_scheduler": {"generator": {"monitor": "x"}}}, "model.lr_scheduler.generator makes no lr_scheduler"),
        ({"backbone": {"_target_": "x"}}, "model.backbone is a dict"),
        ({"inference": {"roi": [8, 8]}}, "model.inference.roi: unknown, choose one of roi_size, overlap"),
        ({"inference": {"roi_size": [8]}}, "model.inference.roi_size"),
        ({"postprocessing": {"output": {}}}, "model.postprocessing.output: unknown, choose input or prediction"),
        ({"postprocessing": {"prediction": {"raw": abs}}}, "postprocessing.prediction.raw: unknown, choose one of seg"),
        ({"postprocessing": {"input": {"raw": 3}}}, "model.postprocessing.input.raw is no function; add _partial_"),
    ],
)
def test_a_wrong_argument_is_refused_by_its_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        MultiTaskIm2Im(**{**REQUIRED, **changes})


def test_what_postprocessing_does_not_name_has_a_default():
    model = MultiTaskIm2Im(**REQUIRED, postprocessing={"input": {"seg": postprocessing.identity}})
    assert model.postprocessing == {
        "input": {"raw": postprocessing.rescale, "seg": postprocessing.identity},
        "prediction": {"seg": postprocessing.identity},
    }
