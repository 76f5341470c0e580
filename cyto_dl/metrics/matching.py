"""Which predicted objects are which true ones:  two label images -> overlapping pairs -> matches at IoU thresholds"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from cyto_dl.errors import ConfigError, ImageError

IOU_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)  # of the 2018 Data Science Bowl


class ObjectPairs(NamedTuple):
    """The pairs of a true and a predicted object that share a pixel; objects are numbered from 0 by rising label."""

    num_true: int
    num_predicted: int
    true: np.ndarray  # (P,), number of the true object
    predicted: np.ndarray  # (P,), number of the predicted object
    iou: np.ndarray  # (P,), intersection over union, above 0 and at most 1, float32 as in stardist.matching


class Matching(NamedTuple):
    """Counts of objects at IoU thresholds, of one image or summed over images; all of one shape, (..., T).

    What divides nothing by nothing is NaN: without an object in either image nothing can be right or wrong.
    (stardist.matching says 0, which its mean over images then counts as a failure.)
    """

    tp: Tensor  # true objects that were found
    fp: Tensor  # predicted objects that are no true ones
    fn: Tensor  # true objects that were missed
    sum_iou: Tensor  # of the found objects

    @property
    def precision(self) -> Tensor:
        """TP / (TP + FP), 0..1."""
        return self.tp / (self.tp + self.fp)

    @property
    def recall(self) -> Tensor:
        """TP / (TP + FN), 0..1."""
        return self.tp / (self.tp + self.fn)

    @property
    def ap(self) -> Tensor:
        """TP / (TP + FP + FN), 0..1: what microscopists call average precision, StarDist accuracy. Not COCO's AP."""
        return self.tp / (self.tp + self.fp + self.fn)

    @property
    def f1(self) -> Tensor:
        """2 TP / (2 TP + FP + FN), 0..1."""
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn)

    @property
    def pq(self) -> Tensor:
        """Panoptic quality, sum of IoU / (TP + FP / 2 + FN / 2), 0..1.

        Source: Kirillov et al., "Panoptic Segmentation", 2019.
        """
        return self.sum_iou / (self.tp + self.fp / 2 + self.fn / 2)

    @property
    def mean_matched_iou(self) -> Tensor:
        """Mean IoU of the objects that were found."""
        return self.sum_iou / self.tp

    @property
    def mean_true_iou(self) -> Tensor:
        """Mean IoU of all true objects; those that were missed count 0."""
        return self.sum_iou / (self.tp + self.fn)


def match_objects(
    target: np.ndarray, prediction: np.ndarray, *, thresholds: Sequence[float] = IOU_THRESHOLDS
) -> Matching:
    """Match the objects of two label images one to one, as stardist.matching does.

    Args:
        target: Label image of any shape and integer type, 0 is background; labels need not be consecutive.
        prediction: Like target.
        thresholds: T values in 0..1 (0 excluded); a pair matches where its IoU reaches the threshold.

    Returns:
        Counts of shape (T,), float64.

    Raises:
        ImageError: A label is negative or no whole number, or the shapes differ.
        ConfigError: A threshold is not in 0..1.

    Source: Caicedo et al., "Nucleus segmentation across imaging experiments", 2019; stardist.matching.
    """
    return count_matches(pair_objects(target, prediction), thresholds)


