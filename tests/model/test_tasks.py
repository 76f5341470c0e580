"""A task knows how its head's output is read, and says which head and which shapes do not fit."""

import pytest
import torch
from monai import losses
from torch import nn
from torchmetrics import MeanSquaredError

from cyto_dl.errors import ConfigError
from cyto_dl.metrics import Dice
from cyto_dl.model import activate, build_tasks
from cyto_dl.model.heads import IdentityHead, InstanceHead
from cyto_dl.model.losses import (
    CharbonnierLoss,
    ForegroundMSELoss,
    GradientLoss,
    InstanceLoss,
    MaskedMSELoss,
    WeightedSum,
)
from cyto_dl.model.tasks import activation_of_loss
from cyto_dl.model.utils.postprocessing import identity

ACTIVATIONS = [
    (losses.DiceLoss(sigmoid=True), "sigmoid"),
    (losses.DiceCELoss(sigmoid=True), "sigmoid"),
    (losses.DiceCELoss(softmax=True, to_onehot_y=True), "softmax"),
    (losses.DiceFocalLoss(sigmoid=True), "sigmoid"),
    (losses.GeneralizedDiceLoss(softmax=True), "softmax"),
    (losses.TverskyLoss(sigmoid=True), "sigmoid"),
    (losses.FocalLoss(), "sigmoid"),
    (losses.FocalLoss(use_softmax=True), "softmax"),
    (losses.MaskedLoss(losses.DiceLoss(sigmoid=True)), "sigmoid"),
    (nn.BCEWithLogitsLoss(), "sigmoid"),
    (nn.CrossEntropyLoss(), "softmax"),
    (nn.MSELoss(), "identity"),
    (nn.L1Loss(), "identity"),
    (losses.DiceLoss(), None),
    (losses.DiceCELoss(), None),
]


def seg(**changes):
    return {"seg": {"head": IdentityHead(), "loss": losses.DiceCELoss(sigmoid=True), **changes}}


@pytest.mark.parametrize(("loss", "activation"), ACTIVATIONS, ids=lambda value: str(value)[:40])
def test_the_activation_is_read_off_the_loss(loss, activation):
    assert activation_of_loss(loss) == activation


def test_the_heads_own_activation_comes_first():
    task = build_tasks(seg(head=IdentityHead("identity")))["seg"]
    assert (task.activation, task.kind) == ("identity", "regression")


def test_default_metrics_suit_the_kind_of_task():
    heads = seg() | {"dna": {"head": IdentityHead(), "loss": nn.MSELoss()}}
    tasks = build_tasks(heads)
    assert (tasks["seg"].kind, next(iter(tasks["seg"].metrics))) == ("segmentation", "dice")
    assert (tasks["dna"].kind, next(iter(tasks["dna"].metrics))) == ("regression", "pearson")


def test_metrics_of_the_configuration_replace_the_defaults():
    mse = MeanSquaredError()
    assert build_tasks(seg(metrics={"mse": mse}))["seg"].metrics == {"mse": mse}
    assert build_tasks(seg(metrics={}))["seg"].metrics == {}


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({}, "model.task_heads is empty"),
        ({"seg": {"loss": nn.MSELoss()}}, "model.task_heads.seg.head is missing"),
        ({"seg": {"head": IdentityHead()}}, "model.task_heads.seg.loss is missing"),
        (seg(loss={"_target_": "torch.nn.MSELoss"}), "model.task_heads.seg.loss is a dict"),
        (seg(los=nn.MSELoss()), "model.task_heads.seg.los: unknown"),
        (seg(metrics={"dice": Dice}), "model.task_heads.seg.metrics.dice"),
        (seg(head=IdentityHead("tanh")), "model.task_heads.seg.head.activation is 'tanh'; choose one of identity"),
        (seg(loss=losses.DiceLoss()), "DiceLoss has sigmoid and softmax both false"),
        ({"train": {"head": IdentityHead(), "loss": nn.MSELoss()}}, "'train' cannot name a task"),
        ({"a.b": {"head": IdentityHead(), "loss": nn.MSELoss()}}, "'a.b' cannot name a task"),
        ({"seg": 3}, "model.task_heads.seg is a int"),
    ],
)
def test_a_wrong_task_is_refused_by_its_key(heads, message):
    with pytest.raises(ConfigError, match=message):
        build_tasks(heads)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError, match=r"(?s)seg.head is missing.*seg.loss is missing.*dna.loss is missing"):
        build_tasks({"seg": {}, "dna": {"head": IdentityHead()}})


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 4, 8, 8)])
def test_activated_outputs_are_probabilities_or_the_values_themselves(shape):
    logits = torch.randn(shape).bfloat16()
    assert activate(logits, "identity").dtype == torch.float32
    assert torch.equal(activate(logits, "sigmoid"), torch.sigmoid(logits.float()))
    assert torch.allclose(activate(logits, "softmax").sum(1), torch.ones(2, *shape[2:]), atol=1e-6)  # single precision


