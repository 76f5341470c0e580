"""Read the table of images: which files belong together, and which split each row is in.

train.csv, valid.csv, ... | one .csv or .parquet | rows in memory  ->  {split: [{key: path or array, "row": where}]}
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from cyto_dl.data.tables import SPLITS, Table, absolute_path, frame, manifest_folder, read_tables
from cyto_dl.errors import ManifestError, list_problems
from cyto_dl.storage import is_remote

ROW = "row"  # the key under which every row says where it stands

Row = dict[str, Any]
Rows = dict[str, list[Row]]
InMemory = pd.DataFrame | Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]]


def read_manifest(
    path: str | PathLike[str],
    *,
    columns: Mapping[str, str],
    split_column: str | None,
    source_key: str | None = None,
    optional: Collection[str] = (),
) -> Rows:
    """The rows of a manifest per split, with absolute paths.

    Args:
        path: A folder with train.csv, valid.csv, test.csv, predict.csv (or .parquet; those that there are), or one
            file. Local or s3://. Relative paths in it start at the manifest's folder.
        columns: Batch key -> column with its files.
        split_column: The column that names each row's split, for one file. None: every row is in the split "predict".
        source_key: The key of the source; the others are targets, which the split "predict" does without. Default: the
            first of `columns`.
        optional: The keys of targets that need no column, because training makes them of the source.

    Returns:
        {split: rows}, only splits that have rows; a row is {key: absolute path, "row": "manifest.csv:17"}.

    Raises:
        ManifestError: With everything that is wrong with the manifest, at once.
    """
    tables = read_tables(path, split_column)
    folder = manifest_folder(path)
    how: dict[str, Any] = {"split_column": split_column, "source_key": source_key, "optional": optional}
    rows, problems = check_tables(tables, columns, **how, folder=folder)
    return _usable(rows, problems, str(path))


def collect_rows(
    data: InMemory,
    *,
    columns: Mapping[str, str],
    split_column: str | None,
    source_key: str | None = None,
    optional: Collection[str] = (),
) -> Rows:
    """The rows of a table in memory per split: like `read_manifest`, and a value may also be an array.

    Args:
        data: A table or a list of rows, each with its split in `split_column` (default "split"), or {split: rows}.
            Relative paths start at the current folder.
        columns: Batch key -> column.
        split_column: As in `read_manifest`.
        source_key: As in `read_manifest`.
        optional: As in `read_manifest`.

    Raises:
        ManifestError: With everything that is wrong with the table, at once.
    """
    if isinstance(data, Mapping):
        names = dict.fromkeys(name for rows in data.values() for row in rows for name in row)
        tables = [Table(frame(rows, names), split, f"{split}[{{}}]", 0, split) for split, rows in data.items()]
    else:
        tables = [Table(frame(data), "data.path", "data.path[{}]", 0)]
    split_column = split_column or "split"
    folder = str(Path.cwd())
    how: dict[str, Any] = {"split_column": split_column, "source_key": source_key, "optional": optional}
    rows, problems = check_tables(tables, columns, **how, folder=folder)
    return _usable(rows, problems, "data.path")


def _usable(rows: Rows, problems: Sequence[str], name: str) -> Rows:
    if problems:
        raise ManifestError(f"{name}: the manifest cannot be used:\n{list_problems(problems)}")
    return rows


def read_column(path: str | PathLike[str], column: str) -> list[str]:
    """The absolute paths in one column of a manifest, of all splits; whether the files exist is not checked.

    Raises:
        ManifestError: The manifest cannot be read, or has no such column, or no value in it.
    """
    tables = read_tables(path, None)
    for table in tables:
        if column not in table.cells:
            there = ", ".join(map(str, table.cells.columns)) or "none"
            raise ManifestError(
                f"{path}: {table.name} has no column '{column}'; the columns are {there}. Choose one with --column."
            )
    values = [str(value) for table in tables for value in table.cells[column] if not _is_empty(value)]
    if not values:
        raise ManifestError(f"{path}: there is no path in the column '{column}'.")
    return [absolute_path(value, manifest_folder(path)) for value in values]


def check_tables(
    tables: Sequence[Table],
    columns: Mapping[str, str],
    *,
    split_column: str | None,
    source_key: str | None,
    folder: str,
    optional: Collection[str] = (),
) -> tuple[Rows, list[str]]:
    """The rows of the tables per split, without files that do not exist, and everything that is wrong with them."""
    source_key = source_key or next(iter(columns))
    rows: Rows = {split: [] for split in SPLITS}
    problems = [] if any(len(table.cells) for table in tables) else ["the manifest is empty: it has no rows."]
    for table in tables:
        splits = _splits(table, split_column, problems)
        has_targets = (splits != "predict").any()
        needed = [key for key in columns if has_targets and key not in optional] or [source_key]
        present = _present_columns(table, columns, needed, problems)
        cells = {key: _cells(table, column, folder) for key, column in present.items()}
        problems += _empty_cells(table, splits, cells, columns=columns, source_key=source_key, optional=optional)
        for key, column in present.items():
            cells[key] = _existing(table, column, cells[key], folder=folder, problems=problems)
        for position, split in enumerate(splits):
            values = {key: found[position] for key, found in cells.items() if found[position] is not None}
            rows.setdefault(split, []).append(values | {ROW: table.where.format(table.first + position)})
    return {split: found for split, found in rows.items() if found}, problems


def _splits(table: Table, split_column: str | None, problems: list[str]) -> pd.Series:
    """The split of every row; what is not one of SPLITS becomes a problem."""
    if table.split is not None:
        splits = pd.Series(table.split, index=table.cells.index, dtype=object)
    elif split_column in table.cells:
        splits = table.cells[split_column]
    else:
        problems.append(
            f"there is no column '{split_column}' for the split of each row (data.split_column); "
            f"the columns are {', '.join(map(str, table.cells.columns))}."
        )
        return pd.Series("train", index=table.cells.index, dtype=object)
    for value in splits[~splits.isin(SPLITS)].unique():
        same = splits.isna() if pd.isna(value) else splits == value
        problems.append(
            f"the split {'is missing' if pd.isna(value) else repr(value) + ' is unknown'} in "
            f"{table.rows(_positions(same))}. Splits are {', '.join(SPLITS)}, spelled exactly so."
        )
    return splits


def _present_columns(
    table: Table, columns: Mapping[str, str], needed: Iterable[str], problems: list[str]
) -> dict[str, str]:
    for key in needed:
        if columns[key] not in table.cells:
            problems.append(
                f"{table.name} has no column '{columns[key]}' (data.columns.{key}); "
                f"the columns are {', '.join(map(str, table.cells.columns)) or 'none'}."
            )
    return {key: column for key, column in columns.items() if column in table.cells}


def _cells(table: Table, column: str, folder: str) -> list[Any]:
    """The column's values with absolute paths; None where there is none."""
    values = [None if _is_empty(value) else value for value in table.cells[column]]
    return [absolute_path(str(value), folder) if isinstance(value, str | PathLike) else value for value in values]


