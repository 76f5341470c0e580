"""Choose the thresholds of decoding on images with ground truth, by pooled AP@.5."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cyto_dl.data.image import Image
from cyto_dl.inference.predictor import Predictor
from cyto_dl.metrics import Matching, match_objects
from cyto_dl.model.utils.postprocessing import identity, instances


def choose_thresholds(
    predictor: Predictor,
    images: Sequence[Image],
    truths: Sequence[np.ndarray],
    *,
    head: str,
    grid: Mapping[str, Sequence[Any]],
) -> tuple[dict[str, Any], int]:
    """The best arguments of `postprocessing.instances`, and how many were tried; the network runs once per image.

    Of equally good ones the first in the order of the grid.
    """
    stitched = replace(predictor, postprocess={head: identity})
    logits = [stitched.predict(image)[head] for image in images]
    best, best_score, tried = {}, -1.0, 0
    for values in itertools.product(*grid.values()):
        settings: dict[str, Any] = dict(zip(grid, values, strict=True))
        score = pooled_ap50(truths, [instances(each, **settings).numpy()[0] for each in logits])
        tried += 1
        if score > best_score:
            best, best_score = settings, score
    return best, tried


def pooled_ap50(truths: Sequence[np.ndarray], predictions: Sequence[np.ndarray]) -> float:
    """TP / (TP + FP + FN) at an IoU of 0.5, counts summed over the images."""
    counts = [match_objects(true, made, thresholds=[0.5]) for true, made in zip(truths, predictions, strict=True)]
    return float(Matching(*(torch.stack(each).sum(0) for each in zip(*counts, strict=True))).ap[0])
