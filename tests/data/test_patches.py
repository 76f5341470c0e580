"""Patches: everywhere in the image, and a pure function of (seed, epoch, row, patch)."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import RandFlipd, RandGaussianNoised, RandSpatialCropSamplesd

from cyto_dl.data.cache import CachedDataset
from cyto_dl.data.patches import PatchDataset, WholeImages
from cyto_dl.data.transforms import ReadImaged
from cyto_dl.errors import ConfigError, ImageError

SHAPES = {2: (9, 11), 3: (5, 9, 11)}


def samples(spatial_dims=2, *, shape=None, seg=None, keys=("raw", "seg"), num_rows=2):
    """Images whose voxels say where they are."""
    shape = shape or SHAPES[spatial_dims]
    raw = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    rows = [{"raw": raw, "seg": raw if seg is None else seg, "row": f"train[{row}]"} for row in range(num_rows)]
    rows = [{key: row[key] for key in (*keys, "row")} for row in rows]
    seg_dims = spatial_dims if seg is None else seg.ndim
    readers = [ReadImaged("raw", spatial_dims), ReadImaged("seg", seg_dims, allow_missing_keys=True)]
    return CachedDataset(rows, readers, source_key="raw")


@settings(max_examples=30, deadline=None)
@given(data=st.data(), spatial_dims=st.sampled_from([2, 3]))
def test_every_origin_at_which_a_patch_fits_comes_up_and_every_voxel_is_covered(data, spatial_dims):
    shape = data.draw(st.tuples(*[st.integers(1, 5)] * spatial_dims))
    patch_shape = [data.draw(st.integers(1, size)) for size in shape]
    dataset = PatchDataset(samples(spatial_dims, shape=shape, keys=["raw"], num_rows=1), patch_shape=patch_shape)
    num_origins = int(np.prod([size - patch + 1 for size, patch in zip(shape, patch_shape, strict=True)]))
    origins, covered = set(), set()
    for patch in range(num_origins * 12):  # misses one of n origins with a probability of n exp(-12)
        values = dataset[0, 0, patch]["raw"][0]
        assert list(values.shape) == patch_shape
        origins.add(int(values.flatten()[0]))
        covered |= set(values.flatten().tolist())
    if num_origins <= 64:
        assert len(origins) == num_origins
    assert np.prod(shape) - 1 in covered  # the last voxel of the last row


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_first_and_the_last_row_are_drawn_as_often_as_any_other_origin(spatial_dims):
    patch_shape = [4] * spatial_dims
    dataset = PatchDataset(samples(spatial_dims, keys=["raw"]), patch_shape=patch_shape)
    width = SHAPES[spatial_dims][-1]
    columns = [int(dataset[0, 0, patch]["raw"].flatten()[0]) % width for patch in range(2000)]
    counts = np.bincount(columns, minlength=width - 3)
    expected = 2000 / (width - 3)
    assert np.abs(counts - expected).max() < 5 * expected**0.5  # five standard deviations


AUGMENT = [
    RandFlipd(["raw", "seg"], prob=0.5, spatial_axis=0),
    RandGaussianNoised("raw", prob=1.0),
    lambda item: {**item, "raw": item["raw"] + np.random.rand() + torch.rand(1) + random.random()},
]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_patch_is_a_function_of_seed_epoch_row_and_number_alone(spatial_dims):
    def make(seed=7):
        return PatchDataset(samples(spatial_dims), augment=AUGMENT, patch_shape=[4] * spatial_dims, seed=seed)

    reference = make()[3, 1, 2]
    dataset = make()
    for other in (0, 0, 0), (3, 1, 1), (3, 0, 2), (2, 1, 2):
        assert not torch.equal(dataset[other]["raw"], reference["raw"])
    torch.manual_seed(99)
    np.random.seed(99)
    again = dataset[3, 1, 2]
    assert torch.equal(again["raw"], reference["raw"])
    assert torch.equal(again["seg"], reference["seg"])
    assert not torch.equal(make(seed=8)[3, 1, 2]["raw"], reference["raw"])


def test_drawing_patches_leaves_the_global_random_numbers_alone():
    dataset = PatchDataset(samples(), augment=AUGMENT, patch_shape=[4, 4])
    drawn = []
    for use in False, True:
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        if use:
            dataset[0, 0, 0]
        drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert drawn[0] == drawn[1]


def test_random_transforms_of_one_kind_draw_different_numbers():
    noise = [RandGaussianNoised("raw", prob=1.0), RandGaussianNoised("seg", prob=1.0)]
    patch = PatchDataset(samples(), augment=noise, patch_shape=[4, 4])[0, 0, 0]
    assert not torch.allclose(patch["raw"], patch["seg"])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_patch_is_cut_at_the_same_place_from_every_image(spatial_dims):
    dataset = PatchDataset(samples(spatial_dims), patch_shape=[3] * spatial_dims)
    for number in range(20):
        patch = dataset[0, 0, number]
        assert torch.equal(patch["raw"], patch["seg"])


def test_a_projection_is_cut_below_its_stack():
    projection = np.arange(9 * 11, dtype=np.float32).reshape(9, 11)
    dataset = PatchDataset(
        samples(3, seg=projection), patch_shape=[2, 3, 4], foreground_key="seg", foreground_fraction=0.5
    )
    for number in range(20):
        patch = dataset[0, 0, number]
        assert patch["seg"].shape == (1, 3, 4)
        assert torch.equal(patch["raw"][:, 0] % (9 * 11), patch["seg"])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("sparse", [False, True])
def test_foreground_patches_are_around_a_foreground_voxel(spatial_dims, sparse):
    seg = np.zeros((20,) * spatial_dims if not sparse else (60,) * spatial_dims, np.float32)
    where = (15,) * spatial_dims if not sparse else (57,) * spatial_dims
    seg[where] = 1
    made = samples(spatial_dims, shape=seg.shape, seg=seg, num_rows=1)
    arguments = {"patch_shape": [5] * spatial_dims, "foreground_key": "seg"}
    always = PatchDataset(made, **arguments, foreground_fraction=1.0)
    assert all(always[0, 0, number]["seg"].sum() == 1 for number in range(10))
    half = PatchDataset(made, **arguments, foreground_fraction=0.5)
    hits = sum(bool(half[0, 0, number]["seg"].any()) for number in range(100))
    assert 30 < hits < 75  # 50 plus the few that meet it by chance; five standard deviations


def test_every_foreground_voxel_is_chosen_equally_often():
    seg = np.zeros((8, 8), np.float32)
    seg[2, 2:6] = 1
    made = samples(2, shape=(8, 8), seg=seg, num_rows=1)
    dataset = PatchDataset(made, patch_shape=[1, 1], foreground_key="seg", foreground_fraction=1.0)
    found = [int(dataset[0, 0, number]["raw"]) for number in range(400)]
    counts = np.bincount(found)[18:22]
    assert counts.sum() == 400
    assert np.abs(counts - 100).max() < 50  # five standard deviations


def test_an_image_without_foreground_gives_patches_from_anywhere():
    made = samples(2, seg=np.zeros(SHAPES[2], np.float32))
    dataset = PatchDataset(made, patch_shape=[3, 3], foreground_key="seg", foreground_fraction=1.0)
    assert len({int(dataset[0, 0, number]["raw"].flatten()[0]) for number in range(50)}) > 10


@pytest.mark.parametrize("patch_shape", [[10, 4], [4, 12], [4, 4, 4], [4]])
def test_a_patch_that_does_not_fit_names_the_key_and_the_image(patch_shape):
    with pytest.raises(ConfigError, match=r"train\[0\]: the image's size is \(9, 11\), but data\.patch_shape is"):
        PatchDataset(samples(), patch_shape=patch_shape)[0, 0, 0]


def test_a_target_of_another_size_names_both():
    made = samples(2, seg=np.zeros((9, 10)))
    for dataset, index in (PatchDataset(made, patch_shape=[4, 4]), (0, 0, 0)), (WholeImages(made), 0):
        with pytest.raises(ImageError, match=r"'raw' \(train\[0\]\) has the size \(9, 11\), but 'seg' .* \(9, 10\)"):
            dataset[index]


def test_without_a_patch_shape_whole_images_are_augmented():
    dataset = PatchDataset(samples(), augment=[RandFlipd("raw", prob=1.0, spatial_axis=0)])
    assert torch.equal(dataset[0, 0, 0]["raw"], WholeImages(dataset.samples)[0]["raw"].flip(1))


def test_a_transform_that_makes_several_samples_gives_several_items():
    crops = RandSpatialCropSamplesd(["raw", "seg"], roi_size=[4, 4], num_samples=3, random_size=False)
    items = PatchDataset(samples(), augment=[crops])[0, 1, 0]
    assert [tuple(item["raw"].shape) for item in items] == [(1, 4, 4)] * 3
    assert {item["path"] for item in items} == {"train[1]"}


def test_plain_numbers_count_through_the_patches_of_the_first_epoch():
    dataset = PatchDataset(samples(), patch_shape=[4, 4], patches_per_image=3)
    assert len(dataset) == 6
    assert torch.equal(dataset[4]["raw"], dataset[0, 1, 1]["raw"])


def test_a_failing_augmentation_names_the_image():
    def fail(item):
        raise ValueError("no such thing")

    with pytest.raises(ImageError, match=r"train\[1\]: the transform fail failed \(ValueError: no such thing"):
        PatchDataset(samples(), augment=[fail])[0, 1, 0]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_targets_are_encoded_after_augmentation_and_sources_are_not(spatial_dims):
    def positions(target, spacing_um):
        assert spacing_um is None
        return torch.stack([target[0], torch.arange(target.shape[-1]).expand(target.shape[1:])])

    flip = RandFlipd(["raw", "seg"], prob=1.0, spatial_axis=-1)
    dataset = PatchDataset(samples(spatial_dims), augment=[flip], encoders={"seg": positions, "other": positions})
    item = dataset[0, 0, 0]
    assert torch.equal(item["seg"][:1], item["raw"])
    assert item["seg"][1].flatten()[0] == 0  # flipped before, not after
    assert set(item) == {"raw", "seg", "path", "spacing_um"}
    assert WholeImages(dataset.samples)[0]["seg"].shape == item["raw"].shape


def test_a_target_that_cannot_be_encoded_names_the_image_and_the_key():
    def refuse(target, spacing_um):
        raise ValueError("labels are whole numbers, but 0.5 is among them")

    with pytest.raises(ImageError, match=r"train\[1\]: the target 'seg' cannot be encoded .* but 0\.5 is among them"):
        PatchDataset(samples(), encoders={"seg": refuse})[0, 1, 0]
