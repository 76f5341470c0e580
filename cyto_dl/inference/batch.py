"""Predict many images into files:  paths -> <output_dir>/<head>/<stem>.ome.tif, predictions.csv"""

import logging
import time
from collections.abc import Iterable, Sequence
from os import PathLike, fspath
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from cyto_dl.data.image import read_image, write_image
from cyto_dl.errors import ImageError
from cyto_dl.inference.predictor import Predictor
from cyto_dl.storage import atomic_path

logger = logging.getLogger(__name__)

TABLE = "predictions.csv"


def predict_images(
    predictor: Predictor,
    paths: Sequence[str | PathLike[str]],
    output_dir: str | PathLike[str],
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Predict every image into one OME-TIFF per head; a bad image is a failed row, and the others go on.

    Args:
        predictor: The model.
        paths: Image files, local or s3://.
        output_dir: Receives `<head>/<stem>.ome.tif`, with the image's pixel size, and predictions.csv. Of images that
            share a stem, the second is `<stem>_2`, and so on.
        progress: Show a progress bar on stderr.

    Returns:
        One row an image, in the order of `paths`: path, status ("ok" or "failed"), seconds, the output of each head,
        error. The same table is predictions.csv; it is written also when the work is interrupted.
    """
    folder, heads = Path(output_dir), list(predictor.outputs)
    sources = [fspath(path) for path in paths]
    rows: list[dict[str, Any]] = []
    try:
        for source, stem in zip(_tracked(sources, progress), unique_stems(sources), strict=True):
            rows.append(_predict_file(predictor, source, folder, stem))
    finally:
        table = pd.DataFrame(rows, columns=["path", "status", "seconds", *heads, "error"])
        with atomic_path(folder / TABLE) as temporary:
            table.to_csv(temporary, index=False)
    num_failed = int((table["status"] == "failed").sum())
    logger.info("predicted %d images into %s, %d failed", len(table) - num_failed, folder, num_failed)
    return table


def check_all_predicted(table: pd.DataFrame) -> None:
    """See that no row of `predict_images` failed.

    Raises:
        ImageError: How many did, and why the first one.
    """
    errors = table["error"][table["status"] == "failed"]
    if len(errors):
        raise ImageError(f"{len(errors)} images failed, the first: {errors.iloc[0]}")


def unique_stems(paths: Iterable[str]) -> list[str]:
    """A file name without suffix for each path, all different, also where upper and lower case are the same."""
    taken: set[str] = set()
    stems = []
    for path in paths:
        stem = PurePosixPath(path).stem.removesuffix(".ome")
        candidate, number = stem, 1
        while candidate.lower() in taken:
            number += 1
            candidate = f"{stem}_{number}"
        taken.add(candidate.lower())
        stems.append(candidate)
    return stems


def _predict_file(predictor: Predictor, source: str, folder: Path, stem: str) -> dict[str, Any]:
    start = time.perf_counter()
    row: dict[str, Any] = {"path": source, "status": "ok", "error": ""}
    try:
        image = read_image(source, **predictor.input.load)
        for head, array in predictor.predict(image).items():
            path = folder / head / f"{stem}.ome.tif"
            write_image(path, array, spacing_um=_spacing_of(array, image.array, image.spacing_um))
            row[head] = str(path)
    except ImageError as error:
        logger.warning("%s", error)
        row |= {"status": "failed", "error": str(error)}
    return {**row, "seconds": round(time.perf_counter() - start, 3)}


def _spacing_of(
    prediction: np.ndarray, source: np.ndarray, spacing_um: Sequence[float] | None
) -> tuple[float, ...] | None:
    """Pixel size of a prediction, which may have other pixels than its source, or no Z."""
    if spacing_um is None:
        return None
    kept = prediction.ndim - 1
    sizes = zip(spacing_um[-kept:], source.shape[-kept:], prediction.shape[-kept:], strict=True)
    return tuple(spacing * before / after for spacing, before, after in sizes)


def _tracked(sources: Sequence[str], progress: bool) -> Iterable[str]:
    if not progress:
        return sources
    from rich.console import Console
    from rich.progress import track

    return track(sources, description="predicting", console=Console(stderr=True))
