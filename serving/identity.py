"""Which bundle a model is: for metadata, headers and metrics."""

import re
from dataclasses import dataclass

from cyto_dl.bundle.format import DOCUMENT
from cyto_dl.errors import ConfigError
from cyto_dl.storage import localize, sha256

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # of a model: one part of an address, and of a path


@dataclass(frozen=True)
class Identity:
    """What tells one model from another of the same name.

    Args:
        sha256: Of bundle.yaml, which holds those of all other files: `sha256sum bundle.yaml` gives the same.
        engine: That computes, as `cyto_dl.bundle.load_bundle` names it.
        device: Where.
    """

    sha256: str = ""
    engine: str = "torch"
    device: str = "cpu"

    @property
    def version(self) -> str:
        """The beginning of the hash, which is enough to compare."""
        return self.sha256[:12]


UNKNOWN = Identity()


def identify(bundle: str, *, engine: str, device: str) -> Identity:
    """The identity of a bundle in a folder or at an s3:// address."""
    return Identity(sha256(localize(bundle) / DOCUMENT), engine, device)


def check_name(name: str) -> str:
    """A model's name, as it is.

    Raises:
        ConfigError: It cannot stand in an address.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot name a model: a name has up to 128 letters, digits, '.', '_' and '-'. Give it one: "
            "--bundle NAME=PATH."
        )
    return name