def _empty_cells(
    table: Table,
    splits: pd.Series,
    cells: Mapping[str, list[Any]],
    *,
    columns: Mapping[str, str],
    source_key: str,
    optional: Collection[str],
) -> list[str]:
    """Rows without a source or without any target, and targets that no training row has."""
    is_empty = pd.DataFrame({key: [value is None for value in values] for key, values in cells.items()}, dtype=bool)
    problems = []
    targets = [key for key in cells if key != source_key and key not in optional]
    sourceless = is_empty[source_key] if source_key in cells else pd.Series(False, index=is_empty.index)
    if sourceless.any():
        problems.append(f"column '{columns[source_key]}' has no value in {table.rows(_positions(sourceless))}.")
    if not targets:
        return problems
    is_bare = is_empty[targets].all(axis="columns") & (splits != "predict") & (not optional)
    if is_bare.any():
        names = "', '".join(dict.fromkeys(columns[key] for key in targets))
        several = len({columns[key] for key in targets}) > 1
        problems.append(
            f"column{'s' if several else ''} '{names}' {'have' if several else 'has'} no value in "
            f"{table.rows(_positions(is_bare))}. Every row needs {'at least one' if several else 'its'} target."
        )
    trained = is_empty.loc[(splits == "train") & ~is_bare, targets]
    never = [key for key in targets if len(trained) and trained[key].all()]
    return problems + [
        f"column '{column}' of {table.name} has no value in any row of the split 'train': nothing would be learnt "
        "about it. Fill it, or leave it out of data.columns."
        for column in dict.fromkeys(columns[key] for key in never)
    ]


def _positions(is_chosen: pd.Series) -> list[int]:
    return is_chosen.to_numpy().nonzero()[0].tolist()


def _existing(table: Table, column: str, values: list[Any], *, folder: str, problems: list[str]) -> list[Any]:
    """The values without files that do not exist, which become a problem."""
    absent = [
        position
        for position, value in enumerate(values)
        if isinstance(value, str) and not is_remote(value) and not Path(value).is_file()
    ]
    if absent:
        problems.append(
            f"{len(absent)} of {len(values)} files in column '{column}' do not exist, e.g. {values[absent[0]]} "
            f"({table.rows(absent)}). Relative paths start at {folder}."
        )
    missing = set(absent)
    return [None if position in missing else value for position, value in enumerate(values)]


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
