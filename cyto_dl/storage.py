"""Local paths and s3:// addresses: write atomically, bring remote files near."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

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
    objects = _list(bucket, prefix)
    if not objects:
        raise StorageError(f"{uri}: there is nothing at this address. Check the bucket's name and the key.")
    version = hashlib.sha256("".join(f"{key}{etag}" for key, etag in objects).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"cyto-dl-{os.getuid()}" / version
    single = objects[0][0] == prefix
    root = prefix.rsplit("/", 1)[0] + "/" if single and "/" in prefix else "" if single else prefix.rstrip("/") + "/"
    for key, _ in objects:
        _download(bucket, key, folder / key.removeprefix(root))
    return folder / prefix.removeprefix(root) if single else folder


def _split(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")


def _client():  # type: ignore[no-untyped-def]  # boto3 makes its clients' types at run time
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 5}))


def _list(bucket: str, prefix: str) -> list[tuple[str, str]]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = [(entry["Key"], entry["ETag"]) for page in pages for entry in page.get("Contents", [])]
    except (BotoCoreError, ClientError) as error:
        raise StorageError(
            f"s3://{bucket}/{prefix} cannot be read: {error}. "
            "Check AWS_ENDPOINT_URL_S3, the credentials and the bucket's name."
        ) from error
    folder = prefix.rstrip("/") + "/"
    exact = [entry for entry in found if entry[0] == prefix]
    return exact or [entry for entry in found if entry[0].startswith(folder) and not entry[0].endswith("/")]


def _download(bucket: str, key: str, target: Path) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    if target.exists():
        return
    try:
        with atomic_path(target) as temporary:
            _client().download_file(bucket, key, str(temporary))
    except (BotoCoreError, ClientError) as error:
        raise StorageError(f"s3://{bucket}/{key} cannot be downloaded: {error}") from error
