"""Addresses and local files: tell one from the other, write a file or folder whole or not at all, hash it."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_remote(uri: str | os.PathLike[str]) -> bool:
    """Whether `uri` is an s3:// address rather than a local path."""
    return str(uri).startswith("s3://")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if the block succeeds and vanishes if it fails.

    A reader sees the old file or folder, or the new one, never half of it. Works for a file and for a folder
    (create it inside the block); an existing folder is replaced.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        temporary = scratch / target.name  # keeps the suffix, which writers choose their format by
        yield temporary
        if temporary.is_dir() and target.is_dir():
            os.replace(target, scratch / "replaced")
        os.replace(temporary, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that a file may not grow: disk, quota or limit."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__ or error.__context__
    return False
