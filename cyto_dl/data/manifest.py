"""Read the table of images: which files belong together, and which split each row is in.

train.csv, valid.csv, ... | one .csv or .parquet | rows in memory  ->  {split: [{key: path or array, "row": where}]}
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from cyto_dl.errors import ManifestError, list_problems
from cyto_dl.storage import is_remote, localize

SPLITS = ("train", "valid", "test", "predict")
TABLES = (".csv", ".parquet")
ROW = "row"  # the key under which every row says where it stands

Row = dict[str, Any]
Rows = dict[str, list[Row]]
InMemory = pd.DataFrame | Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Table:
    """One table of rows and where it comes from.

    Attributes:
        cells: The table, with all its columns.
        name: What messages call it.
        where: Names a row when its number is filled in, counted from `first`.
        first: The number of the first row.
        split: The split of all rows, when the table has no column for it.
    """

    cells: pd.DataFrame
    name: str
    where: str
    first: int
    split: str | None = None

    def rows(self, positions: Sequence[int], *, limit: int = 5) -> str:
        """Where the rows at these positions stand, for a message."""
        shown = ", ".join(self.where.format(self.first + position) for position in positions[:limit])
        return shown + (f" and {len(positions) - limit} more" if len(positions) > limit else "")


def read_manifest(
    path: str | PathLike[str],
    *,
    columns: Mapping[str, str],
    split_column: str | None,
    source_key: str | None = None,
) -> Rows:
    """The rows of a manifest per split, with absolute paths.

    Args:
        path: A folder with train.csv, valid.csv, test.csv, predict.csv (or .parquet; those that there are), or one
            file. Local or s3://. Relative paths in it start at the manifest's folder.
        columns: Batch key -> column with its files.
        split_column: The column that names each row's split, for one file. None: every row is in the split "predict".
        source_key: The key of the source; the others are targets, which the split "predict" does without. Default: the
            first of `columns`.

    Returns:
        {split: rows}, only splits that have rows; a row is {key: absolute path, "row": "manifest.csv:17"}.

    Raises:
        ManifestError: With everything that is wrong with the manifest, at once.
    """
    tables = read_tables(path, split_column)
    folder = manifest_folder(path)
    rows, problems = check_tables(tables, columns, split_column=split_column, source_key=source_key, folder=folder)
    return _usable(rows, problems, str(path))


def collect_rows(
    data: InMemory, *, columns: Mapping[str, str], split_column: str | None, source_key: str | None = None
) -> Rows:
    """The rows of a table in memory per split: like `read_manifest`, and a value may also be an array.

    Args:
        data: A table or a list of rows, each with its split in `split_column` (default "split"), or {split: rows}.
            Relative paths start at the current folder.
        columns: Batch key -> column.
        split_column: As in `read_manifest`.
        source_key: As in `read_manifest`.

    Raises:
        ManifestError: With everything that is wrong with the table, at once.
    """
    if isinstance(data, Mapping):
        tables = [Table(_frame(rows), split, f"{split}[{{}}]", 0, split) for split, rows in data.items()]
    else:
        tables = [Table(_frame(data), "data.path", "data.path[{}]", 0)]
    split_column = split_column or "split"
    folder = str(Path.cwd())
    rows, problems = check_tables(tables, columns, split_column=split_column, source_key=source_key, folder=folder)
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


def manifest_folder(path: str | PathLike[str]) -> str:
    """Where a manifest's relative paths start: the folder itself, or the folder of the one file."""
    address = str(path).rstrip("/")
    if address.endswith(TABLES):
        address = address.rpartition("/")[0] or "."
    return address if is_remote(address) else str(Path(address).absolute())


def absolute_path(path: str, folder: str) -> str:
    """A path of a manifest, absolute: itself, or below the manifest's folder. s3:// addresses stay as they are."""
    if is_remote(path) or Path(path).is_absolute():
        return path
    return f"{folder.rstrip('/')}/{path}" if is_remote(folder) else str(Path(folder, path))


def read_tables(path: str | PathLike[str], split_column: str | None) -> list[Table]:
    """The table or tables that a manifest consists of, with all their columns."""
    local = localize(path)
    if local.is_dir():
        return _read_folder(local, str(path))
    if not local.is_file():
        raise ManifestError(f"{path}: the manifest does not exist. Check data.path.")
    return [_read_table(local, None if split_column else "predict")]


def _read_folder(folder: Path, path: str) -> list[Table]:
    files = {split: [file for suffix in TABLES if (file := folder / f"{split}{suffix}").is_file()] for split in SPLITS}
    if double := [split for split, found in files.items() if len(found) > 1]:
        raise ManifestError(f"{path}: there is both a .csv and a .parquet for {', '.join(double)}. Remove one of them.")
    if not any(files.values()):
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:10]) or "nothing"
        raise ManifestError(
            f"{path}: the folder holds none of train.csv, valid.csv, test.csv, predict.csv (or .parquet), but {there}. "
            "Name the files after their split, or give one file as data.path and its column as data.split_column."
        )
    return [_read_table(found[0], split) for split, found in files.items() if found]


def _read_table(file: Path, split: str | None) -> Table:
    if file.suffix not in TABLES:
        raise ManifestError(f"{file}: a manifest is a .csv or a .parquet file, or a folder of them. Check data.path.")
    try:
        cells = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file, dtype=str)
    except (OSError, ValueError) as error:  # pandas' and pyarrow's parser errors are ValueErrors
        raise ManifestError(f"{file}: the manifest cannot be read: {error}.") from error
    first = 2 if file.suffix == ".csv" else 0  # the header is line 1 of a .csv
    return Table(cells.reset_index(drop=True), file.name, f"{file.name}:{{}}", first, split)


def _frame(rows: pd.DataFrame | Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table whose cells hold whatever was in them, numbered from 0."""
    if isinstance(rows, pd.DataFrame):
        return rows.reset_index(drop=True)
    names = dict.fromkeys(name for row in rows for name in row)
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names})


def check_tables(
    tables: Sequence[Table],
    columns: Mapping[str, str],
    *,
    split_column: str | None,
    source_key: str | None,
    folder: str,
) -> tuple[Rows, list[str]]:
    """The rows of the tables per split, without files that do not exist, and everything that is wrong with them."""
    source_key = source_key or next(iter(columns))
    rows: Rows = {split: [] for split in SPLITS}
    problems = [] if any(len(table.cells) for table in tables) else ["the manifest is empty: it has no rows."]
    for table in tables:
        splits = _splits(table, split_column, problems)
        is_training = splits != "predict"
        present = _present_columns(table, columns, columns if is_training.any() else [source_key], problems)
        paths = {
            key: _paths(table, column, needed=is_training | (key == source_key), folder=folder, problems=problems)
            for key, column in present.items()
        }
        for position, split in enumerate(splits):
            values = {key: found[position] for key, found in paths.items() if found[position] is not None}
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
            f"{table.rows(same.to_numpy().nonzero()[0].tolist())}. Splits are {', '.join(SPLITS)}, spelled exactly so."
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


def _paths(table: Table, column: str, *, needed: pd.Series, folder: str, problems: list[str]) -> list[Any]:
    """The column's values with absolute paths; cells without a value and files that do not exist become problems."""
    values = [None if _is_empty(value) else value for value in table.cells[column]]
    values = [absolute_path(str(value), folder) if isinstance(value, str | PathLike) else value for value in values]
    empty = [position for position, value in enumerate(values) if value is None and needed.iloc[position]]
    if empty:
        problems.append(f"column '{column}' has no value in {table.rows(empty)}.")
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
    return [None if position in absent else value for position, value in enumerate(values)]


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
