"""Local copies of S3 objects, in a folder that does not outgrow its bound.

    uri --describe--> version (ETag) -> copy there? --no--> make room: remove what was used longest ago -> download
                                          |
                                    locked while in use

Copies lie in TMPDIR, one folder per object version: <digest>-<bytes>/, beside a lock of this name. Who uses a copy
holds its lock together with others; who removes or downloads it holds the lock alone. Locks end with their process.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cyto_dl.errors import StorageError
from cyto_dl.storage.attempts import RefusedError
from cyto_dl.storage.paths import is_disk_full, is_remote
from cyto_dl.storage.s3 import NothingThereError, Object, describe, download, list_objects, split

logger = logging.getLogger(__name__)

_BOUND_GB = 20.0  # some thousand images; a node's disk has more
_kept: dict[Path, int] = {}  # copies that this process uses to its end, and their locks' file descriptors


def localize(uri: str | os.PathLike[str]) -> Path:
    """A local path with the content of `uri`: itself when it is local, a downloaded copy when it is s3://.

    The copy stays until the process ends: meant for tables, bundles and checkpoints. Many images are better read with
    `localized`. An address that ends in "/" or names a prefix is brought as a folder.

    Raises:
        NothingThereError: There is nothing at `uri`.
        StorageError: The bucket cannot be reached, or the disk is full.
    """
    if not is_remote(uri):
        return Path(uri)
    copy, lock = _copy(str(uri))
    if copy in _kept:
        os.close(lock)
    else:
        _kept[copy] = lock
    return copy


@contextmanager
def localized(uri: str | os.PathLike[str]) -> Iterator[Path]:
    """Like `localize`, for the time of a block; afterwards the copy may be removed when others need its room."""
    if not is_remote(uri):
        yield Path(uri)
        return
    copy, lock = _copy(str(uri))
    try:
        yield copy
    finally:
        os.close(lock)


def identity(uri: str) -> tuple[str, int]:
    """What changes when the content at an s3:// address does, and its size in bytes; nothing is downloaded."""
    objects = _find(uri)
    return _digest(objects), sum(each.size for each in objects)


def _copy(uri: str) -> tuple[Path, int]:
    """The copy of an object or a folder of objects, and the descriptor that holds its lock."""
    objects = _find(uri)
    single = objects[0].uri == uri
    root = uri.rpartition("/")[0] if single else uri.rstrip("/")
    names = [_relative(each.uri.removeprefix(f"{root}/"), uri) for each in objects]
    folder = _own_folder() / f"{_digest(objects)}-{sum(each.size for each in objects)}"
    lock = _lock_complete(folder, dict(zip(names, objects, strict=True)))
    return (folder / names[0] if single else folder), lock


def _find(uri: str) -> list[Object]:
    """The object called `uri`, else all objects in the folder of this name."""
    _, key = split(uri)
    try:
        if key and not key.endswith("/"):
            return [describe(uri)]
    except NothingThereError:
        pass
    except RefusedError:  # without a reason, because a HEAD request's answer has no content; listing tells it
        list_objects(uri)
        raise
    folder = uri if uri.endswith("/") else f"{uri}/"
    if objects := [each for each in list_objects(folder) if not each.uri.endswith("/")]:
        return objects
    raise NothingThereError(f"{uri}: there is nothing at this address. Check the bucket's name and the key.")


def _digest(objects: Sequence[Object]) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3", "")  # two servers may have buckets of one name
    text = endpoint + "".join(f"{each.uri}{each.etag}" for each in objects)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _lock_complete(folder: Path, objects: dict[str, Object]) -> int:
    """Bring the copy if it is not there; the descriptor of its lock, which is held together with other users."""
    path = folder.with_name(f"{folder.name}.lock")
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_SH)
        if _is_current(lock, path) and folder.is_dir():
            os.utime(path, ns=(time.time_ns(),) * 2)  # of the last use; the kernel's own time is 4 ms coarse
            return lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_current(lock, path) and not folder.is_dir():
                _bring(folder, objects)
        finally:
            os.close(lock)


def _bring(folder: Path, objects: dict[str, Object]) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        _make_room(folder.parent, sum(each.size for each in objects.values()))
        for name, each in objects.items():
            download(each, temporary / name)
        temporary.rename(folder)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise StorageError(
            f"{folder.parent}: the disk is full, no copy of {next(iter(objects.values())).uri} could be made. "
            "Set TMPDIR to a larger disk, or CYTO_DL_SCRATCH_GB to less than this one has."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_room(folder: Path, num_bytes: int) -> None:
    """Remove copies, those first that were used longest ago, until `num_bytes` more keep within the bound."""
    copies = [(path, int(path.name.partition("-")[2])) for path in folder.glob("[!.]*-*") if path.is_dir()]
    excess = sum(size for _, size in copies) + num_bytes - _bound_bytes()
    if excess <= 0:
        return
    for _, path, size in sorted((_last_use(path), path, size) for path, size in copies):
        if excess <= 0:
            return
        excess -= size * _remove_unless_used(path)
    if excess > 0:
        logger.warning("%s holds %.1f GB more than CYTO_DL_SCRATCH_GB, all of it in use", folder, excess / 1e9)


def _last_use(copy: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
        return copy.with_name(f"{copy.name}.lock").stat().st_mtime_ns
    return 0


def _remove_unless_used(copy: Path) -> bool:
    """Remove a copy and its lock, if no process holds it; whether it is gone."""
    path = copy.with_name(f"{copy.name}.lock")
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_current(lock, path):
            shutil.rmtree(copy, ignore_errors=True)
            path.unlink()
        return not copy.exists()
    except BlockingIOError:
        return False
    finally:
        os.close(lock)


def _is_current(lock: int, path: Path) -> bool:
    """Whether the descriptor is of the file that has the name now, rather than of one that was removed."""
    with contextlib.suppress(FileNotFoundError):
        return os.fstat(lock).st_ino == path.stat().st_ino
    return False


def _bound_bytes() -> float:
    given = os.environ.get("CYTO_DL_SCRATCH_GB", _BOUND_GB)
    try:
        return float(given) * 1e9
    except ValueError as error:
        raise StorageError(f"CYTO_DL_SCRATCH_GB is '{given}'. Set it to a number of gigabytes, e.g. 20.") from error


def _own_folder() -> Path:
    """Where copies live. Of this user alone: who could write there could put other weights in place of ours."""
    folder = Path(tempfile.gettempdir()) / f"cyto-dl-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise StorageError(f"{folder} belongs to somebody else. Remove it, or set TMPDIR to a folder of your own.")
    return folder


def _relative(name: str, uri: str) -> str:
    """The rest of a key as a path below a folder; a key may hold "..", which would lead out of it."""
    if name.startswith("/") or ".." in name.split("/"):
        raise StorageError(f"{uri} has an object '{name}', which cannot be a path in a folder. Rename it.")
    return name
