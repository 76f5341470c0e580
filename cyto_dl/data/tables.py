"""Read the tables that a manifest consists of, with all their columns: .csv, .parquet, or rows in memory."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from cyto_dl.errors import ManifestError
from cyto_dl.storage import is_remote, localize

SPLITS = ("train", "valid", "test", "predict")
TABLES = (".csv", ".parquet")


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
        raise ManifestError(
            f"{path}: the manifest does not exist. Check data.path, or the pipeline's argument manifest."
        )
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
        raise ManifestError(
            f"{file}: a manifest is a .csv or a .parquet file, or a folder of them. Save the table as .csv or .parquet "
            "(in Excel: Save As, CSV UTF-8), and give that as data.path."
        )
    try:
        cells = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file, dtype=str)
    except (OSError, ValueError) as error:  # pandas' and pyarrow's parser errors are ValueErrors
        raise ManifestError(f"{file}: the manifest cannot be read: {error}.") from error
    first = 2 if file.suffix == ".csv" else 0  # the header is line 1 of a .csv
    return Table(cells.reset_index(drop=True), file.name, f"{file.name}:{{}}", first, split)


def frame(rows: pd.DataFrame | Sequence[Mapping[str, Any]], names: Iterable[str] | None = None) -> pd.DataFrame:
    """Rows as a table whose cells hold whatever was in them, numbered from 0.

    Args:
        rows: A table, or rows, of which some may lack values.
        names: The columns. Default: every name that is in a row.
    """
    if isinstance(rows, pd.DataFrame):
        return rows.reset_index(drop=True)
    names = dict.fromkeys(name for row in rows for name in row) if names is None else names
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names})
