"""A file under a name whose content changes, so that a reader sees the old one or the new one, never half of it.

publish("last.ckpt", folder, "last")
    1. s3://.../last-step00000120-1f0c9a2b77de.ckpt   upload and verify
    2. s3://.../last.json                             the pointer moves: {object, sha256, size, step}
    3. s3://.../last-step00000120-1f0c9a2b77de.ckpt   still there? another writer may have removed it before 2
    4. older last-*.ckpt                              are removed
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from cyto_dl.errors import StorageError
from cyto_dl.storage.attempts import ConflictError
from cyto_dl.storage.paths import sha256
from cyto_dl.storage.s3 import (
    DamagedError,
    NothingThereError,
    Object,
    describe,
    download,
    exists,
    list_objects,
    read,
    remove,
    replace,
    upload,
)


@dataclass(frozen=True)
class Pointer:
    """What a pointer's JSON holds: the object's name beside it, its content's hash and size, the training step."""

    object: str
    sha256: str
    size: int
    step: int


def publish(path: Path, folder: str, name: str, *, step: int) -> None:
    """Make a local file what `name` stands for in an s3:// folder.

    Raises:
        ConflictError: Another process published under this name meanwhile.
        StorageError: The bucket cannot be written.
    """
    pointer_uri = f"{folder}/{name}.json"
    content, etag = _content(pointer_uri)
    digest = sha256(path)
    target = f"{folder}/{name}-step{step:08}-{digest[:12]}{path.suffix}"
    if content and digest in content and exists(target):  # a run that goes on begins with what it fetched
        return
    written = upload(path, target, digest=digest)
    pointer = Pointer(target.rpartition("/")[2], digest, written.size, step)
    replace(pointer_uri, json.dumps(asdict(pointer), indent=2).encode(), etag=etag)
    if not exists(target):
        raise ConflictError(
            f"{target} was removed while {name}.json was moved to it: somebody else publishes at {folder}. Give each "
            "run an address of its own, and let one process at a time go on with it."
        )
    for old in list_objects(f"{folder}/{name}-step"):
        if old.uri != target:
            remove(old.uri)


def fetch_published(folder: str, name: str, path: str | os.PathLike[str]) -> int | None:
    """Write to `path` what `name` stands for in an s3:// folder, verified; returns its step, None if there is none.

    Raises:
        DamagedError: What the pointer names is absent or damaged.
        StorageError: The bucket cannot be read.
    """
    pointer = _pointer(f"{folder}/{name}.json")
    while pointer is not None:
        try:
            download(_object(folder, pointer), path)
            return pointer.step
        except NothingThereError as error:
            again = _pointer(f"{folder}/{name}.json")
            if again == pointer:
                raise DamagedError(
                    f"{folder}/{name}.json points to {pointer.object}, which does not exist. Somebody removed it: "
                    "bring it back, or remove the pointer to start anew."
                ) from error
            pointer = again  # a newer one was published meanwhile, and this one removed
    return None


def _object(folder: str, pointer: Pointer) -> Object:
    """The object as the pointer describes it, whatever the server holds under its name now."""
    found = describe(f"{folder}/{pointer.object}")
    return Object(found.uri, pointer.size, found.etag, pointer.sha256)


def _content(uri: str) -> tuple[str | None, str | None]:
    try:
        content, etag = read(uri)
    except NothingThereError:
        return None, None
    return content.decode(errors="replace"), etag


def _pointer(uri: str) -> Pointer | None:
    content, _ = _content(uri)
    try:
        return None if content is None else Pointer(**json.loads(content))
    except (TypeError, ValueError) as error:
        raise StorageError(f"{uri} is no pointer to a published file: {error}. Remove it to start anew.") from error
