"""Prepare a manifest for training: check everything, make splits where there are none, measure the images.

manifest -> checks (all problems at once) -> splits -> <output_dir>/manifest.csv and fingerprint.json
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from cyto_dl.data.check import (
    Read,
    check_channels,
    check_dtypes,
    check_leakage,
    check_sizes,
    describe_rows,
)
from cyto_dl.data.fingerprint import fingerprint
from cyto_dl.data.image import describe_image
from cyto_dl.data.manifest import Row, Rows, check_tables
from cyto_dl.data.split import MADE, make_splits
from cyto_dl.data.tables import Table, absolute_path, manifest_folder, read_tables
from cyto_dl.errors import ImageError, ManifestError, list_problems
from cyto_dl.storage import atomic_path, identity, is_remote, localized, sha256

logger = logging.getLogger(__name__)

SPLIT = "split"  # the column of the splits in the manifest that is written


def prepare_data(
    manifest: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    source_col: str,
    target_cols: Sequence[str],
    spatial_dims: int = 2,
    num_channels: int | None = None,
    source_channel: Sequence[int] | None = None,
    target_channel: Sequence[int] | None = None,
    split_column: str = "split",
    group_column: str | None = None,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> dict[str, Any]:
    """Check a manifest and its images, split it, and write it with absolute paths beside a fingerprint of the data.

    Args:
        manifest: A folder of split files, or one .csv or .parquet.
        output_dir: Receives manifest.csv (with the column "split") and fingerprint.json.
        source_col: The column of the images.
        target_cols: The columns of the targets.
        spatial_dims: 2 or 3. With 3, targets may be 2-D projections.
        num_channels: How many channels of the source are read; None for any number, equal in all images.
        source_channel: Which channels of the source are read, counted from 0, in which order; None for all.
        target_channel: Which channels of every target; None for all.
        split_column: The column of the splits, if the manifest is one file. Without it, splits are made.
        group_column: Rows of equal value here stay in one split, e.g. the fields of view of one well.
        fractions: The shares of train, valid and test among the groups, for splits that are made.
        seed: Other seeds make other splits.

    Returns:
        The fingerprint: per column intensities, sizes, pixel sizes, dtypes; rows per split; the manifest's SHA-256.

    Raises:
        ManifestError: With everything that is wrong, at once; nothing is written then.
    """
    tables, problems = [], []
    for table in read_tables(manifest, split_column):
        made = None
        if table.split is None and split_column not in table.cells:
            group = group_column if group_column in table.cells else source_col
            groups = table.cells.get(group, pd.Series(table.cells.index)).astype(str)
            try:
                made = make_splits(groups, fractions=fractions, seed=seed)
            except ManifestError as error:
                problems.append(str(error))
                made = groups.map(lambda _: "train")
        tables.append(_with_splits(table, split_column, made))
    columns = {column: column for column in (source_col, *target_cols)}
    folder = manifest_folder(manifest)
    rows, wrong = check_tables(tables, columns, split_column=SPLIT, source_key=source_col, folder=folder)
    problems += wrong + (_check_groups(tables, group_column) if group_column else [])
    source = {"spatial_dims": spatial_dims, "channels": source_channel, "num_channels": num_channels}
    reads: dict[str, Read] = {source_col: source}
    for column in target_cols:
        reads[column] = {"spatial_dims": _target_dims(rows, column, spatial_dims), "channels": target_channel}
    described, unreadable = describe_rows([row for found in rows.values() for row in found], reads)
    problems += unreadable + check_channels(described) + check_dtypes(described, source_col)
    problems += check_sizes(described, source_col) + _check_copies(rows, source_col) + _check_present(rows, wrong)
    if problems:
        raise ManifestError(f"{manifest}: the manifest cannot be used:\n{list_problems(problems)}")
    return _write(tables, columns, folder, output_dir, fingerprint(described, reads))


def _with_splits(table: Table, split_column: str, splits: pd.Series | None) -> Table:
    """The table with the splits in the column `SPLIT`: its own, or else the given ones."""
    cells = table.cells
    if splits is None:
        splits = cells[split_column] if table.split is None else pd.Series(table.split, index=cells.index, dtype=object)
    cells = cells.drop(columns=[split_column], errors="ignore").assign(**{SPLIT: splits})
    return replace(table, cells=cells, split=None)


def _check_groups(tables: Sequence[Table], group_column: str) -> list[str]:
    """The groups that are in several splits, and rows without a group."""
    problems = [
        f"{table.name} has no column '{group_column}' (group_column); the columns are {', '.join(table.cells.columns)}."
        for table in tables
        if group_column not in table.cells
    ]
    if problems:
        return problems
    cells = pd.concat([table.cells[[group_column, SPLIT]] for table in tables])
    if without := int(cells[group_column].isna().sum()):
        problems.append(f"column '{group_column}' (group_column) has no value in {without} of {len(cells)} rows.")
    splits = cells[cells[SPLIT].isin(MADE)].groupby(group_column)[SPLIT].unique()
    for name, found in splits.items():
        if len(found) > 1:
            problems.append(f"the group '{name}' of column '{group_column}' is in {', '.join(found)}. Keep it in one.")
    return problems


def _check_present(rows: Rows, wrong: Sequence[str]) -> list[str]:
    """The splits that training needs and that have no rows."""
    if "test" not in rows:
        logger.warning("the manifest has no rows of the split 'test': there will be nothing to evaluate on")
    missing = [split for split in ("train", "valid") if split not in rows] if rows and not wrong else []
    return [f"there are no rows of the split '{split}'; there are {', '.join(rows)}." for split in missing]


def _target_dims(rows: Rows, column: str, spatial_dims: int) -> int:
    """The number of axes of a target: those of the source, or 2 where its first image is a projection of a stack."""
    first: Row = next((row for found in rows.values() for row in found if column in row), {})
    if spatial_dims == 3 and first:
        try:
            describe_image(first[column], spatial_dims=3)
        except ImageError:
            return 2
    return spatial_dims


def _check_copies(rows: Rows, source_col: str) -> list[str]:
    """Sources that are in several splits, also as copies under another name."""
    files = {row[source_col] for found in rows.values() for row in found if source_col in row}
    size = {file: identity(file)[1] if is_remote(file) else os.stat(file).st_size for file in files}
    num_of_size = Counter(size.values())

    def content(file: str) -> str:  # only files of equal size can be copies, so that few have to be read
        if num_of_size[size[file]] == 1:
            return file
        with localized(file) as local:
            return sha256(local)

    present = {split: [row for row in found if source_col in row] for split, found in rows.items()}
    return check_leakage(present, source_key=source_col, identity=content)


def _write(
    tables: Sequence[Table],
    columns: Iterable[str],
    folder: str,
    output_dir: str | os.PathLike[str],
    measured: dict[str, Any],
) -> dict[str, Any]:
    cells = pd.concat([table.cells for table in tables], ignore_index=True)
    for column in columns:
        cells[column] = [absolute_path(str(value), folder) if not pd.isna(value) else None for value in cells[column]]
    manifest, result = (os.path.join(output_dir, name) for name in ("manifest.csv", "fingerprint.json"))
    with atomic_path(manifest) as temporary:
        cells.to_csv(temporary, index=False)
    measured = {**measured, "splits": dict(Counter(cells[SPLIT])), "manifest_sha256": sha256(manifest)}
    with atomic_path(result) as temporary:
        temporary.write_text(json.dumps(measured, indent=2))
    logger.info("prepared %s: %s", manifest, ", ".join(f"{num} {split}" for split, num in measured["splits"].items()))
    return measured
