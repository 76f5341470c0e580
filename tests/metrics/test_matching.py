"""Objects are matched as stardist.matching matches them, for any number of objects."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stardist.matching import matching, matching_dataset

from cyto_dl.errors import ConfigError, ImageError
from cyto_dl.metrics import IOU_THRESHOLDS, Matching, match_objects

THEIR_NAMES = {
    "tp": "tp",
    "fp": "fp",
    "fn": "fn",
    "precision": "precision",
    "recall": "recall",
    "ap": "accuracy",
    "f1": "f1",
    "pq": "panoptic_quality",
    "mean_matched_iou": "mean_matched_score",
    "mean_true_iou": "mean_true_score",
}
SINGLE = 1e-6  # stardist adds up its IoU in single precision


def label_images(seed, spatial_dims, *, size=12, num_objects=8):
    """Boxes that touch and cover each other, and the same boxes moved, some left out, some added; odd labels."""
    rng = np.random.default_rng(seed)
    target, prediction = np.zeros((2, *[size] * spatial_dims), np.int32)
    for _ in range(rng.integers(0, num_objects + 1)):
        corner, side = rng.integers(0, size, spatial_dims), rng.integers(1, 6, spatial_dims)
        box = tuple(slice(start, start + length) for start, length in zip(corner, side, strict=True))
        steps = rng.integers(-1, 2, spatial_dims)
        moved = tuple(slice(max(0, each.start + step), each.stop) for each, step in zip(box, steps, strict=True))
        target[box] = rng.integers(0, 3) and rng.integers(1, 2000)
        prediction[moved] = rng.integers(0, 3) and rng.integers(1, 2000)
    return target, prediction


@pytest.fixture(scope="module", autouse=True)
def compiled_stardist():
    """Its first call compiles for seconds, which hypothesis would report as a slow example."""
    for spatial_dims in (2, 3):
        matching(*label_images(0, spatial_dims))


images = st.builds(label_images, st.integers(0, 2**32 - 1), st.sampled_from([2, 3]))


@given(images)
def test_every_score_is_that_of_stardist(pair):
    ours = match_objects(*pair)
    for index, theirs in enumerate(matching(*pair, thresh=IOU_THRESHOLDS)):
        for our_name, their_name in THEIR_NAMES.items():
            value = torch.nan_to_num(getattr(ours, our_name)[index]).item()  # stardist says 0 for 0 / 0
            assert value == pytest.approx(getattr(theirs, their_name), rel=SINGLE), our_name


@given(images, st.floats(0.01, 0.5))
def test_below_one_half_as_many_objects_are_found_as_by_stardist(pair, threshold):
    # Several assignments may have the same sum of IoU, and then differ in how much of it lies above the threshold:
    # the sum of the found ones is only bounded.
    ours, theirs = match_objects(*pair, thresholds=[threshold]), matching(*pair, thresh=threshold)
    assert [each.item() for each in ours[:3]] == [theirs.tp, theirs.fp, theirs.fn]
    assert threshold * theirs.tp <= ours.sum_iou.item() + SINGLE


@given(st.lists(images, min_size=1, max_size=3))
@settings(max_examples=40)  # of several images each
def test_counts_summed_over_images_give_the_scores_of_a_dataset(pairs):
    summed = Matching(*(sum(parts) for parts in zip(*(match_objects(*pair) for pair in pairs), strict=True)))
    targets, predictions = zip(*pairs, strict=True)
    pooled = matching_dataset(targets, predictions, thresh=IOU_THRESHOLDS, show_progress=False)
    for index, theirs in enumerate(pooled):
        for our_name, their_name in THEIR_NAMES.items():
            value = torch.nan_to_num(getattr(summed, our_name)[index]).item()
            assert value == pytest.approx(getattr(theirs, their_name), rel=SINGLE), our_name


def test_a_threshold_is_reached_by_an_equal_iou():
    target, prediction = np.zeros((2, 1, 40), int)
    for number, (overlap, union) in enumerate([(1, 2), (11, 20), (3, 5)], start=1):  # 0.5, 0.55, 0.6
        start = [0, 4, 30][number - 1]
        target[0, start : start + union] = number
        prediction[0, start : start + overlap] = number
    assert match_objects(target, prediction, thresholds=[0.5, 0.55, 0.6, 0.65]).tp.tolist() == [3, 2, 1, 0]


def test_an_object_split_into_halves_is_found_once():
    whole, halves = np.array([[7, 7, 7, 7]]), np.array([[2, 2, 9, 9]])
    for pair in ((whole, halves), (halves, whole)):
        found = match_objects(*pair, thresholds=[0.5])
        assert (found.tp, found.sum_iou) == (1, 0.5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.int64, np.float32])
def test_labels_may_be_of_any_type_and_value(dtype):
    labels = np.array([[0, 1, 1, 0], [5, 5, 0, 200]], dtype)
    assert match_objects(labels, labels).ap.tolist() == [1] * len(IOU_THRESHOLDS)
    highest = np.where(labels > 0, np.iinfo(np.uint32).max - labels.astype(np.uint32), 0).astype(np.uint32)
    assert match_objects(labels, highest).tp.tolist() == [3] * len(IOU_THRESHOLDS)


def test_without_background_every_object_counts():
    assert match_objects(np.ones((2, 2), int), np.full((2, 2), 3)).tp.tolist() == [1] * len(IOU_THRESHOLDS)


def test_empty_images_are_undefined_and_a_false_object_counts_zero():
    empty, one = np.zeros((2, 4, 4), np.uint16)
    one[0, 0] = 1
    assert torch.isnan(match_objects(empty, empty).ap).all()
    assert match_objects(empty, one).ap.tolist() == match_objects(one, empty).ap.tolist() == [0] * len(IOU_THRESHOLDS)
    assert match_objects(empty, one, thresholds=[0.3]).fp == match_objects(one, empty, thresholds=[0.3]).fn == 1
    assert match_objects(empty[:0], empty[:0]).tp.sum() == 0


@pytest.mark.parametrize(("side", "threshold"), [(265, 0.5), (50, 0.3)])
def test_more_than_65535_touching_objects_are_matched(side, threshold):
    # A dense table of 265 x 265 objects would have 4.9 billion entries.
    tiles = np.arange(1, side * side + 1).reshape(side, side).repeat(4, 0).repeat(4, 1)
    moved = np.roll(tiles, 1, axis=0)
    moved[0] = 0
    found = match_objects(tiles, moved, thresholds=[threshold])
    assert (found.tp, found.fp, found.fn) == (side * side, 0, 0)
    # 12 of 20 pixels, but 12 of 16 in the last row, which loses what left the image; IoU are single precision
    assert found.sum_iou.item() == pytest.approx(side * (side - 1) * 0.6 + side * 0.75, rel=1e-6)


@pytest.mark.parametrize("wrong", [0.5, -1.0, float("nan")])
def test_what_is_no_label_is_refused(wrong):
    labels = np.array([[0, wrong, 1]], np.float32)
    with pytest.raises(ImageError, match=f"the prediction has a pixel of value {wrong:g}"):
        match_objects(np.zeros((1, 3), int), labels)


def test_shapes_and_thresholds_that_do_not_fit_are_refused():
    with pytest.raises(ImageError, match=r"\(2, 3\) \(target\) and \(3, 2\)"):
        match_objects(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(ConfigError, match="IoU threshold 0"):
        match_objects(np.zeros((2, 3), int), np.zeros((2, 3), int), thresholds=[0])
