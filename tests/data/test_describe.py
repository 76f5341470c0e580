"""Equal transforms have equal descriptions; changed ones do not."""

import functools
import importlib.util
import sys

import numpy as np
import pytest
import torch
from monai.transforms import Lambdad, NormalizeIntensityd, Resized, Spacingd

from cyto_dl.data.describe import describe
from cyto_dl.errors import ConfigError


def plus(number, by=1):
    return number + by


@pytest.mark.parametrize(
    "make",
    [
        lambda: NormalizeIntensityd("raw", nonzero=True),
        lambda: Spacingd(["raw", "seg"], pixdim=(1, 1), mode=["bilinear", "nearest"]),
        lambda: Lambdad("raw", lambda image: image + 1),
        lambda: functools.partial(plus, by=2),
        torch.nn.ReLU,
        lambda: {"a": np.arange(3), "b": {1, 2}, "c": (torch.float32, np.dtype("uint8"), slice(1, 2))},
    ],
)
def test_two_objects_made_alike_have_the_same_description(make):
    assert describe(make()) == describe(make())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (NormalizeIntensityd("raw"), NormalizeIntensityd("seg")),
        (Resized("raw", [4, 4]), Resized("raw", [4, 8])),
        (Lambdad("raw", lambda image: image + 1), Lambdad("raw", lambda image: image + 2)),
        (Lambdad("raw", lambda image: image + 1), Lambdad("raw", lambda image: image - 1)),
        (functools.partial(plus, by=2), functools.partial(plus, by=3)),
        (np.zeros(3), np.zeros(3, np.float32)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (torch.zeros(3), torch.ones(3)),
        (1, True),
        ("1", 1),
    ],
)
def test_what_differs_has_another_description(one, other):
    assert repr(describe(one)) != repr(describe(other))


def test_what_a_function_carries_along_is_part_of_it():
    def adding(number):
        return lambda image: image + number

    assert describe(adding(1)) != describe(adding(2))
    assert describe(adding(1)) == describe(adding(1))


def test_a_changed_class_makes_its_objects_differ(tmp_path, monkeypatch):
    def load(body):
        path = tmp_path / f"mine_{abs(hash(body))}.py"
        path.write_text(f"class Mine:\n    def __call__(self, image):\n        return {body}\n")
        spec = importlib.util.spec_from_file_location("mine", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "mine", module)
        spec.loader.exec_module(module)
        return module.Mine()

    assert describe(load("image")) == describe(load("image"))
    assert describe(load("image")) != describe(load("image + 1"))


def test_an_object_that_holds_itself_can_be_described():
    loop = []
    loop.append(loop)
    assert describe(loop) == ["itself"]


def test_an_object_whose_content_is_out_of_reach_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"cannot be told.*data\.cache_dir"):
        describe(object())
    with pytest.raises(ConfigError, match="python objects"):
        describe(np.array([{}], dtype=object))
