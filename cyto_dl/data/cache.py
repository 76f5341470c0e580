"""Loaded and preprocessed images, computed once and kept on disk across epochs and runs.

    row -> load -> preprocess -> <cache_dir>/<key>.pt -> memory-mapped tensors, of which a patch is read alone

The key is the hash of the source files (path, size, time of change), of the transforms (class, code, arguments) and of
CytoDL's version, because how a file is read is not in the transforms' code. A file whose content does not have its
checksums is computed again; when the disk is full, images are computed each time.
"""

import functools
import hashlib
import logging
import os
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor, PersistentDataset

from cyto_dl import __version__
from cyto_dl.data.check import not_finite
from cyto_dl.data.describe import describe
from cyto_dl.data.manifest import ROW, Row
from cyto_dl.data.stages import for_missing
from cyto_dl.data.transforms import Transform, run_transforms
from cyto_dl.errors import ImageError
from cyto_dl.storage import atomic_path, identity, is_disk_full, is_remote

logger = logging.getLogger(__name__)

# What torch.load raises on files that are cut off or hold something else.
DAMAGED = (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, UnpicklingError, zipfile.BadZipFile)
NUM_MAPPED = 256  # files kept mapped: opening one costs as much as augmenting a patch; pages are the kernel's to drop
FORMAT = 1  # of the cached files; part of the key, so that a change of format recomputes them


class Sample(NamedTuple):
    """One image after preprocessing: its tensors C(Z)YX by key, the source's path and its pixel size."""

    tensors: dict[str, torch.Tensor]
    path: str
    spacing_um: tuple[float, ...] | None


