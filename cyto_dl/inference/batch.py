"""Predict many images into files:  paths -> <output_dir>/<head>/<stem>.ome.tif, predictions.csv

A folder with a predictions.csv belongs to predictions: what is in it is replaced. In another folder no file is.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import pandas as pd

from cyto_dl.data.image import Image, write_image
from cyto_dl.data.readers import READERS
from cyto_dl.errors import ConfigError, ImageError, list_problems
from cyto_dl.storage import atomic_path

logger = logging.getLogger(__name__)

TABLE = "predictions.csv"
_FIRST_COLUMNS = ["path", "status", "seconds"]
_NUM_SHOWN = 5  # failures in a message: enough to see whether they are of one kind


class ImageModel(Protocol):
    """A model that reads and predicts: a `Predictor` here, a `Client` of one on a server."""

    @property
    def outputs(self) -> Mapping[str, Any]:
        """By the names of the heads."""

    @property
    def input_name(self) -> str:
        """Of the image that it takes."""

    def read(self, path: str, /) -> Image:
        """The image of a file, as the model takes it."""

    def predict(self, image: Image, /) -> dict[str, np.ndarray]:
        """One image per head, C (Z) Y X."""


def predict_images(
    predictor: ImageModel,
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
            share a stem, the second is `<stem>_2`, and so on. Earlier predictions are replaced.
        progress: Show a progress bar on stderr.

    Returns:
        One row an image, in the order of `paths`: path, status ("ok" or "failed"), seconds, the output of each head,
        error. The same table is predictions.csv; it is written also when the work is interrupted.

    Raises:
        ConfigError: `output_dir` is no folder of predictions, and a file in it would be replaced.
    """
    folder, heads = Path(output_dir), list(predictor.outputs)
    sources = [fspath(path) for path in paths]
    stems = unique_stems(sources)
    claim_folder(folder, [f"{head}/{stem}.ome.tif" for head in heads for stem in stems])
    rows: list[dict[str, Any]] = []
    try:
        for source, stem in zip(_tracked(sources, progress), stems, strict=True):
            rows.append(predict_file(predictor, source, folder, stem))
    finally:
        table = pd.DataFrame(rows, columns=[*_FIRST_COLUMNS, *heads, "error"])
        _write_table(folder, table)
    num_failed = int((table["status"] == "failed").sum())
    logger.info("predicted %d images into %s, %d failed", len(table) - num_failed, folder, num_failed)
    return table


def check_all_predicted(table: pd.DataFrame, output_dir: str | PathLike[str]) -> None:
    """See that no row of `predict_images` failed.

    Args:
        table: What `predict_images` returned.
        output_dir: Where it wrote.

    Raises:
        ImageError: How many did, why the first ones, and where the reasons of all stand.
    """
    errors = list(table["error"][table["status"] == "failed"])
    if errors:
        raise ImageError(
            f"{len(errors)} of {len(table)} images could not be predicted, the reasons are in "
            f"{Path(output_dir) / TABLE}:\n{list_problems(errors, limit=_NUM_SHOWN)}"
        )


def image_files(paths: Iterable[str]) -> list[str]:
    """The paths, and in the place of a folder its image files in the order of their names, without its subfolders.

    Raises:
        ConfigError: A folder has no image file.
    """
    files: list[str] = []
    for path in paths:
        if not Path(path).is_dir() or Path(path).suffix.lower() in READERS:  # an OME-Zarr is a folder
            files.append(path)
            continue
        # not hidden ones: macOS leaves a ._a.tif beside every a.tif on other systems' drives
        found = sorted(str(each) for each in Path(path).glob("[!.]*") if each.suffix.lower() in READERS)
        files += found
        if not found:
            raise ConfigError(
                f"{path}: the folder has no image file ({', '.join(READERS)}); its subfolders are not searched. "
                "Give the folder of the images, or the files."
            )
    return files


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


def claim_folder(folder: Path, names: Iterable[str]) -> None:
    """Make the folder one of predictions, by its table; a killed process leaves one that can be written again.

    Args:
        folder: Where predictions are to be written.
        names: The files in it that will be.

    Raises:
        ConfigError: It is no folder of predictions, and a file in it would be replaced.
    """
    if _is_table(folder / TABLE):
        return
    if taken := [name for name in (TABLE, *names) if (folder / name).exists()]:
        raise ConfigError(
            f"{folder} is no folder of earlier predictions, and {len(taken)} of its files would be replaced, e.g. "
            f"{folder / taken[0]}. Choose another output folder."
        )
    _write_table(folder, pd.DataFrame(columns=_FIRST_COLUMNS))


def spacing_of(
    prediction: np.ndarray, source: np.ndarray, spacing_um: Sequence[float] | None
) -> tuple[float, ...] | None:
    """Pixel size of a prediction C (Z) Y X, which may have other pixels than its source, or no Z."""
    if spacing_um is None:
        return None
    kept = prediction.ndim - 1
    sizes = zip(spacing_um[-kept:], source.shape[-kept:], prediction.shape[-kept:], strict=True)
    return tuple(spacing * before / after for spacing, before, after in sizes)


def _is_table(path: Path) -> bool:
    """Whether a file is a table of predictions, whatever the heads of the model that it was written for."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline().startswith(",".join(_FIRST_COLUMNS).encode())


def _write_table(folder: Path, table: pd.DataFrame) -> None:
    with atomic_path(folder / TABLE) as temporary:
        table.to_csv(temporary, index=False)


def predict_file(predictor: ImageModel, source: str, folder: Path, stem: str) -> dict[str, Any]:
    """Predict one image into `<folder>/<head>/<stem>.ome.tif`; returns its row of the table, "failed" if it is bad."""
    start = time.perf_counter()
    row: dict[str, Any] = {"path": source, "status": "ok", "error": ""}
    try:
        image = predictor.read(source)
        for head, array in predictor.predict(image).items():
            path = folder / head / f"{stem}.ome.tif"
            write_image(path, array, spacing_um=spacing_of(array, image.array, image.spacing_um))
            row[head] = str(path)
    except ImageError as error:
        logger.info("%s", error)
        row |= {"status": "failed", "error": str(error)}
    return {**row, "seconds": round(time.perf_counter() - start, 3)}


def _tracked(sources: Sequence[str], progress: bool) -> Iterable[str]:
    if not progress:
        return sources
    from rich.console import Console
    from rich.progress import track

    return track(sources, description="predicting", console=Console(stderr=True))
