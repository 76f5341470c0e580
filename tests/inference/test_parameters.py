"""What may be changed for one image: offered with its bounds, and computed as if the bundle said so."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet

from cyto_dl.errors import ConfigError
from cyto_dl.inference import InputSpec, Predictor, SlidingWindow
from cyto_dl.inference.parameters import parameters_of, with_parameters
from cyto_dl.model.heads import ConvolutionHead, InstanceHead
from cyto_dl.model.network import TaskNetwork
from cyto_dl.model.utils.postprocessing import connected_components, identity, instances, sigmoid_threshold


def make_predictor(spatial_dims, postprocess, **window):
    """A real, untrained predictor with a head for each postprocessing function."""
    torch.manual_seed(0)
    head = {"in_channels": 2, "spatial_dims": spatial_dims}
    heads = {
        name: InstanceHead(**head) if name.startswith("objects") else ConvolutionHead(**head, out_channels=1)
        for name in postprocess
    }
    backbone = UNet(spatial_dims, in_channels=1, out_channels=2, channels=(2, 4), strides=(2,))
    return Predictor(
        name="cells",
        input=InputSpec("raw", spatial_dims, 1),
        outputs={name: {"kind": "segmentation", "activation": "sigmoid"} for name in postprocess},
        network=TaskNetwork(backbone, heads).eval(),
        preprocess=[],
        postprocess=postprocess,
        window=SlidingWindow(**({"roi_size": (16,) * spatial_dims} | window)),
        metadata={},
        device=torch.device("cpu"),
    )


@pytest.fixture
def image():
    def make(spatial_dims):
        return np.random.default_rng(0).normal(0, 1, (1, *(20, 40, 40)[-spatial_dims:])).astype(np.float32)

    return make


def test_a_predictor_offers_what_its_functions_and_its_window_take():
    drawn = functools.partial(instances, foreground=0.4, seed=[0.5, 0.8], min_size=30)
    offered = parameters_of(make_predictor(2, {"objects": drawn, "distance": identity}, overlap=0.3))
    assert {name: each.default for name, each in offered.items()} == {
        "foreground": 0.4,
        "seed": [0.5, 0.8],
        "min_size": 30,
        "min_seed": 1,
        "overlap": 0.3,
        "augment": "none",
    }
    assert offered["foreground"].described() == {
        "type": "number",
        "meaning": "Probability above which a pixel belongs to an object.",
        "default": 0.4,
        "minimum": 0,
        "maximum": 1,
        "bounds_excluded": True,
    }
    assert offered["augment"].described()["choices"] == ["none", "flips", "rotations"]


def test_an_argument_of_several_heads_is_offered_for_each():
    predictor = make_predictor(2, {"nuclei": sigmoid_threshold, "cells": connected_components})
    assert {"nuclei.threshold", "cells.threshold", "min_size"} <= set(parameters_of(predictor))
    changed = with_parameters(predictor, {"cells.threshold": 0.7})
    assert changed.postprocess["nuclei"] is sigmoid_threshold
    assert changed.postprocess["cells"].keywords == {"threshold": 0.7}


def test_nothing_is_offered_that_cannot_be_done():
    class Own:
        def __call__(self, logits):
            return logits

    assert "overlap" not in parameters_of(make_predictor(2, {"seg": Own()}, roi_size=None))
    offered = parameters_of(make_predictor(2, {"seg": Own()}, roi_size=(16, 32)))
    assert offered["augment"].choices == ("none", "flips")  # a network may take windows of one shape only
    assert set(offered) == {"overlap", "augment"}


@pytest.mark.parametrize("dims", [2, 3])
def test_a_changed_predictor_predicts_as_one_that_was_made_so(image, dims):
    values = {"threshold": 0.52, "min_size": 4, "overlap": 0.5, "augment": "flips"}
    changed = with_parameters(make_predictor(dims, {"seg": connected_components}), values)
    drawn = functools.partial(connected_components, threshold=0.52, min_size=4)
    made = make_predictor(dims, {"seg": drawn}, overlap=0.5, augment="flips")
    np.testing.assert_array_equal(changed.predict(image(dims))["seg"], made.predict(image(dims))["seg"])


def test_the_given_predictor_stays_as_it_is(image):
    predictor = make_predictor(2, {"seg": sigmoid_threshold})
    before = predictor.predict(image(2))["seg"]
    assert not with_parameters(predictor, {"threshold": 0.999}).predict(image(2))["seg"].any()
    np.testing.assert_array_equal(predictor.predict(image(2))["seg"], before)
    assert with_parameters(predictor, {}) is predictor


def test_numbers_may_come_as_text():
    predictor = make_predictor(2, {"objects": instances})
    changed = with_parameters(predictor, {"foreground": "0.4", "seed": "0.5,0.8", "min_size": "12", "overlap": "0"})
    assert changed.postprocess["objects"].keywords == {"foreground": 0.4, "seed": [0.5, 0.8], "min_size": 12}
    assert changed.window == dataclasses.replace(predictor.window, overlap=0.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"treshold": 0.5}, ["'treshold'", "foreground", "min_size", "overlap"]),
        ({"foreground": 0}, ["foreground", "0", "between 0 and 1"]),
        ({"foreground": 1.0}, ["foreground", "1.0"]),
        ({"foreground": True}, ["foreground", "True", "a number"]),
        ({"foreground": "high"}, ["foreground", "'high'"]),
        ({"foreground": float("nan")}, ["foreground", "nan"]),
        ({"foreground": "inf"}, ["foreground", "inf"]),
        ({"foreground": 10**400}, ["foreground"]),
        ({"foreground": None}, ["foreground", "None"]),
        ({"foreground": "0." + "5" * 10**6 + "x"}, ["foreground", "..."]),
        ({"seed": []}, ["seed", "[]"]),
        ({"seed": [0.5, 2]}, ["seed", "2"]),
        ({"seed": {"a": 1}}, ["seed"]),
        ({"min_size": 1.5}, ["min_size", "1.5", "whole number"]),
        ({"min_size": -1}, ["min_size", "-1", "from 0"]),
        ({"overlap": 0.9}, ["overlap", "0.9", "0 to 0.75"]),
        ({"augment": "twice"}, ["augment", "'twice'", "none, flips, rotations"]),
        ({"augment": 4}, ["augment", "4"]),
    ],
)
def test_a_value_that_is_not_accepted_is_refused_with_what_is(values, words):
    with pytest.raises(ConfigError) as refused:
        with_parameters(make_predictor(2, {"objects": instances}), values)
    assert [word for word in words if word not in str(refused.value)] == []
    assert len(str(refused.value)) < 300
