"""Which transform runs when."""

import numpy as np
import pytest
import torch
from monai.transforms import (
    Compose,
    ConcatItemsd,
    MapTransform,
    NormalizeIntensityd,
    OneOf,
    RandFlipd,
    RandGaussianNoised,
    Resized,
    ScaleIntensityd,
    ToTensord,
)

from cyto_dl.data.stages import for_missing, for_source, for_targets, is_random, readers, stages
from cyto_dl.data.transforms import ReadImaged
from cyto_dl.errors import ConfigError

READ = {"_target_": "cyto_dl.data.transforms.ReadImaged", "keys": ["raw", "seg"], "spatial_dims": 2}
NORMALIZE = {"_target_": "monai.transforms.NormalizeIntensityd", "keys": "raw"}
FLIP = {"_target_": "monai.transforms.RandFlipd", "keys": ["raw", "seg"], "prob": 0.5}


def names(transforms):
    return [type(transform).__name__ for transform in transforms]


@pytest.mark.parametrize(
    "transforms",
    [
        {"load": [READ], "preprocess": [NORMALIZE], "augment": [FLIP]},
        [READ, NORMALIZE, FLIP],
        [READ, FLIP, NORMALIZE],
        {split: [READ, NORMALIZE] + [FLIP] * (split == "train") for split in ("train", "valid", "test", "predict")},
    ],
)
@pytest.mark.parametrize("split", ["train", "valid", "test", "predict"])
def test_every_way_of_writing_transforms_gives_the_same_stages(transforms, split):
    found = stages(transforms, split=split)
    assert names(found.load) == ["ReadImaged"]
    assert names(found.preprocess) == ["NormalizeIntensityd"]
    assert names(found.augment) == (["RandFlipd"] if split == "train" else [])


def test_objects_are_taken_as_they_are():
    flip = RandFlipd("raw", prob=0.5)
    assert stages({"augment": [flip]}, split="train").augment == (flip,)


def test_what_stands_before_the_last_reader_is_loading():
    found = stages(
        [ReadImaged("raw", 2), ToTensord("raw"), ReadImaged("seg", 2), ScaleIntensityd("raw")], split="train"
    )
    assert names(found.load) == ["ReadImaged", "ToTensord", "ReadImaged"]
    assert set(readers(found.load)) == {"raw", "seg"}


@pytest.mark.parametrize(
    "transform",
    [
        RandFlipd("raw", prob=1),
        Compose([ToTensord("raw"), Compose([RandFlipd("raw", prob=1)])]),
        OneOf([ToTensord("raw"), ScaleIntensityd("raw")]),
    ],
)
def test_random_transforms_are_known_however_deep(transform):
    assert is_random(transform)
    with pytest.raises(ConfigError, match=r"transforms\.preprocess holds random transforms.*transforms\.augment"):
        stages({"preprocess": [transform]}, split="predict")


def test_a_compose_of_deterministic_transforms_is_deterministic():
    assert not is_random(Compose([ToTensord("raw"), ScaleIntensityd("raw")]))


def test_random_transforms_in_a_list_for_validation_are_refused():
    with pytest.raises(ConfigError, match=r"data\.transforms\.valid holds random transforms \(RandGaussianNoised\)"):
        stages({"valid": [RandGaussianNoised("raw")]}, split="valid")


@pytest.mark.parametrize(
    ("transforms", "split", "message"),
    [
        ({"loda": []}, "train", "has the keys loda.*load, preprocess, augment"),
        ({"train": []}, "test", "no list for the split 'test'; it has train"),
        ([{"_target_": "monai.transforms.Nothingd"}], "train", r"data\.transforms\[0\]"),
        ({"load": [{**READ, "colour": 1}]}, "train", r"data\.transforms\.load\[0\]"),
        (["ReadImaged"], "train", r"data\.transforms\[0\] is not a transform"),
    ],
)
def test_mistakes_are_named_by_their_key(transforms, split, message):
    with pytest.raises(ConfigError, match=message):
        stages(transforms, split=split)


def test_without_targets_what_concerns_only_them_is_dropped_and_the_rest_is_lenient():
    seg = {"_target_": "monai.transforms.AsDiscreted", "keys": "seg", "threshold": 0.5}
    assert for_source([READ, NORMALIZE, seg], "raw") == [{**READ, "allow_missing_keys": True}, NORMALIZE]