class CachedDataset(PersistentDataset):
    """The rows of one split as `Sample`, from the cache where it has them.

    Args:
        rows: As `read_manifest` returns them.
        transforms: Deterministic: load and preprocess.
        source_key: The key whose path and pixel size stand for the row.
        target_keys: The keys that a row may lack; what concerns only those that it lacks is not run.
        cache_dir: Where results are kept; None computes them every time.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        transforms: Sequence[Transform],
        *,
        source_key: str,
        target_keys: Collection[str] = (),
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(rows, (), None if cache_dir is None else Path(cache_dir))
        self.source_key = source_key
        self.target_keys = tuple(target_keys)
        self.missing = [self._missing(row) for row in rows]
        self._steps = {missing: for_missing(transforms, missing) for missing in self.missing}
        self._steps_hash = _hash([FORMAT, __version__, *map(describe, transforms)]) if cache_dir is not None else ""
        self._files: dict[int, Path] = {}
        self._disk_is_full = False
        # Time of change of files whose checksums were compared; shared with loader workers, which live for an epoch.
        self._checked = torch.zeros(max(len(rows), 1), dtype=torch.int64).share_memory_()

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # one at a time is what there is a use for
        row = self.data[index]
        if self.cache_dir is None:
            return self._pre_transform(row)
        file = self._file(row, self.cache_dir)
        if file.is_file() and (sample := self._load(index, file)) is not None:
            return sample
        sample = self._pre_transform(row)
        self._disk_is_full = self._disk_is_full or not _save(sample, file)
        return sample if self._disk_is_full else self._load(index, file) or sample

    def name(self, index: int, key: str) -> str:
        """What messages call an image of a row: its path, or where the row stands if it is an array."""
        return _name(self.data[index], key)

    def _missing(self, row: Row) -> frozenset[str]:
        return frozenset(key for key in self.target_keys if key not in row)

    def _load(self, index: int, file: Path) -> Sample | None:
        """The sample of a row's cache file, mapped into memory; None if the file is damaged."""
        try:
            stat = file.stat()
            if self._checked[index] != stat.st_mtime_ns:
                _compare_checksums(file)
                self._checked[index] = stat.st_mtime_ns
            return _mapped(file, stat.st_size, stat.st_mtime_ns)
        except DAMAGED as error:
            reason = str(error).partition("\n")[0]
        logger.warning("the cached file %s is damaged (%s); it is computed again", file, reason)
        return None

    def _pre_transform(self, item_transformed: Row) -> Sample:
        path = _name(item_transformed, self.source_key)
        item = run_transforms(self._steps[self._missing(item_transformed)], dict(item_transformed), path=path)
        tensors = plain_tensors(item)
        if bad := [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
            raise ImageError(self._not_finite(item_transformed, bad[0], tensors[bad[0]]))
        source = item[self.source_key]
        known = isinstance(source, MetaTensor) and source.meta.get("spacing_um") is not None
        spacing_um = tuple(float(size) for size in source.pixdim[: source.ndim - 1]) if known else None
        return Sample(tensors, path, spacing_um)

    def _not_finite(self, row: Row, key: str, tensor: torch.Tensor) -> str:
        """The message for an image in which a transform made NaN or infinity; it names the transform."""
        item: Any = dict(row)
        for step in self._steps[self._missing(row)]:
            item = run_transforms([step], item, path=_name(row, key))
            if key in item and (found := _plain_tensor(item[key])) is not None and not torch.isfinite(found).all():
                break
        num_bad = int((~torch.isfinite(tensor)).sum())
        where = f" after the transform {getattr(step, '__name__', type(step).__name__)}"
        return not_finite(_name(row, key), key, num_bad, tensor.numel(), where=where)

    def _file(self, row: Row, cache_dir: Path) -> Path:
        """Where a row's result is kept. Worked out once per row, so that a run sees one state of its files."""
        if id(row) not in self._files:
            identity = {key: _identity(value) for key, value in row.items() if key != ROW}
            self._files[id(row)] = cache_dir / f"{_hash([self._steps_hash, identity])}.pt"
        return self._files[id(row)]


def plain_tensors(item: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The images of an item, without what transforms hang on to tensors."""
    return {key: plain.contiguous() for key, value in item.items() if (plain := _plain_tensor(value)) is not None}


def _plain_tensor(value: Any) -> torch.Tensor | None:
    """A value as a plain tensor if it is an image (C(Z)YX, at least three axes), otherwise None."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, torch.Tensor) or value.ndim < 3:
        return None
    return value.as_tensor() if isinstance(value, MetaTensor) else value


def _name(row: Row, key: str) -> str:
    value = row.get(key)
    return str(value) if isinstance(value, str | os.PathLike) else row[ROW]


def _identity(value: Any) -> Any:
    """What says whether a file or an array is still the same."""
    if not isinstance(value, str | os.PathLike):
        return describe(value)
    if is_remote(value):
        return list(identity(str(value)))
    stat = os.stat(value)
    return [str(value), stat.st_size, stat.st_mtime_ns]


def _hash(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _save(sample: Sample, file: Path) -> bool:
    """Keep a sample, whole or not at all; whether the disk had room for it."""
    try:
        with atomic_path(file) as temporary, temporary.open("wb") as content:
            torch.save(sample._asdict(), content)
    except (OSError, RuntimeError) as error:  # torch's error hides the system's
        if not is_disk_full(error):
            raise
        logger.warning(
            "%s: the disk is full. The training goes on, and computes what is not in the cache in every epoch; "
            "make room, or set data.cache_dir to a folder on a larger disk.",
            file.parent,
        )
        return False
    return True


@functools.lru_cache(maxsize=NUM_MAPPED)
def _mapped(file: Path, size: int, mtime_ns: int) -> Sample:
    """The sample of a file that has this size and time of change: one that was changed is read again."""
    content = torch.load(file, mmap=True, weights_only=True)
    if isinstance(content, Mapping) and content.keys() == set(Sample._fields):
        return Sample(**content)
    raise ValueError("it holds something else")


def _compare_checksums(file: Path) -> None:
    """See that a file has the content of its CRC-32s, which torch does not compare in what it maps.

    Raises:
        ValueError: It has not.
    """
    with zipfile.ZipFile(file) as archive:
        if name := archive.testzip():
            raise ValueError(f"the checksum of its part {name} differs")
