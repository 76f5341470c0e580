"""Find files that hold the same bytes, and read as little as possible for it.

files --size--> those of equal size --a few samples--> those of equal samples --SHA-256--> copies
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from cyto_dl.storage import identity, is_remote, localized, sha256

# Uncompressed images of one camera are all of one size; where they differ at all, their pixels differ nearly
# everywhere, so that these samples tell them apart and a data set is not read as a whole.
NUM_SAMPLES = 8
SAMPLE_BYTES = 2**13
NUM_THREADS = 4  # waiting for disk or S3 together; hashing leaves Python's lock to the others


def first_copies(files: Iterable[str]) -> dict[str, str]:
    """For every file the first of those that hold the same bytes; for most, itself.

    Args:
        files: Paths and s3:// addresses of files that exist.

    Raises:
        StorageError: A bucket cannot be reached.
    """
    groups: list[list[str]] = [list(dict.fromkeys(files))]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for key in (_size, _samples, _content):
            groups = [part for group in groups for part in _divided(group, key, pool)]
    return {file: group[0] for group in groups for file in group}


def _divided(group: Sequence[str], key: Callable[[str], object], pool: ThreadPoolExecutor) -> list[list[str]]:
    """The files of each key; a file alone has no copy, and is not looked at."""
    if len(group) < 2:
        return [list(group)]
    parts: dict[object, list[str]] = defaultdict(list)
    for file, value in zip(group, pool.map(key, group), strict=True):
        parts[value].append(file)
    return list(parts.values())


def _size(file: str) -> int:
    return identity(file)[1] if is_remote(file) else os.stat(file).st_size


def _samples(file: str) -> str:
    """A digest of pieces of the file, evenly spread from its beginning to its end."""
    digest = hashlib.sha256()
    with localized(file) as local, local.open("rb") as opened:
        last = max(0, local.stat().st_size - SAMPLE_BYTES)
        for number in range(NUM_SAMPLES):
            opened.seek(last * number // (NUM_SAMPLES - 1))
            digest.update(opened.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _content(file: str) -> str:
    with localized(file) as local:
        return sha256(local)
