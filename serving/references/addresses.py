"""Which files a client may name: those below the prefixes that the operator allows, and no others.

    --allow-read s3://plates/2026     s3://plates/2026/a.ome.tif      yes
                                      s3://plates/2026b/a.ome.tif     no: another folder
                                      s3://plates/2026/../b.tif       no
    --allow-read /data/plates         /data/plates/a.tif, file:///data/plates/a.tif      yes, unless a link leads out

Nothing is allowed by default. What a client hears does not tell what there is elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kserve.errors import InvalidInput

from cyto_dl.errors import ConfigError
from cyto_dl.storage import is_remote
from serving.errors import Closed

_LONGEST = 2048  # characters; S3 keys have at most 1024 bytes


@dataclass(frozen=True)
class Addresses:
    """The prefixes below which a server reads and writes for its clients.

    Args:
        readable: Normalised folders and s3:// prefixes.
        writable: Likewise.
    """

    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()

    def to_read(self, uri: object) -> str:
        """The address of an image: normalised, and allowed.

        Raises:
            InvalidInput: It is no address.
            Closed: It is not below an allowed prefix.
        """
        return _allowed(uri, self.readable, key="image_uri", doing="read")

    def to_write(self, uri: object) -> str:
        """The address of a folder for results: normalised, and allowed; as `to_read`."""
        return _allowed(uri, self.writable, key="output_uri", doing="write")


NOWHERE = Addresses()


def read_prefixes(prefixes: Sequence[str], *, option: str) -> tuple[str, ...]:
    """What the operator allows, normalised.

    Raises:
        ConfigError: A prefix is neither s3://bucket... nor an absolute path.
    """
    try:
        return tuple(_normalised(prefix, key=option) for prefix in prefixes)
    except InvalidInput as error:
        raise ConfigError(str(error)) from error


def _allowed(uri: object, prefixes: Sequence[str], *, key: str, doing: str) -> str:
    if not isinstance(uri, str):
        raise InvalidInput(f"{key}: an address is wanted, as s3://bucket/image.ome.tif")
    if not prefixes:
        raise Closed(f"{key}: this server does not {doing} files for its clients; the operator has not allowed it")
    address = _normalised(uri, key=key)
    if not any(address == prefix or address.startswith(f"{prefix.rstrip('/')}/") for prefix in prefixes):
        raise Closed(f"{key}: the operator has not allowed to {doing} there")
    return address


def _normalised(uri: str, *, key: str) -> str:
    """s3://bucket/key without a final slash, or a path that has neither links nor "..".

    In an S3 key "." and ".." are letters like others, but a client that writes them means a folder above.
    """
    if not uri or len(uri) > _LONGEST or not uri.isprintable():
        raise InvalidInput(f"{key}: an address has 1 to {_LONGEST} printable characters")
    if is_remote(uri):
        bucket, *parts = uri.removeprefix("s3://").rstrip("/").split("/")
        if not bucket or any(part in ("", ".", "..") for part in parts):
            raise InvalidInput(f"{key}: an address is s3://bucket/folder/name, without '.', '..' and '//'")
        return "/".join(["s3:/", bucket, *parts])
    path = uri
    if uri.startswith("file:"):
        split = urlsplit(uri)
        path = unquote(split.path) if split.netloc in ("", "localhost") else ""
    if not path.startswith("/") or "\0" in path:
        raise InvalidInput(f"{key}: an address begins with s3://, file:/// or /")
    try:
        return str(Path(path).resolve())
    except (OSError, RuntimeError) as error:  # a name that is too long, a link to itself
        raise InvalidInput(f"{key}: this is no path") from error
