"""Postprocessing keeps the meaning of a prediction's numbers, in 2-D and 3-D, for tensors and arrays."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from skimage.measure import label as skimage_label

from cyto_dl.errors import ConfigError
from cyto_dl.model.utils import postprocessing

SHAPES = [(1, 9, 11), (1, 5, 9, 11)]
ONE_CHANNEL = [
    postprocessing.rescale,
    postprocessing.sigmoid_rescale,
    postprocessing.sigmoid_threshold,
    postprocessing.sigmoid,
    postprocessing.softmax,
    postprocessing.identity,
    postprocessing.connected_components,
    partial(postprocessing.denormalize, mean=100, std=10, dtype="uint16"),
]


def logit(probability):
    return torch.logit(torch.as_tensor(probability, dtype=torch.float64)).float()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", ONE_CHANNEL)
def test_an_image_keeps_its_size_and_a_constant_one_gives_no_nan(function, shape):
    for value in (0.0, 7.0, -3.0):
        output = function(torch.full(shape, value))
        assert output.shape == shape
        assert torch.isfinite(output.double()).all()


@pytest.mark.parametrize("function", ONE_CHANNEL)
@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_and_tensors_give_the_same_and_are_left_as_they_are(function, shape):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    before = array.copy()
    assert torch.equal(function(array), function(torch.from_numpy(array)))
    assert np.array_equal(array, before)


def test_the_output_is_a_plain_tensor():
    assert type(postprocessing.rescale(MetaTensor(torch.rand(1, 4, 4)))) is torch.Tensor


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float64])
def test_rescale_maps_an_images_own_range_to_8_bits(dtype):
    image = np.array([[[10, 20, 30]]], dtype)
    assert postprocessing.rescale(image).tolist() == [[[0, 128, 255]]]
    assert postprocessing.rescale(image).dtype == torch.uint8


def test_rescale_draws_what_is_not_known_black():
    assert postprocessing.rescale(torch.tensor([[[1.0, float("nan"), 3.0]]])).tolist() == [[[0, 0, 255]]]
    assert postprocessing.rescale(torch.full((1, 2, 2), float("nan"))).tolist() == [[[0, 0], [0, 0]]]


def test_rescale_maps_a_given_range_and_clips_the_rest():
    image = torch.tensor([[[-5.0, 0.0, 1.0, 2.0, 9.0]]])
    assert postprocessing.rescale(image, in_range=(0, 2)).tolist() == [[[0, 0, 128, 255, 255]]]


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=8))
def test_sigmoid_rescale_maps_a_logit_alike_whatever_else_is_in_the_image(logits):
    together = postprocessing.sigmoid_rescale(torch.tensor(logits).reshape(1, 1, -1))
    alone = [postprocessing.sigmoid_rescale(torch.tensor([[[value]]])).item() for value in logits]
    assert together.flatten().tolist() == alone


def test_sigmoid_rescale_maps_probabilities_0_to_1_to_0_to_255():
    probabilities = [0.0, 0.1, 0.5, 0.9, 1.0]
    assert postprocessing.sigmoid_rescale(logit(probabilities)).tolist() == [0, 26, 128, 230, 255]


def test_a_threshold_is_a_probability():
    logits = logit([[[0.2, 0.4, 0.6, 0.8]]])
    assert postprocessing.sigmoid_threshold(logits).tolist() == [[[0, 0, 1, 1]]]
    assert postprocessing.sigmoid_threshold(logits, threshold=0.7).tolist() == [[[0, 0, 0, 1]]]
    assert postprocessing.sigmoid_threshold(logits).dtype == torch.uint8


@pytest.mark.parametrize("shape", [(4, 9, 11), (4, 5, 9, 11)])
def test_softmax_sums_to_one_over_channels_and_argmax_is_its_highest(shape):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    probabilities = postprocessing.softmax(logits)
    assert torch.allclose(probabilities.sum(0), torch.ones(shape[1:]), atol=1e-6)  # single precision
    classes = postprocessing.argmax(logits)
    assert classes.shape == (1, *shape[1:])
    assert torch.equal(classes[0].long(), probabilities.argmax(0))


def test_argmax_has_bits_enough_for_its_classes():
    assert postprocessing.argmax(torch.rand(256, 2, 2)).dtype == torch.uint8
    logits = torch.zeros(300, 1, 1)
    logits[299] = 1
    assert postprocessing.argmax(logits).numpy().item() == 299


def test_argmax_of_one_channel_is_refused():
    with pytest.raises(ConfigError, match="sigmoid_threshold"):
        postprocessing.argmax(torch.rand(1, 4, 4))


@pytest.mark.parametrize("shape", [(40, 50), (8, 20, 30)])
def test_connected_components_are_those_of_scikit_image(shape):
    mask = np.random.default_rng(0).random(shape) > 0.8
    labels = postprocessing.connected_components(torch.from_numpy(np.where(mask, 3.0, -3.0))[None])
    expected = skimage_label(mask)
    assert labels.dtype == torch.uint32
    pairs = np.unique(np.stack([labels.numpy()[0].ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == expected.max() + 1  # one to one: they may be numbered otherwise


def test_more_objects_than_16_bits_count_are_kept_apart():
    mask = np.zeros((600, 600), np.float32)
    mask[::2, ::2] = 1
    assert postprocessing.connected_components(mask[None] - 0.5).numpy().max() == 300 * 300


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_small_objects_are_left_out_and_the_rest_is_numbered_without_gaps(spatial_dims):
    mask = torch.full((1, *[12] * spatial_dims), -5.0)
    mask[(0, *[slice(0, 1)] * spatial_dims)] = 5
    mask[(0, *[slice(3, 6)] * spatial_dims)] = 5
    mask[(0, *[slice(8, 11)] * spatial_dims)] = 5
    assert np.unique(postprocessing.connected_components(mask).numpy()).tolist() == [0, 1, 2, 3]
    assert np.unique(postprocessing.connected_components(mask, min_size=2).numpy()).tolist() == [0, 1, 2]


def test_denormalize_undoes_a_normalisation():
    image = torch.tensor([[[90.0, 100.0, 130.0]]])
    normalised = (image - 100) / 20
    assert torch.allclose(postprocessing.denormalize(normalised, mean=100, std=20), image)
    output = postprocessing.denormalize(normalised * 10, mean=100, std=20, dtype="uint8")
    assert output.tolist() == [[[0, 100, 255]]]  # clipped, not wrapped
    with pytest.raises(ConfigError, match="choose one of uint8, uint16, float32"):
        postprocessing.denormalize(normalised, mean=0, std=1, dtype="int8")


def test_an_image_that_was_normalised_by_its_own_mean_stays_in_standard_deviations():
    normalised = torch.tensor([[[-0.5, 0.0, 1.5]]])
    assert torch.equal(postprocessing.denormalize(normalised, mean=None, std=None), normalised)


@pytest.mark.parametrize(("mean", "std"), [(100, None), (None, 20)])
def test_a_mean_without_a_standard_deviation_is_refused(mean, std):
    with pytest.raises(ConfigError, match=f"mean is {mean} and std is {std}; give both, or neither"):
        postprocessing.denormalize(torch.zeros(1, 2, 2), mean=mean, std=std)


def test_a_head_without_postprocessing_is_drawn_by_its_activation():
    assert postprocessing.default_prediction("segmentation", "sigmoid") is postprocessing.sigmoid_rescale
    assert postprocessing.default_prediction("segmentation", "softmax") is postprocessing.argmax
    assert postprocessing.default_prediction("regression", "identity") is postprocessing.identity
    assert postprocessing.default_prediction("instances", "sigmoid") is postprocessing.instances


def test_functions_that_give_labels_are_known_as_partials_too():
    assert postprocessing.gives_labels(partial(postprocessing.connected_components, min_size=5))
    assert postprocessing.gives_labels(postprocessing.argmax)
    assert not postprocessing.gives_labels(postprocessing.sigmoid_rescale)


INSTANCE_LOGITS = np.zeros((2, 4, 4), np.float32)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": 0},
        {"seed": 1},
        {"seed": []},
        {"foreground": -0.1},
        {"foreground": "half"},
        {"min_size": -1},
        {"min_seed": None},
    ],
    ids=str,
)
def test_instances_refuses_a_parameter_out_of_its_range_by_its_name(wrong):
    with pytest.raises(ConfigError, match=f"instances: {next(iter(wrong))} is "):
        postprocessing.instances(INSTANCE_LOGITS, **wrong)


def test_instances_refuses_a_head_that_is_none_for_instances():
    with pytest.raises(ConfigError, match="2 channels of an InstanceHead, not 1"):
        postprocessing.instances(INSTANCE_LOGITS[:1])


@pytest.mark.parametrize("shape", [(2, 6, 7), (2, 3, 6, 7)])
def test_instances_are_numbered_from_one_in_uint32(shape):
    logits = np.full(shape, -9, np.float32)
    logits[..., :2, :2] = logits[..., 4:, 4:] = 9
    labels = postprocessing.instances(logits)
    assert labels.shape == (1, *shape[1:])
    assert labels.dtype == torch.uint32
    assert labels.unique().tolist() == [0, 1, 2]
