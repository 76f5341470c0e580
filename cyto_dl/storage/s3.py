"""Objects in S3 through boto3: describe, list, read, write, remove; what is transferred is verified.

    upload:    file -> SHA-256 -> parts in parallel, each with a CRC that the server checks -> size and SHA-256 kept?
    download:  parts in parallel -> size -> SHA-256 that we stored, else the MD5 that the server says

The endpoint comes from AWS_ENDPOINT_URL_S3, credentials from where boto3 looks for them; without any, requests are
not signed, which is how public buckets are read.
"""

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyto_dl.errors import StorageError
from cyto_dl.storage.attempts import NothingThereError as NothingThereError
from cyto_dl.storage.attempts import persistently
from cyto_dl.storage.paths import atomic_path, is_remote, sha256

_PART_BYTES = 8 * 2**20  # boto3's own: a part that fails is sent again
_NUM_CONNECTIONS = 10  # boto3's own
_ATTEMPTS = 2  # of botocore; `persistently` is the patient one


class DamagedError(StorageError):
    """An object has not the content that it was uploaded with."""


@dataclass(frozen=True)
class Object:
    """What a server says of an object: `etag` changes with its content, `sha256` is ours, if we uploaded it."""

    uri: str
    size: int
    etag: str
    sha256: str | None = None


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// address. In a key, "#" and "?" are letters like others.

    Raises:
        StorageError: It is none, or there is no bucket in it.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not is_remote(uri) or not bucket:
        raise StorageError(f"'{uri}' names no bucket. An address is s3://bucket/key.")
    return bucket, key


def client() -> Any:  # boto3 makes its clients' types at run time
    """The client of this process for the present settings."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return _client(os.getpid(), tuple(sorted(settings.items())))


@functools.lru_cache(maxsize=4)
def _client(process: int, settings: tuple[tuple[str, str], ...]) -> Any:
    """Connections do not survive a fork, and other settings need another client: hence the arguments."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    session = boto3.Session()  # not the default one, which is not safe between threads
    config = Config(
        retries={"mode": "standard", "max_attempts": _ATTEMPTS},
        connect_timeout=10,
        max_pool_connections=2 * _NUM_CONNECTIONS,
    )
    if session.get_credentials() is None:
        config = config.merge(Config(signature_version=UNSIGNED))
    region = session.region_name or "us-east-1"  # servers of one's own have no region, boto3 wants one
    return session.client("s3", config=config, region_name=region)


def describe(uri: str) -> Object:
    """What the server says of the object at `uri`.

    Raises:
        NothingThereError: There is none of this name.
        StorageError: The bucket cannot be reached.
    """
    bucket, key = split(uri)
    found = persistently(lambda: client().head_object(Bucket=bucket, Key=key), uri, doing="read")
    encrypted = found.get("ServerSideEncryption") == "aws:kms" or "SSECustomerAlgorithm" in found
    etag = found["ETag"] + "-" * encrypted  # then it is no MD5, as with the "-" of several parts
    return Object(uri, found["ContentLength"], etag, found.get("Metadata", {}).get("sha256"))


def exists(uri: str) -> bool:
    """Whether there is an object at an s3:// address."""
    try:
        describe(uri)
    except NothingThereError:
        return False
    return True


def list_objects(uri: str) -> list[Object]:
    """The objects whose address begins with `uri`, in the order of their names."""
    bucket, prefix = split(uri)

    def pages() -> list[Object]:
        found = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        entries = [entry for page in found for entry in page.get("Contents", [])]
        return [Object(f"s3://{bucket}/{entry['Key']}", entry["Size"], entry["ETag"]) for entry in entries]

    return persistently(pages, uri, doing="listed")


def download(found: Object, path: str | os.PathLike[str]) -> None:
    """Write an object's content to a local file, whole and verified.

    Raises:
        StorageError: It cannot be read, or twice has not the content that it was uploaded with.
    """
    try:
        _download_once(found, path)
    except DamagedError:  # it may have been altered on its way, or replaced meanwhile
        now = describe(found.uri)
        _download_once(found if now.etag == found.etag else now, path)


def _download_once(found: Object, path: str | os.PathLike[str]) -> None:
    bucket, key = split(found.uri)
    with atomic_path(path) as temporary:
        persistently(
            lambda: client().download_file(bucket, key, str(temporary), Config=_transfer()), found.uri, doing="read"
        )
        if wrong := _difference(found, temporary):
            raise DamagedError(
                f"{found.uri} is damaged: {wrong}. It was cut off or altered where it is stored: upload it again."
            )


def _difference(found: Object, file: Path) -> str | None:
    """How a downloaded file differs from what the server and whoever uploaded it say."""
    if (size := file.stat().st_size) != found.size:
        return f"it has {size} bytes instead of {found.size}"
    if found.sha256:
        return None if sha256(file) == found.sha256 else "its SHA-256 is not the one that it was uploaded with"
    md5 = found.etag.strip('"')
    if len(md5) != 32 or "-" in md5:
        return None  # of parts, or encrypted: nothing to compare with
    with file.open("rb") as content:
        same = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5
    return None if same else "its MD5 is not the one that the server says"


def upload(path: str | os.PathLike[str], uri: str) -> Object:
    """Copy a local file to an s3:// address, where it appears whole and verified; what was there is replaced.

    Returns:
        What the server now says of it.

    Raises:
        StorageError: It cannot be written, or the server holds something else afterwards.
    """
    bucket, key = split(uri)
    size, digest = Path(path).stat().st_size, sha256(path)
    settings = {"Metadata": {"sha256": digest}}
    persistently(
        lambda: client().upload_file(str(path), bucket, key, ExtraArgs=settings, Config=_transfer()),
        uri,
        doing="written",
    )
    written = describe(uri)
    if written.size != size or written.sha256 not in (digest, None):  # None: a server that keeps no metadata
        raise StorageError(f"{uri}: the server holds {written.size} bytes instead of the {size} of {path}. Try again.")
    return written


def remove(uri: str) -> None:
    """Delete an object; nothing happens if there is none."""
    bucket, key = split(uri)
    persistently(lambda: client().delete_object(Bucket=bucket, Key=key), uri, doing="removed")


def read(uri: str) -> tuple[bytes, str]:
    """Content and ETag of a small object.

    Raises:
        NothingThereError: There is none of this name.
    """
    bucket, key = split(uri)

    def content() -> tuple[bytes, str]:
        found = client().get_object(Bucket=bucket, Key=key)
        return found["Body"].read(), found["ETag"]

    return persistently(content, uri, doing="read")


def replace(uri: str, content: bytes, *, etag: str | None) -> None:
    """Write a small object if the one that is there has this ETag, or if there is none where `etag` is None.

    Servers that refuse conditions (501) get the object without one.

    Raises:
        ConflictError: Somebody else wrote it meanwhile.
    """
    from botocore.exceptions import ClientError

    bucket, key = split(uri)
    condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}

    def write() -> None:
        try:
            client().put_object(Bucket=bucket, Key=key, Body=content, **condition)
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == 501:
                client().put_object(Bucket=bucket, Key=key, Body=content)
            elif status != 412 or client().get_object(Bucket=bucket, Key=key)["Body"].read() != content:
                raise  # at 412 it may be ours: written by an attempt whose answer was lost

    persistently(write, uri, doing="written")


def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=_NUM_CONNECTIONS
    )
