"""Prepare a manifest for training: check everything, make splits where there are none, measure the images.

manifest -> checks (all problems at once) -> splits -> <output_dir>/manifest.csv and fingerprint.json
"""

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from cyto_dl.data.check import (
    Described,
    Read,
    check_channels,
    check_dtypes,
    check_leakage,
    check_sizes,
    describe_rows,
)
from cyto_dl.data.copies import first_copies
from cyto_dl.data.fingerprint import fingerprint
from cyto_dl.data.image import describe_image
from cyto_dl.data.manifest import Row, Rows, check_tables
from cyto_dl.data.split import MADE, make_splits
from cyto_dl.data.tables import Table, absolute_path, manifest_folder, read_tables
from cyto_dl.errors import ImageError, ManifestError, list_problems
from cyto_dl.storage import atomic_path, sha256

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
    stratify_column: str | None = None,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    evaluation_split: str | None = None,
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
        group_column: Rows of equal value here stay in one split, e.g. a donor, a plate, or the fields of view of one
            well. Of nested ones the largest keeps the others together too.
        stratify_column: Splits that are made get their share of the rows of each value here, e.g. a treatment, as far
            as whole groups allow.
        fractions: The shares of train, valid and test among the groups, or with `stratify_column` among the rows; for
            splits that are made.
        seed: Other seeds make other splits.
        evaluation_split: The split that the model will be measured on, which then needs rows as `train` and `valid` do.

    Returns:
        The fingerprint: per column intensities, sizes, pixel sizes, dtypes of the rows that are trained on; rows per
        split; the manifest's SHA-256.

    Raises:
        ManifestError: With everything that is wrong, at once; nothing is written then.
    """
    tables, unsplit = [], []
    for table in read_tables(manifest, split_column):
        made = None
        if table.split is None and split_column not in table.cells:
            try:
                made = _make(table.cells, group_column or source_col, stratify_column, fractions=fractions, seed=seed)
            except ManifestError as error:
                unsplit.append(str(error))
                made = pd.Series("train", index=table.cells.index)
        tables.append(_with_splits(table, split_column, made))
    columns = {column: column for column in (source_col, *target_cols)}
    folder = manifest_folder(manifest)
    rows, wrong = check_tables(tables, columns, split_column=SPLIT, source_key=source_col, folder=folder)
    source = {"spatial_dims": spatial_dims, "channels": source_channel, "num_channels": num_channels}
    reads: dict[str, Read] = {source_col: source}
    for column in target_cols:
        reads[column] = {"spatial_dims": _target_dims(rows, column, spatial_dims), "channels": target_channel}
    described, unreadable = describe_rows([row for found in rows.values() for row in found], reads)
    measured, damaged = fingerprint(described[: len(rows.get("train", ()))], reads)  # the split `train` comes first
    differing = check_channels(described) + check_dtypes(described, source_col) + check_sizes(described, source_col)
    named = {"group_column": group_column, "stratify_column": stratify_column}
    unnamed = [problem for name, column in named.items() for problem in _check_column(tables, name, column)]
    mixed = _check_groups(tables, group_column) if group_column else []
    copied = _check_copies(rows, described, source_col)
    lacking = _check_present(rows, wrong, evaluation_split)
    kinds = (unsplit, unnamed, wrong, unreadable, damaged, differing, mixed, copied, lacking)
    if any(kinds):
        raise ManifestError(f"{manifest}: the manifest cannot be used:\n{list_problems(*kinds)}")
    return _write(tables, columns, folder, output_dir, measured)


def _make(
    cells: pd.DataFrame, group_column: str, stratify_column: str | None, *, fractions: Sequence[float], seed: int
) -> pd.Series:
    """A split for every row of a table that has none. Columns that are not there are reported elsewhere."""
    groups = cells.get(group_column, pd.Series(cells.index)).astype(str)
    if stratify_column is None or stratify_column not in cells:
        return make_splits(groups, fractions=fractions, seed=seed)
    classes = cells[stratify_column].astype(str)
    splits = make_splits(groups, fractions=fractions, seed=seed, classes=classes)
    for split in splits.unique():
        if without := sorted(set(classes) - set(classes[splits == split])):
            logger.warning(
                "the split '%s' has no row of %d of the %d values of '%s' (stratify_column), e.g. '%s': too few rows "
                "or groups have them",
                *(split, len(without), classes.nunique(), stratify_column, without[0]),
            )
    return splits


def _with_splits(table: Table, split_column: str, splits: pd.Series | None) -> Table:
    """The table with the splits in the column `SPLIT`: its own, or else the given ones."""
    cells = table.cells
    if splits is None:
        splits = cells[split_column] if table.split is None else pd.Series(table.split, index=cells.index, dtype=object)
    cells = cells.drop(columns=[split_column], errors="ignore").assign(**{SPLIT: splits})
    return replace(table, cells=cells, split=None)


def _check_column(tables: Sequence[Table], name: str, column: str | None) -> list[str]:
    """The tables without the column that an argument names, and the rows without a value in it."""
    problems = []
    for table in tables if column else ():
        if column not in table.cells:
            there = ", ".join(map(str, table.cells.columns.drop(SPLIT)))
            problems.append(f"{table.name} has no column '{column}' ({name}); the columns are {there}.")
            continue
        cells = table.cells[column]
        is_empty = cells.isna() | (cells.astype(str).str.strip() == "")
        if is_empty.any():
            positions = is_empty.to_numpy().nonzero()[0].tolist()
            problems.append(f"column '{column}' ({name}) has no value in {table.rows(positions)}.")
    return problems


def _check_groups(tables: Sequence[Table], group_column: str) -> list[str]:
    """The groups that are in several splits, with a row of each."""
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for table in tables:
        if group_column in table.cells:
            cells = table.cells[[SPLIT, group_column]].itertuples(index=False, name=None)
            for number, (split, group) in enumerate(cells, start=table.first):
                if split in MADE and not pd.isna(group):
                    places[str(group)].setdefault(split, table.where.format(number))
    problems = []
    for group, found in places.items():
        if len(found) > 1:
            where = ", ".join(f"{split} ({row})" for split, row in found.items())
            problems.append(f"the group '{group}' of column '{group_column}' is in {where}. Keep it in one split.")
    return problems


def _check_present(rows: Rows, wrong: Sequence[str], evaluation_split: str | None) -> list[str]:
    """The splits that are needed and have no rows."""
    if "test" not in rows and evaluation_split is None:
        logger.warning("the manifest has no rows of the split 'test': there will be nothing to evaluate on")
    if wrong or not rows:
        return []
    needed = {"train": "", "valid": ""}
    if evaluation_split:
        needed.setdefault(evaluation_split, " (evaluation_split)")
    there = ", ".join(rows)
    return [
        f"there are no rows of the split '{split}'{why}; there are {there}."
        for split, why in needed.items()
        if split not in rows
    ]


def _target_dims(rows: Rows, column: str, spatial_dims: int) -> int:
    """The number of axes of a target: those of the source, or 2 where its first image is a projection of a stack."""
    first: Row = next((row for found in rows.values() for row in found if column in row), {})
    if spatial_dims == 3 and first:
        try:
            describe_image(first[column], spatial_dims=3)
        except ImageError:
            return 2
    return spatial_dims


def _check_copies(rows: Rows, described: Sequence[Sequence[Described]], source_col: str) -> list[str]:
    """Sources that are in several splits, also as copies under another name. Equal targets are no leak: many are empty.

    What cannot be read is not compared: it may not be there, and is a problem already.
    """
    first = first_copies(image.path for row in described for image in row if image.key == source_col)
    present = {split: [row for row in found if row.get(source_col) in first] for split, found in rows.items()}
    return check_leakage(present, source_key=source_col, identity=first.__getitem__)


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
