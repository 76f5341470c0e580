"""One loss of several: fixed weights, and weights that an optimizer learns."""

import math

import pytest
import torch
from torch import nn

from cyto_dl.errors import ConfigError
from cyto_dl.model.weighting import FixedWeights, UncertaintyWeights, build_weighting

HEADS = ["seg", "distance"]


def losses(seg=2.0, distance=0.5):
    return {"seg": torch.tensor(seg, requires_grad=True), "distance": torch.tensor(distance, requires_grad=True)}


def test_without_weights_the_losses_are_added_up():
    assert build_weighting(None, HEADS)(losses()).item() == 2.5


def test_fixed_weights_scale_each_loss_and_its_gradient():
    values = losses()
    total = build_weighting({"distance": 0.1}, HEADS)(values)
    total.backward()
    assert total.item() == pytest.approx(2 + 0.05)  # of float32 numbers
    assert (values["seg"].grad.item(), values["distance"].grad.item()) == (1.0, pytest.approx(0.1))


@pytest.mark.parametrize("kind", [FixedWeights({"seg": 3.0, "distance": 3.0}), "uncertainty"])
def test_a_head_that_a_batch_does_not_train_adds_nothing(kind):
    weighting = build_weighting(UncertaintyWeights() if kind == "uncertainty" else kind, HEADS)
    alone = {"seg": losses()["seg"]}
    expected = {"seg": losses()["seg"], "distance": torch.tensor(0.0)}  # the log-variances are 0 at first
    assert weighting(alone).item() == weighting(expected).item()


def test_every_learned_weight_gets_a_gradient_also_without_a_loss():
    weighting = build_weighting(UncertaintyWeights(), HEADS)
    weighting({"seg": torch.tensor(2.0)}).backward()
    assert [parameter.grad.item() for parameter in weighting.parameters()] == [-0.5, 0.0]  # (1 - 2 exp(0)) / 2, none


def test_uncertainty_weights_follow_their_formula():
    weighting = build_weighting(UncertaintyWeights(), HEADS)
    with torch.no_grad():
        weighting.log_variances["seg"].fill_(1.0)
        weighting.log_variances["distance"].fill_(-0.5)
    expected = (math.exp(-1) * 2 + 1) / 2 + (math.exp(0.5) * 0.5 - 0.5) / 2
    assert weighting(losses()).item() == pytest.approx(expected, rel=1e-6)  # of float32 numbers


def test_learned_variances_come_to_the_size_of_each_loss():
    weighting = build_weighting(UncertaintyWeights(), HEADS)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        weighting(losses(seg=20.0, distance=0.01)).backward()
        optimizer.step()
    found = {head: math.exp(value.item()) for head, value in weighting.log_variances.items()}
    assert found == pytest.approx({"seg": 20.0, "distance": 0.01}, rel=0.01)  # Adam has come that close after 300 steps


def test_a_weighting_of_ones_own_is_used_as_it_is():
    own = nn.Identity()
    assert build_weighting(own, HEADS) is own


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"dist": 1.0}, r"model\.loss_weights\.dist: there is no such head; choose among seg, distance"),
        ({"seg": -1.0}, r"model\.loss_weights\.seg is -1\.0; it must be a number, 0 or more"),
        ({"seg": "high"}, r"model\.loss_weights\.seg is 'high'"),
        ({"seg": math.nan}, r"model\.loss_weights\.seg is nan"),
    ],
)
def test_wrong_weights_say_which_key(weights, says):
    with pytest.raises(ConfigError, match=says):
        build_weighting(weights, HEADS)
