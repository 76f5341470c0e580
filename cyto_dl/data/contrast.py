"""Say which images have no contrast to normalise: once and by name, in place of MONAI's warning without one."""

import functools
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import ScaleIntensityRangePercentilesd

logger = logging.getLogger(__name__)

NUM_VALUES = 2**16  # of an image, spread evenly: enough to see contrast at the cost of a millisecond

# Repeated for every image and again wherever Python forgets what it has shown; `warn_of_flat_images` says it by name
warnings.filterwarnings("ignore", message=r"Divide by zero \(a_min == a_max\)")


def warn_of_flat_images(transform: Any, item: Any, *, path: str) -> None:
    """Warn of the images that a scaling by percentiles leaves as they are, because these percentiles are equal.

    An empty image is legitimate. One that is empty but for a few bright pixels is not scaled either, so that they reach
    the network in grey values: that is worth a look.

    Args:
        transform: Any transform; only ScaleIntensityRangePercentilesd is looked at.
        item: What it is about to be applied to.
        path: What messages call the item.
    """
    if not isinstance(transform, ScaleIntensityRangePercentilesd) or not isinstance(item, Mapping):
        return
    scaler = transform.scaler
    limits = (scaler.lower, scaler.upper)
    for key in transform.keys:
        if key in item:
            image = torch.as_tensor(item[key])
            for channel in image if scaler.channel_wise else [image]:
                if (value := _flat_value(channel.numpy().ravel(), limits)) is not None:
                    _warn(path, str(key), value)


def _flat_value(values: np.ndarray, limits: tuple[float, float]) -> float | None:
    """The value at both percentiles; None where they differ."""
    for some in (values[:: max(1, len(values) // NUM_VALUES)], values):  # all of them only to be sure
        low, high = np.percentile(some, limits)
        if low != high:
            return None
    return float(low)


@functools.lru_cache(maxsize=4096)  # once per image and process
def _warn(path: str, key: str, value: float) -> None:
    logger.warning(
        "%s: nearly all pixels of '%s' have the value %g, so that it is not scaled: is it empty, or saturated?",
        path,
        key,
        value,
    )
