"""The head for objects learns what `postprocessing.instances` turns back into labels."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from cyto_dl.errors import ConfigError
from cyto_dl.model.heads import InstanceHead
from cyto_dl.model.losses import InstanceLoss
from cyto_dl.model.tasks import build_tasks
from cyto_dl.model.utils import postprocessing

SHAPES = [(24, 32), (8, 24, 32)]


def two_boxes(shape):
    """Two boxes side by side, 1 (Z) Y X float32, as a label image reaches a head."""
    labels = torch.zeros(1, *shape)
    labels[..., 2:-2, 2:16] = 1
    labels[..., 2:-2, 16:30] = 70_001
    return labels


@pytest.mark.parametrize("shape", SHAPES)
def test_the_output_has_two_channels_of_the_features_size(shape):
    head = InstanceHead(4, spatial_dims=len(shape))
    assert head(torch.rand(3, 4, *shape)).shape == (3, 2, *shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_target_is_two_channels_from_0_to_1(shape):
    target = InstanceHead(4, spatial_dims=len(shape)).encode(two_boxes(shape), None)
    assert target.shape == (2, *shape)
    assert target.dtype == torch.float32
    assert target.min() == 0
    assert target.max() == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_an_ideal_output_is_drawn_as_the_objects(shape):
    labels = two_boxes(shape)
    target = InstanceHead(4, spatial_dims=len(shape)).encode(labels, None)
    drawn = postprocessing.instances(torch.logit(target, eps=1e-6))
    assert drawn.shape == labels.shape
    expected = torch.where(labels > 1, 2, labels).int()
    assert (drawn.int() != expected).sum() <= 4 * np.prod(shape[:-2])  # a box's corners may go to its neighbour


def test_the_pixel_size_and_border_px_set_the_distances():
    labels = two_boxes((8, 24, 32))
    head = InstanceHead(4, spatial_dims=3, border_px=3)
    in_sample = head.encode(labels, (3.0, 1.0, 1.0))
    assert not torch.equal(in_sample, InstanceHead(4, spatial_dims=3).encode(labels, (3.0, 1.0, 1.0)))
    assert in_sample[1, 4, 12, 2:6].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_labels_of_monai_are_taken_as_they_are():
    labels = two_boxes((24, 32))
    head = InstanceHead(4, spatial_dims=2)
    encoded = head.encode(MetaTensor(labels), None)
    assert type(encoded) is torch.Tensor
    assert torch.equal(encoded, head.encode(labels, None))


def test_the_task_is_instances_and_needs_no_further_word():
    task = build_tasks({"objects": {"head": InstanceHead(4, spatial_dims=2), "loss": InstanceLoss()}})["objects"]
    assert (task.kind, task.activation) == ("instances", "sigmoid")
    assert task.encode(two_boxes((24, 32))[None], [None], paths=["raw.tif"]).shape == (1, 2, 24, 32)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.zeros(2, 8, 8), "one channel, but this one has 2"),
        (torch.full((1, 8, 8), 0.5), "whole numbers"),
        (torch.full((1, 8, 8), -1.0), "no negative numbers"),
        (torch.full((1, 8, 8), float("nan")), "whole numbers"),
    ],
    ids=["two channels", "fractions", "negative", "nan"],
)
def test_what_is_no_label_image_is_explained_with_the_column_to_look_at(target, message):
    task = build_tasks({"objects": {"head": InstanceHead(4, spatial_dims=2), "loss": InstanceLoss()}})["objects"]
    with pytest.raises(ConfigError, match=rf"(?s)^raw.tif: .*{message}.*data\.columns\.objects"):
        task.encode(target[None], [None], paths=["raw.tif"])


@pytest.mark.parametrize("border_px", [0, -1, float("nan")])
def test_a_rim_without_width_is_refused(border_px):
    with pytest.raises(ConfigError, match="border_px"):
        InstanceHead(4, spatial_dims=2, border_px=border_px)
