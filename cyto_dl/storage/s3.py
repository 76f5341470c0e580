"""Objects in S3 through boto3: describe, list, read, write, remove; what is transferred is verified.

    upload:    file -> SHA-256 -> parts in parallel, each with a CRC that the server checks -> size and SHA-256 kept?
    download:  parts in parallel, hashed as they arrive -> SHA-256 that we stored, else the MD5 that the server says

The endpoint comes from AWS_ENDPOINT_URL_S3, credentials from where boto3 looks for them; without any, requests are
not signed, which is how public buckets are read.
"""

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cyto_dl.errors import StorageError
from cyto_dl.storage.attempts import NothingThereError as NothingThereError
from cyto_dl.storage.attempts import persistently
from cyto_dl.storage.paths import atomic_path, is_remote, sha256

_SENT_PART_BYTES = 16 * 2**20  # twice boto3's: fewer requests make up for the hash; a part that fails is sent again
_RECEIVED_PART_BYTES = 8 * 2**20  # boto3's own: up to ten of them wait in memory for those before them
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

        def transfer() -> _HashedFile:
            with temporary.open("wb") as file:
                hashed = _HashedFile(file, _hash_of(found)[0])
                client().download_fileobj(bucket, key, hashed, Config=_transfer(_RECEIVED_PART_BYTES))
            return hashed

        if wrong := _difference(found, persistently(transfer, found.uri, doing="read")):
            raise DamagedError(
                f"{found.uri} is damaged: {wrong}. It was cut off or altered where it is stored: upload it again."
            )


class _HashedFile:
    """Hashes what is written to a file. Without `seek`, boto3 writes parts in their order, each byte once."""

    def __init__(self, file: BinaryIO, algorithm: str) -> None:
        self._file, self._hash, self.size = file, hashlib.new(algorithm, usedforsecurity=False), 0

    def write(self, content: bytes) -> int:
        """Append; other threads receive further parts meanwhile, because hashing lets them."""
        self._hash.update(content)
        self.size += len(content)
        return self._file.write(content)

    def hexdigest(self) -> str:
        """Of all that was written."""
        return self._hash.hexdigest()


def _hash_of(found: Object) -> tuple[str, str | None]:
    """Algorithm and value of the hash that an object's content must have; None if nobody knows it."""
    md5 = found.etag.strip('"')  # of parts, or encrypted, it is none
    if not found.sha256 and len(md5) == 32 and "-" not in md5:
        return "md5", md5
    return "sha256", found.sha256


def _difference(found: Object, received: _HashedFile) -> str | None:
    """How what was downloaded differs from what the server and whoever uploaded it say."""
    if received.size != found.size:
        return f"it has {received.size} bytes instead of {found.size}"
    if _hash_of(found)[1] in (None, received.hexdigest()):
        return None
    if found.sha256:
        return "its SHA-256 is not the one that it was uploaded with"
    return "its MD5 is not the one that the server says"


def upload(path: str | os.PathLike[str], uri: str, *, digest: str | None = None) -> Object:
    """Copy a local file to an s3:// address, where it appears whole and verified; what was there is replaced.

    Args:
        path: The file.
        uri: Where it goes.
        digest: Its SHA-256, where the caller knows it already.

    Returns:
        What the server now says of it.

    Raises:
        StorageError: It cannot be written, or the server holds something else afterwards.
    """
    bucket, key = split(uri)
    size, digest = Path(path).stat().st_size, digest or sha256(path)  # first: an object's metadata precede its parts
    settings, parts = {"Metadata": {"sha256": digest}}, _transfer(_SENT_PART_BYTES)
    persistently(
        lambda: client().upload_file(str(path), bucket, key, ExtraArgs=settings, Config=parts), uri, doing="written"
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


def _transfer(part_bytes: int) -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=part_bytes, multipart_chunksize=part_bytes, max_concurrency=_NUM_CONNECTIONS
    )
