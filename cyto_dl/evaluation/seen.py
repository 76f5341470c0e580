"""What the images that were evaluated are like, in the form of the training data's fingerprint, to be compared with it.

image --while it is measured--> size, pixel size, some of its values;  those of all images -> spreads, percentiles
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cyto_dl.data.fingerprint import PERCENTILES
from cyto_dl.data.image import Image

_NUM_VALUES = 4096  # of an image, spread evenly: 1000 images then take 16 MB


@dataclass(frozen=True)
class Seen:
    """What is remembered of one image; `values` are some of its intensities as they are in the file."""

    dtype: str
    num_channels: int
    size: tuple[int, ...]
    spacing_um: tuple[float, ...] | None
    values: np.ndarray


def look_at(image: Image) -> Seen:
    """Remember an image by its size and some values."""
    values = image.array.ravel()[:: max(1, image.array.size // _NUM_VALUES)].astype(np.float32)
    return Seen(str(image.array.dtype), image.array.shape[0], image.array.shape[1:], image.spacing_um, values)


def describe_seen(images: Sequence[Seen]) -> dict[str, Any]:
    """The images together, as `cyto_dl.data.fingerprint.fingerprint` describes the images of one column."""
    spacings = [image.spacing_um for image in images if image.spacing_um is not None]
    values = np.concatenate([image.values for image in images]).astype(np.float64)
    percentiles = np.percentile(values, PERCENTILES)
    return {
        "num_images": len(images),
        "dtypes": dict(Counter(image.dtype for image in images)),
        "num_channels": sorted({image.num_channels for image in images}),
        "size": _spread([image.size for image in images]),
        "spacing_um": _spread(spacings) if spacings else None,
        "intensity": {
            "mean": float(values.mean()),
            "std": float(values.std()),
            **{f"p{name:g}": float(value) for name, value in zip(PERCENTILES, percentiles, strict=True)},
        },
    }


def _spread(values: Sequence[tuple[float, ...]]) -> dict[str, list[float]]:
    return {name: getattr(np, name)(np.array(values), axis=0).tolist() for name in ("min", "median", "max")}
