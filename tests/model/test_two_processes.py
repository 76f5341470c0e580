"""Two real processes, by gloo, learn what one learns from the same batches, also where their targets differ."""

import json
import os
from datetime import timedelta
from functools import partial
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.strategies import DDPStrategy
from monai.transforms import RandGaussianNoised
from torch import nn
from torchmetrics import MeanSquaredError

from cyto_dl.data import DataframeDatamodule, RandFlipsd, ReadImaged
from cyto_dl.model import GAN, MultiTaskIm2Im
from cyto_dl.model.heads import IdentityHead
from tests.model import test_multitask
from tests.model.test_gan import Recorder

KEYS = ("a", "b", "c")
# The value of all pixels of each target. An epoch has two steps of two processes: in one of them one process lacks `a`,
# and so has nothing to judge, in the other both. The validation images of the second process lack `a`.
TRAIN = [{"a": 0.5, "b": 0.75, "c": 0.25}, {"b": 10, "c": 2}, {"b": 5, "c": 3}, {"b": 2, "c": 4}]
VALID = [{"a": 1, "b": 10}, {"b": 7}, {"a": 4, "b": 2}, {"b": 3}, {"a": 2, "b": 1}]
GLOBAL_BATCH = 4
SECONDS = 120  # until a process that waits for the other gives up


class Nothing(nn.Module):
    """Predicts 0 everywhere, so that the loss of an image is known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, image):
        return self.weight * image


def images(values, *, seed):
    """A row of a manifest in memory."""
    noise = np.random.default_rng(seed).random((16, 16), np.float32)
    return {"raw": noise} | {key: np.full((16, 16), value, np.float32) for key, value in values.items()}


def data():
    return DataframeDatamodule(
        path={
            "train": [images(values, seed=number) for number, values in enumerate(TRAIN)],
            "valid": [images(values, seed=10 + number) for number, values in enumerate(VALID)],
        },
        columns={key: key for key in ("raw", *KEYS)},
        transforms={"load": [ReadImaged(["raw", *KEYS], 2)]},
    )


def arguments(roles):
    """Of a model with one head per target; the generator stays as it is, and weights decay."""
    rates = {role: 0.0 if role == "generator" else 0.1 for role in roles}
    return {
        "x_key": "raw",
        "backbone": Nothing(),
        "task_heads": {
            key: {"head": IdentityHead(), "loss": nn.MSELoss(), "metrics": {"mse": MeanSquaredError()}} for key in KEYS
        },
        "optimizer": {role: partial(torch.optim.AdamW, lr=rate, weight_decay=0.5) for role, rate in rates.items()},
        "lr_scheduler": {role: partial(torch.optim.lr_scheduler.StepLR, step_size=9) for role in roles},
    }


def fit(model, datamodule, *, num_processes=2, max_epochs=1, callbacks=()):
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=SECONDS))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=num_processes,
        strategy=strategy if num_processes > 1 else "auto",
        max_epochs=max_epochs,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(model, datamodule)
    return trainer


class Batches(lightning.Callback):
    """Keeps the sums of the pixels of every patch: (source, target), batch after batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        sums = [batch[key].double().sum(dim=tuple(range(1, batch[key].ndim))).tolist() for key in ("raw", "seg")]
        self.seen.append(list(zip(*sums, strict=True)))


def segmentation(spatial_dims, *, num_processes):
    """The weights of a U-Net after 12 steps of four patches in all, and the patches.

    Its normalisation is of each image alone. Batch normalisation sees the images of one process, unless it is
    synchronized, which torch does on GPUs only.
    """
    space, patch = test_multitask.SPACE[spatial_dims], test_multitask.PATCH[spatial_dims]
    rng = np.random.default_rng(0)
    rows = [{"raw": (raw := rng.random(space, np.float32)), "seg": (raw > 0.5).astype(np.float32)} for _ in range(7)]
    augment = [
        RandFlipsd(["raw", "seg"], prob=0.5),
        RandGaussianNoised("raw", prob=0.5, std=0.1),
    ]
    datamodule = DataframeDatamodule(
        path={"train": rows[:6], "valid": rows[6:]},
        columns={"raw": "raw", "seg": "seg"},
        transforms={"load": [ReadImaged(["raw", "seg"], spatial_dims)], "augment": augment},
        patch_shape=patch,
        patches_per_image=4,
        foreground_key="seg",
        foreground_fraction=0.5,
        batch_size=GLOBAL_BATCH // num_processes,
    )
    torch.manual_seed(0)
    model = test_multitask.build(test_multitask.config(spatial_dims))
    batches = Batches()
    fit(model, datamodule, num_processes=num_processes, max_epochs=2, callbacks=[batches])
    return {name: value.detach().clone() for name, value in model.named_parameters()}, batches.seen


