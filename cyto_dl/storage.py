"""Local paths and s3:// addresses: write atomically, bring remote files near."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cyto_dl.errors import StorageError


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


def localize(uri: str | os.PathLike[str]) -> Path:
    """A local path with the content of `uri`: itself when it is local, a downloaded copy when it is s3://.

    An address that ends in "/" or names a prefix is brought as a folder. Copies live in a temporary folder per
    object version (its ETag), so the same object is downloaded once.

    Raises:
        StorageError: The bucket cannot be reached, or holds nothing at `uri`.
    """
    if not is_remote(uri):
        return Path(uri)
    bucket, prefix = _split(str(uri))
    with _as_storage_error(str(uri)):
        client = _client()
        objects = _list(client, bucket, prefix)
    if not objects:
        raise StorageError(f"{uri}: there is nothing at this address. Check the bucket's name and the key.")
    version = hashlib.sha256("".join(f"{key}{etag}" for key, etag in objects).encode()).hexdigest()[:16]
    single = objects[0][0] == prefix
    root = prefix.rpartition("/")[0] if single else prefix.rstrip("/")
    folder = _own_folder() / version
    copies = {key: folder / _relative(key.removeprefix(f"{root}/" if root else ""), bucket) for key, _ in objects}
    for key, copy in copies.items():
        if not copy.exists():
            with _as_storage_error(f"s3://{bucket}/{key}"), atomic_path(copy) as temporary:
                client.download_file(bucket, key, str(temporary))
    return copies[prefix] if single else folder


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")  # in a key, "#" and "?" are letters like others
    return bucket, key


def _client() -> Any:  # boto3 makes its clients' types at run time
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 5}))


def _list(client: Any, bucket: str, prefix: str) -> list[tuple[str, str]]:
    """Key and ETag of the object called `prefix`, else of all objects in the folder of this name."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    found = [(entry["Key"], entry["ETag"]) for page in pages for entry in page.get("Contents", [])]
    exact = [entry for entry in found if entry[0] == prefix]
    folder = prefix.rstrip("/") + "/" if prefix else ""
    return exact or [entry for entry in found if entry[0].startswith(folder) and not entry[0].endswith("/")]


def _own_folder() -> Path:
    """Where copies live. Of this user alone: who could write there could put other weights in place of ours."""
    folder = Path(tempfile.gettempdir()) / f"cyto-dl-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise StorageError(f"{folder} belongs to somebody else. Remove it, or set TMPDIR to a folder of your own.")
    return folder


def _relative(name: str, bucket: str) -> str:
    """The rest of a key as a path below a folder; a key may hold "..", which would lead out of it."""
    if name.startswith("/") or ".." in name.split("/"):
        raise StorageError(f"s3://{bucket} has an object '{name}', which cannot be a path in a folder. Rename it.")
    return name


@contextmanager
def _as_storage_error(uri: str) -> Iterator[None]:
    """Turn what boto3 raises into a StorageError that says what to check. Its messages hold no credentials."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError, ValueError) as error:  # ValueError: the endpoint is not a URL
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or "the default S3 endpoint"
        raise StorageError(
            f"{uri} cannot be read from {endpoint}: {str(error).rstrip('.')}. "
            "Check AWS_ENDPOINT_URL_S3, the credentials and the bucket's name."
        ) from error
