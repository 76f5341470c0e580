"""Patches of sources whose targets have more voxels, or fewer: cut, flipped and turned at the same place."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import RandFlipd, RandRotate90d, RandSpatialCropd

from cyto_dl.data import DataframeDatamodule, ReadImaged
from cyto_dl.data.cache import CachedDataset
from cyto_dl.data.image import write_image
from cyto_dl.data.patches import PatchDataset
from cyto_dl.errors import ConfigError, ManifestError

BOTH = ["raw", "seg"]


def scaled(coarse, scale):
    """An image with `scale` voxels along each voxel of the coarse one."""
    return np.kron(coarse, np.ones(scale, np.float32)) if max(scale) > 1 else coarse


def pair(shape, scale):
    """A source whose voxels say where they are, and a target that shows the same.

    Args:
        shape: Of the source; a multiple of what `scale` divides by.
        scale: Along each axis, k > 0 for k target voxels per source voxel, -k for k source voxels per target voxel.
    """
    coarse = [size // max(-k, 1) for size, k in zip(shape, scale, strict=True)]
    content = np.arange(np.prod(coarse), dtype=np.float32).reshape(coarse)
    return scaled(content, [max(-k, 1) for k in scale]), scaled(content, [max(k, 1) for k in scale])


def dataset(raw, seg, **arguments):
    reads = [ReadImaged("raw", raw.ndim), ReadImaged("seg", seg.ndim)]
    return PatchDataset(
        CachedDataset([{"raw": raw, "seg": seg, "row": "train[0]"}], reads, source_key="raw"), **arguments
    )


def same_place(item, scale):
    """Whether the source and its target, both on the finest grid, show the same."""
    finest = [
        scaled(item[key][0].numpy(), [max(sign * k, 1) for k in scale]) for key, sign in (("raw", 1), ("seg", -1))
    ]
    return np.array_equal(*finest)


SCALES = st.sampled_from([-3, -2, 1, 2, 3])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), spatial_dims=st.sampled_from([2, 3]))
def test_a_patch_of_a_target_of_any_scale_shows_what_its_source_shows(data, spatial_dims):
    scale = [data.draw(SCALES) for _ in range(spatial_dims)]
    cells = [data.draw(st.integers(2, 4)) for _ in scale]
    patch_cells = [data.draw(st.integers(1, size)) for size in cells]
    step = [max(-k, 1) for k in scale]
    raw, seg = pair([size * k for size, k in zip(cells, step, strict=True)], scale)
    patch_shape = [size * k for size, k in zip(patch_cells, step, strict=True)]
    flips = [RandFlipd(BOTH, prob=0.5, spatial_axis=axis - spatial_dims) for axis in range(spatial_dims)]
    patches = dataset(raw, seg, patch_shape=patch_shape, augment=flips)
    for number in range(5):
        item = patches[0, 0, number]
        assert list(item["raw"].shape[1:]) == patch_shape
        assert same_place(item, scale)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), in_plane=SCALES, depth=SCALES, spatial_dims=st.sampled_from([2, 3]))
def test_rotations_by_right_angles_keep_source_and_target_together(data, in_plane, depth, spatial_dims):
    scale = [depth, in_plane, in_plane][-spatial_dims:]
    raw, seg = pair([12] * spatial_dims, scale)
    rotate = RandRotate90d(BOTH, prob=0.8, spatial_axes=(-2, -1))
    patches = dataset(raw, seg, patch_shape=[6] * spatial_dims, augment=[rotate])
    assert all(same_place(patches[0, 0, number], scale) for number in range(5))


def test_every_place_on_the_common_grid_comes_up_to_the_last():
    raw, seg = pair([8, 9], [-2, -3])
    patches = dataset(raw, seg, patch_shape=[4, 3])
    found = {int(patches[0, 0, number]["seg"][0, 0, 0]) for number in range(200)}
    assert found == {3 * y + x for y in range(3) for x in range(3)}


@pytest.mark.parametrize("scale", [(-4, -4), (-2, 3), (2, 2)])
def test_foreground_of_a_target_of_other_scale_is_in_the_patch(scale):
    shape = (64, 64)
    seg = np.zeros([size * k if k > 0 else size // -k for size, k in zip(shape, scale, strict=True)], np.float32)
    seg[-3, 1] = 1
    patches = dataset(
        np.zeros(shape, np.float32), seg, patch_shape=[4, 4], foreground_key="seg", foreground_fraction=1.0
    )
    assert all(patches[0, 0, number]["seg"].sum() == 1 for number in range(10))


def test_a_projection_of_half_the_width_is_cut_below_its_stack():
    projection = np.arange(16, dtype=np.float32).reshape(4, 4)
    stack = np.stack([scaled(projection, (2, 2))] * 5)
    patches = dataset(stack, projection, patch_shape=[2, 4, 6])
    for number in range(10):
        item = patches[0, 0, number]
        assert torch.equal(item["raw"][0, 1, ::2, ::2], item["seg"][0])


def test_encoders_are_told_the_pixel_size_of_the_target(tmp_path):
    told = []

    def encode(target, spacing_um):
        told.append(spacing_um)
        return target

    raw, seg = pair((8, 8), (2, -2))
    write_image(tmp_path / "raw.ome.tif", raw[None], spacing_um=(0.4, 0.1))
    row = {"raw": str(tmp_path / "raw.ome.tif"), "seg": seg, "row": "train[0]"}
    samples = CachedDataset([row], [ReadImaged(BOTH, 2)], source_key="raw")
    PatchDataset(samples, encoders={"seg": encode})[0, 0, 0]
    assert told == [(0.2, 0.2)]


@pytest.mark.parametrize(
    "augment",
    [
        RandSpatialCropd(BOTH, roi_size=[4, 4], random_size=False),  # as many voxels of both
        RandRotate90d(BOTH, prob=1, max_k=1),  # where the scales along Y and X differ
    ],
)
def test_an_augmentation_that_takes_them_apart_is_refused(augment):
    scale = (2, 2) if isinstance(augment, RandSpatialCropd) else (2, 1)
    patches = dataset(*pair((8, 8), scale), augment=[augment])
    with pytest.raises(ConfigError, match=r"train\[0\]: data\.transforms\.augment changes how many voxels 'seg'"):
        patches[0, 0, 0]


def test_a_patch_that_would_cut_a_voxel_of_its_target_says_what_it_may_be():
    patches = dataset(*pair((12, 12), (-4, 1)), patch_shape=[6, 5])
    with pytest.raises(ConfigError, match=r"patch_shape is \(6, 5\).*Give multiples of \(4, 1\)"):
        patches[0, 0, 0]


def datamodule(*pairs, **arguments):
    rows = {"train": [{"raw": raw, "seg": seg} for raw, seg in pairs]}
    spatial_dims = pairs[0][0].ndim
    transforms = {"load": [ReadImaged(BOTH, spatial_dims)], "augment": [RandFlipd(BOTH, prob=0.5, spatial_axis=-1)]}
    return DataframeDatamodule(path=rows, columns={key: key for key in BOTH}, transforms=transforms, **arguments)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_batches_hold_targets_of_their_own_size(spatial_dims):
    data = datamodule(*[pair([16] * spatial_dims, [2] * spatial_dims)] * 2, patch_shape=[8] * spatial_dims)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["raw"].shape[2:] == torch.Size([8] * spatial_dims)
    assert batch["seg"].shape[2:] == torch.Size([16] * spatial_dims)


def test_sizes_that_do_not_go_together_are_said_before_training_with_both_images():
    good = pair((12, 12), (2, 2))
    with pytest.raises(ManifestError) as caught:
        datamodule(good, (np.zeros((12, 12)), np.zeros((18, 24)))).setup("fit")
    assert "train[1]: 'raw' (train[1] 'raw') has the size (12, 12), but 'seg' (train[1] 'seg') has (18, 24)" in str(
        caught.value
    )
    with pytest.raises(ManifestError, match=r"'seg' differ in their number of voxels.*2 x 2: 1 images.*1/2 x 1: 1"):
        datamodule(good, pair((12, 12), (-2, 1))).setup("fit")
    with pytest.raises(ManifestError, match=r"patch_shape is \(6, 5\).*Give multiples of \(1, 2\)"):
        datamodule(pair((12, 12), (1, -2)), patch_shape=[6, 5]).setup("fit")