def test_objects_are_copied_before_they_become_lenient():
    resize = Resized(["raw", "seg"], [4, 4], mode=["area", "nearest"])
    only_seg = ScaleIntensityd("seg")
    for_raw = for_source([resize, only_seg, Compose([resize, only_seg])], "raw")
    assert names(for_raw) == ["Resized", "Compose"]
    assert names(for_raw[1].transforms) == ["Resized"]
    assert not resize.allow_missing_keys
    for transform in for_raw:
        assert transform({"raw": torch.ones(1, 8, 8)})["raw"].shape == (1, 4, 4)


def test_a_mapping_of_nested_transforms_is_looked_into():
    nested = {"_target_": "monai.transforms.Compose", "transforms": [NORMALIZE, FLIP | {"keys": "seg"}]}
    assert for_source([nested], "raw") == [{**nested, "transforms": [NORMALIZE]}]


def test_transforms_without_keys_see_the_whole_row():
    def function(item):
        return item

    assert for_source([function], "raw") == [function]


class Strict(MapTransform):
    """Cannot be told to skip keys."""

    def __init__(self, keys):
        super().__init__(keys)
        del self.allow_missing_keys

    def __call__(self, data):
        return data


@pytest.mark.parametrize(
    "item",
    [
        Strict(["raw", "seg"]),
        {"_target_": "monai.transforms.DeleteItemsd", "keys": ["raw", "seg"]},
    ],
)
def test_a_transform_that_cannot_leave_its_target_out_is_named(item):
    with pytest.raises(ConfigError, match=r"(Strict|DeleteItemsd) with the keys .*raw.* cannot leave a key out"):
        for_source([item], "raw")


def test_a_mapping_that_cannot_be_imported_is_named():
    with pytest.raises(ConfigError, match=r"names nowhere\.Nothing, which cannot be imported"):
        for_source([{"_target_": "nowhere.Nothing", "keys": ["raw", "seg"]}], "raw")


def test_targets_are_compared_in_the_geometry_of_the_original_image():
    resize = Resized(["raw", "seg"], [4, 4])  # undone on predictions
    scale = NormalizeIntensityd(["raw", "seg"])  # the target's own units are those after it
    only_seg = ScaleIntensityd("seg")
    kept = for_targets([resize, scale, only_seg, ScaleIntensityd("raw")], "raw")
    assert names(kept) == ["NormalizeIntensityd", "ScaleIntensityd"]
    seg = {"seg": torch.from_numpy(np.random.default_rng(0).random((1, 8, 8)))}
    for transform in kept:
        seg = transform(seg)
    assert seg["seg"].shape == (1, 8, 8)


def test_a_transform_that_needs_all_its_keys_stays_strict_where_they_are_there():
    concat = ConcatItemsd(["seg", "edge"], name="both")
    assert for_targets([concat], "raw") == [concat]


def test_for_a_row_without_some_targets_only_what_concerns_those_alone_is_dropped():
    flip, both, edge, whole = (
        RandFlipd(["raw", "seg"]),
        NormalizeIntensityd(["seg", "edge"]),
        Resized("edge", [4]),
        print,
    )
    assert for_missing([flip, both, edge, whole], ()) == [flip, both, edge, whole]
    kept = for_missing([flip, both, edge, whole], {"edge"})
    assert [kept[0], kept[2]] == [flip, whole]
    assert names(kept[1:2]) == ["NormalizeIntensityd"]
    assert kept[1].allow_missing_keys
    assert not both.allow_missing_keys


def test_one_of_several_stays_one_of_several_when_a_target_is_missing():
    choice = OneOf([RandFlipd("edge", prob=1), RandFlipd(["raw", "edge"], prob=1, spatial_axis=-1)], weights=[0.9, 0.1])
    (without,) = for_missing([choice], {"edge"})
    ramp = torch.arange(4.0).expand(1, 4, 4)
    num_flipped = sum(bool(without({"raw": ramp})["raw"][0, 0, 0] == 3) for _ in range(200))
    assert 5 <= num_flipped <= 45  # 20 expected; more than three standard deviations either way
    assert without({"raw": ramp}).keys() == {"raw"}
    assert not choice.transforms[0].allow_missing_keys
