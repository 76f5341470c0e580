"""Measure a data set: intensities, sizes and pixel sizes of its images, as plain numbers for a JSON file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cyto_dl.data.check import Described, Read, not_finite
from cyto_dl.data.image import read_image
from cyto_dl.errors import ImageError

PERCENTILES = (0.1, 1, 5, 50, 95, 99, 99.9)
NUM_IMAGES = 64  # whose pixels are read; spread evenly over the data set
NUM_VALUES = 2**18  # of one image, spread evenly: 64 images then fit into 64 MB


def fingerprint(
    described: Sequence[Sequence[Described]], reads: Mapping[str, Read]
) -> tuple[dict[str, Any], list[str]]:
    """What the images of each key are like, and what is wrong with those whose pixels are read.

    Args:
        described: The headers of every row's images (`check.describe_rows`).
        reads: How each key is read.

    Returns:
        {"num_images", "columns": {key: {"num_images", "dtypes", "num_channels", "size", "spacing_um", "intensity"}}}.
        Sizes and pixel sizes are (Z)YX; intensities are of at most `NUM_IMAGES` images, in the files' own units. And
        the problems: pixels that cannot be read, NaN and infinity.
    """
    by_key = {key: [image for row in described for image in row if image.key == key] for key in reads}
    problems: list[str] = []
    columns = {key: _describe_key(images, reads[key], problems) for key, images in by_key.items() if images}
    return {"num_images": len(described), "columns": columns}, problems


def _describe_key(images: Sequence[Described], read: Read, problems: list[str]) -> dict[str, Any]:
    sizes = np.array([image.info.shape[1:] for image in images])
    spacings = np.array([image.info.spacing_um for image in images if image.info.spacing_um is not None])
    return {
        "num_images": len(images),
        "dtypes": dict(Counter(image.info.dtype for image in images)),
        "num_channels": sorted({image.info.shape[0] for image in images}),
        "size": _spread(sizes),
        "spacing_um": _spread(spacings) if len(spacings) else None,
        "intensity": _intensity(images, read, problems),
    }


def _spread(values: np.ndarray) -> dict[str, list[float]]:
    return {name: getattr(np, name)(values, axis=0).tolist() for name in ("min", "median", "max")}


def _intensity(images: Sequence[Described], read: Read, problems: list[str]) -> dict[str, float]:
    selection = {name: value for name, value in read.items() if name != "num_channels"}
    chosen = np.unique(np.linspace(0, len(images) - 1, min(NUM_IMAGES, len(images))).round().astype(int))
    samples = []
    for index in chosen:
        image = images[index]
        try:
            array = read_image(image.path, **selection).array
        except ImageError as error:  # its header could be read
            problems.append(f"{image.where}: {error}")
            continue
        if num_bad := array.size - int(np.count_nonzero(np.isfinite(array))):
            problems.append(f"{image.where}: {not_finite(image.path, image.key, num_bad, array.size)}")
        else:
            samples.append(_sample(array))
    if not samples:
        return {}
    values = np.concatenate(samples)
    percentiles = np.percentile(values, PERCENTILES)
    return {
        "num_images": len(chosen),
        "mean": float(values.mean()),
        "std": float(values.std()),
        **{f"p{name:g}": float(value) for name, value in zip(PERCENTILES, percentiles, strict=True)},
    }


def _sample(array: np.ndarray) -> np.ndarray:
    values = array.ravel()
    return values[:: max(1, len(values) // NUM_VALUES)].astype(np.float64)