def matched_labels(target: np.ndarray, prediction: np.ndarray, *, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The labels of the objects that were found, true and predicted, in the same order.

    Arguments and errors as for `match_objects`, with one threshold.
    """
    pairs = pair_objects(target, prediction)
    kept = _matched(pairs, threshold)
    labels = [np.unique(image[image > 0]) for image in (target, prediction)]
    return labels[0][pairs.true[kept]], labels[1][pairs.predicted[kept]]


def pair_objects(target: np.ndarray, prediction: np.ndarray) -> ObjectPairs:
    """The overlapping objects of two label images, in time and memory that do not grow with the product of counts.

    Arguments and errors as for `match_objects`.
    """
    if target.shape != prediction.shape:
        raise ImageError(f"the label images have shapes {target.shape} (target) and {prediction.shape} (prediction).")
    target, prediction = target.ravel(), prediction.ravel()
    # Neighbours mostly have the same two labels: runs of them are several times fewer than pixels.
    ends = np.flatnonzero((target[1:] != target[:-1]) | (prediction[1:] != prediction[:-1])) + 1
    starts = np.concatenate([[0], ends]) if target.size else ends
    lengths = np.diff(starts, append=target.size)
    true_labels, true = _numbered(target[starts], name="target")
    predicted_labels, predicted = _numbered(prediction[starts], name="prediction")
    shape = (len(true_labels), len(predicted_labels))
    table = coo_matrix((lengths, (true, predicted)), shape=shape).tocsr()  # adds up the runs of a pair
    true_size, predicted_size = (np.asarray(table.sum(axis=axis)).ravel()[1:] for axis in (1, 0))
    objects = table[1:, 1:].tocoo()
    union = true_size[objects.row] + predicted_size[objects.col] - objects.data
    iou = (objects.data / union).astype(np.float32)
    return ObjectPairs(len(true_size), len(predicted_size), objects.row, objects.col, iou)


def count_matches(pairs: ObjectPairs, thresholds: Sequence[float]) -> Matching:
    """Found, false and missed objects at each threshold, shape (T,). Arguments and errors as for `match_objects`."""
    unusable = [threshold for threshold in thresholds if not 0 < threshold <= 1]
    if unusable:
        raise ConfigError(f"IoU threshold {unusable[0]}: choose numbers above 0 and at most 1.")
    matched = [pairs.iou[_matched(pairs, float(threshold))] for threshold in thresholds]
    tp = torch.tensor([len(iou) for iou in matched], dtype=torch.float64)
    sum_iou = torch.tensor([iou.sum(dtype=np.float64) for iou in matched], dtype=torch.float64)
    return Matching(tp, pairs.num_predicted - tp, pairs.num_true - tp, sum_iou)


def _numbered(labels: np.ndarray, *, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The different labels, background first even where there is none, and the position of each label among them."""
    different, position = np.unique(np.concatenate([labels[:0], [0], labels]), return_inverse=True)
    wrong = different[(different < 0) | (different != np.floor(different))]  # NaN differs from itself
    if len(wrong):
        raise ImageError(
            f"the {name} has a pixel of value {wrong[0]:g}; a label image numbers its objects 1, 2, ... and its "
            "background 0."
        )
    return different, position[1:]


def _matched(pairs: ObjectPairs, threshold: float) -> np.ndarray:
    """Positions of the pairs that match."""
    if threshold < 0.5:
        return _assigned(pairs, threshold)
    # Above 0.5 an object has one partner at most. At 0.5 it has two where they are its halves, and either will do.
    positions = np.flatnonzero(pairs.iou >= threshold)
    for objects in (pairs.true, pairs.predicted):
        _, first = np.unique(objects[positions], return_index=True)
        positions = positions[first]
    return positions


def _assigned(pairs: ObjectPairs, threshold: float) -> np.ndarray:
    """The matching pairs of the assignment with the most of them and, among those, with the greatest sum of IoU.

    Every true object is assigned, if not to a predicted one then to a partner of its own that stands for none.
    """
    alone = np.arange(pairs.num_true)
    weight = 1 + (pairs.iou >= threshold) + pairs.iou / (2.0 * max(1, min(pairs.num_true, pairs.num_predicted)))
    graph = coo_matrix(
        (
            np.concatenate([weight, np.ones(len(alone))]),  # a weight of 0 would be no edge, hence 1 more for all
            (np.concatenate([pairs.true, alone]), np.concatenate([pairs.predicted, pairs.num_predicted + alone])),
        ),
        shape=(pairs.num_true, pairs.num_predicted + pairs.num_true),
    )
    true, partner = min_weight_full_bipartite_matching(graph.tocsr(), maximize=True)
    partner_of = np.empty(pairs.num_true, np.int64)
    partner_of[true] = partner
    return np.flatnonzero((partner_of[pairs.true] == pairs.predicted) & (pairs.iou >= threshold))
