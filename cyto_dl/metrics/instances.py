"""How many objects were found, and how well: average precision, F1 and panoptic quality of label images."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from cyto_dl.metrics.matching import IOU_THRESHOLDS, Matching, ObjectPairs, count_matches, pair_objects
from cyto_dl.metrics.per_image import check_same_shape
from cyto_dl.metrics.pooled import CountMetric


class _InstanceMetric(CountMetric):
    """A score of the objects that two label images B 1 (Z) Y X have in common.

    Objects are matched one to one, see `match_objects`. An image without any object, predicted or true, is undefined;
    one with false objects alone counts 0. stardist.matching says 0 in both cases, which pooling does not see.
    """

    def __init__(self, *, thresholds: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.thresholds = tuple(thresholds)
        count_matches(_NO_PAIRS, self.thresholds)  # refuses those that cannot be, before the first epoch

    @property
    def num_statistics(self) -> int:
        return len(Matching._fields) * len(self.thresholds)

    def statistics(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Counts of objects per image and threshold, (B, 4 T): TP, FP, FN and sum of IoU.

        Raises:
            ImageError: A label is negative or no whole number.
            ConfigError: The shapes differ.
        """
        check_same_shape(prediction, target, metric=type(self).__name__)
        counts = [torch.stack(count_matches(pairs, self.thresholds)) for pairs in _pairs(prediction, target)]
        return torch.stack(counts).flatten(1)

    def from_statistics(self, statistics: Tensor) -> Tensor:
        """The score, mean over thresholds."""
        counts = statistics.unflatten(-1, (len(Matching._fields), -1)).unbind(-2)
        return self.score(Matching(*counts)).mean(-1)

    @abstractmethod
    def score(self, matching: Matching) -> Tensor:
        """The score at each threshold."""


class InstanceAP(_InstanceMetric):
    """Average precision, TP / (TP + FP + FN), mean over IoU thresholds, mean over images.

    This is the score of the 2018 Data Science Bowl, of StarDist ("accuracy") and of Cellpose. It is not COCO's: there
    is no ranking by confidence.
    """

    def __init__(self, *, thresholds: Sequence[float] = IOU_THRESHOLDS, **kwargs: Any) -> None:
        """Make the metric.

        Args:
            thresholds: An object is found where its IoU reaches them; [0.5] is what is called AP50.
            **kwargs: Those of torchmetrics.Metric.
        """
        super().__init__(thresholds=thresholds, **kwargs)

    def score(self, matching: Matching) -> Tensor:
        """AP at each threshold."""
        return matching.ap


class InstanceF1(_InstanceMetric):
    """F1 of the objects, 2 TP / (2 TP + FP + FN), mean over images."""

    def __init__(self, *, threshold: float = 0.5, **kwargs: Any) -> None:
        """Make the metric.

        Args:
            threshold: An object is found where its IoU reaches it.
            **kwargs: Those of torchmetrics.Metric.
        """
        super().__init__(thresholds=[threshold], **kwargs)

    def score(self, matching: Matching) -> Tensor:
        """F1 at each threshold."""
        return matching.f1


class InstancePQ(_InstanceMetric):
    """Panoptic quality, sum of the IoU of found objects / (TP + FP / 2 + FN / 2), mean over images.

    Source: Kirillov et al., "Panoptic Segmentation", 2019.
    """

    def __init__(self, *, threshold: float = 0.5, **kwargs: Any) -> None:
        """Make the metric.

        Args:
            threshold: An object is found where its IoU reaches it.
            **kwargs: Those of torchmetrics.Metric.
        """
        super().__init__(thresholds=[threshold], **kwargs)

    def score(self, matching: Matching) -> Tensor:
        """Panoptic quality at each threshold."""
        return matching.pq


# Prediction -> (version, target, version, pairs of each image). A task has a dozen metrics, each an object of its own
# that is given the same two tensors; finding the pairs takes nearly all of the time. An entry goes with its tensor.
_LATEST: WeakIdKeyDictionary = WeakIdKeyDictionary()
_NO_PAIRS = pair_objects(torch.zeros(0).numpy(), torch.zeros(0).numpy())


def _pairs(prediction: Tensor, target: Tensor) -> list[ObjectPairs]:
    """The pairs of each image of a batch, computed once for all metrics that ask."""
    key = (_version(prediction), _version(target))
    known_key, known_target, pairs = _LATEST.get(prediction, (None, None, []))
    if known_key != key or known_target is None or known_target() is not target:
        images = zip(target.cpu().numpy(), prediction.cpu().numpy(), strict=True)
        pairs = [pair_objects(*image) for image in images]
        _LATEST[prediction] = (key, ref(target), pairs)
    return pairs


def _version(tensor: Tensor) -> int:
    """Counts what was written into a tensor; inference mode does not count, and hands out new tensors."""
    return 0 if tensor.is_inference() else tensor._version