@pytest.mark.parametrize("space", [(8, 8), (4, 8, 8)])
@pytest.mark.parametrize(
    ("loss", "channels"),
    [
        (losses.DiceCELoss(sigmoid=True), (1, 1)),
        (losses.DiceCELoss(softmax=True, to_onehot_y=True), (3, 1)),
        (nn.CrossEntropyLoss(), (3, 1)),
        (nn.CrossEntropyLoss(), (3, 3)),
        (nn.MSELoss(), (2, 2)),
    ],
    ids=str,
)
def test_losses_take_targets_as_the_data_gives_them(loss, channels, space):
    task = build_tasks(seg(loss=loss))["seg"]
    logits, target = torch.randn(2, channels[0], *space), torch.randint(0, 2, (2, channels[1], *space)).float()
    task.check_target(logits, target)
    task.update_metrics(logits, target, draw=identity)
    assert torch.isfinite(task.compute_loss(logits, target))


@pytest.mark.parametrize(
    ("loss", "logits", "target"),
    [
        (nn.MSELoss(), (2, 1, 8, 8), (2, 3, 8, 8)),  # torch would broadcast
        (CharbonnierLoss(), (2, 1, 8, 8), (2, 3, 8, 8)),
        (ForegroundMSELoss(threshold=0), (2, 1, 8, 8), (2, 3, 8, 8)),
        (GradientLoss(), (2, 3, 8, 8), (2, 1, 8, 8)),
        (MaskedMSELoss(), (2, 1, 4, 8, 8), (2, 3, 4, 8, 8)),
        (WeightedSum([nn.L1Loss()], [1]), (2, 1, 8, 8), (2, 3, 8, 8)),
        (losses.DiceCELoss(sigmoid=True), (2, 1, 8, 8), (2, 1, 16, 16)),
        (losses.DiceLoss(softmax=True), (2, 3, 8, 8), (2, 1, 8, 8)),  # to_onehot_y is missing
        (nn.CrossEntropyLoss(), (2, 3, 4, 8, 8), (2, 1, 8, 8)),
    ],
)
def test_shapes_that_do_not_fit_are_told_with_the_heads_name(loss, logits, target):
    task = build_tasks(seg(loss=loss))["seg"]
    with pytest.raises(ConfigError, match=r"model.task_heads.seg.*shape \(2, .*target 'seg' has shape \(2, ") as told:
        task.compute_loss(torch.rand(logits), torch.zeros(target))
    assert str(logits) in str(told.value)
    assert str(target) in str(told.value)
    assert "data.columns.seg" in str(told.value)


def test_a_users_loss_may_compare_other_shapes():
    class TwoToOne(nn.Module):
        def forward(self, logits, target):
            return nn.functional.gaussian_nll_loss(logits[:, :1], target, logits[:, 1:].exp())

    task = build_tasks(seg(loss=TwoToOne()))["seg"]
    assert torch.isfinite(task.compute_loss(torch.rand(2, 2, 8, 8), torch.rand(2, 1, 8, 8)))
    with pytest.raises(ConfigError, match="TwoToOne cannot compare"):
        task.compute_loss(torch.rand(2, 2, 8, 8), torch.rand(2, 1, 9, 9))


@pytest.mark.parametrize(
    ("loss", "channels", "highest"),
    [(losses.DiceLoss(sigmoid=True), 1, 255), (nn.CrossEntropyLoss(), 3, 3), (nn.BCEWithLogitsLoss(), 1, -1)],
)
def test_a_target_outside_what_the_head_predicts_is_refused(loss, channels, highest):
    task = build_tasks(seg(loss=loss))["seg"]
    target = torch.zeros(1, 1, 8, 8)
    target[..., 0] = highest
    with pytest.raises(ConfigError, match=rf"target 'seg' has values from .*{highest}"):
        task.check_target(torch.rand(1, channels, 8, 8), target)


def test_numbers_of_objects_and_of_classes_are_labels_and_probabilities_and_intensities_are_not():
    tasks = build_tasks(
        {
            "objects": {"head": InstanceHead(1, spatial_dims=2), "loss": InstanceLoss()},
            "classes": {"head": IdentityHead(), "loss": losses.DiceCELoss(softmax=True, to_onehot_y=True)},
            "mask": {"head": IdentityHead(), "loss": losses.DiceCELoss(sigmoid=True)},
            "stain": {"head": IdentityHead(), "loss": nn.MSELoss()},
        }
    )
    assert [name for name, task in tasks.items() if task.has_labels] == ["objects", "classes"]