def work(rank, port, folder):
    """What one process does; Lightning takes it for one that a launcher such as torchrun has started."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    torch.set_num_threads(1)
    both = ("generator", "discriminator")
    models = {
        "multitask": MultiTaskIm2Im(**arguments(both[:1])),
        "gan": GAN(discriminator=Recorder(), **arguments(both)),
    }
    for spatial_dims in (2, 3):
        torch.save(segmentation(spatial_dims, num_processes=2), Path(folder, f"{rank}-{spatial_dims}.pt"))
    reported = {}
    for name, model in models.items():
        trainer = fit(model, data())
        metrics = {key: value.item() for key, value in trainer.callback_metrics.items()}
        num_steps = [int(state["step"]) for each in trainer.optimizers for state in each.state.values()]
        weights = [value.item() for value in model.parameters()]
        reported[name] = {"metrics": metrics, "num_steps": num_steps, "weights": weights}
    Path(folder, f"{rank}.json").write_text(json.dumps(reported))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder that two processes have written what they learnt into."""
    folder = tmp_path_factory.mktemp("two_processes")
    torch.multiprocessing.spawn(work, (find_free_network_port(), folder), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def ranks(finished):
    """What each of two processes reports of a MultiTaskIm2Im and a GAN."""
    return [json.loads((finished / f"{rank}.json").read_text()) for rank in range(2)]


def truth(split, rows):
    """The means over the images that have a target; of the loss, over all."""
    there = {key: [row[key] ** 2 for row in rows if key in row] for key in KEYS}
    means = {f"{split}/{key}/loss": np.mean(values) for key, values in there.items() if values}
    return means | {f"{split}/loss": sum(map(sum, there.values())) / len(rows)}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("model", ["multitask", "gan"])
def test_every_process_reports_the_means_over_the_images_of_both(ranks, model, rank):
    metrics = ranks[rank][model]["metrics"]
    expected = truth("train", TRAIN) | truth("valid", VALID)
    expected |= {name.replace("/loss", "/mse"): value for name, value in truth("valid", VALID).items()}
    del expected["valid/mse"]
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert not any(name.startswith("valid/c/") for name in metrics)  # no validation image has this target
    assert np.isfinite(list(metrics.values())).all()


@pytest.mark.parametrize("rank", [0, 1])
def test_every_process_reports_the_verdict_on_the_images_that_were_judged(ranks, rank):
    metrics = ranks[rank]["gan"]["metrics"]
    judged = {name: metrics[f"train/discriminator/{name}"] for name in ("real", "fake", "loss")}
    assert judged == pytest.approx({"real": 0.5, "fake": 0, "loss": 1.5})  # hinge: 1 - 0.5 and 1 + 0
    assert metrics == pytest.approx(ranks[1 - rank]["gan"]["metrics"])


def test_no_optimizer_steps_where_no_process_has_a_loss(ranks):
    for reported in ranks:
        assert reported["gan"]["num_steps"] == [2, 1]  # generator, discriminator
        assert reported["gan"]["weights"] == ranks[0]["gan"]["weights"]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_two_processes_with_half_the_batch_each_learn_the_weights_of_one(finished, spatial_dims):
    alone, batches = segmentation(spatial_dims, num_processes=1)
    (weights, first), (others, second) = (
        torch.load(finished / f"{rank}-{spatial_dims}.pt", weights_only=True) for rank in range(2)
    )
    assert len(batches) == 12
    assert all(len(batch) == GLOBAL_BATCH for batch in batches)
    # in every step the same patches, with the same crop, flips and noise
    assert [sorted(ours + theirs) for ours, theirs in zip(first, second, strict=True)] == [*map(sorted, batches)]
    torch.manual_seed(0)
    initial = dict(test_multitask.build(test_multitask.config(spatial_dims)).named_parameters())
    for name, value in alone.items():
        assert torch.equal(weights[name], others[name])
        # The mean over four patches is summed in another order: 6e-8 after 12 steps of 0.001 on weights of up to 1
        assert torch.allclose(weights[name], value, rtol=0, atol=1e-6)
        assert (value - initial[name]).abs().max() > 1e-3  # and yet they have learnt
