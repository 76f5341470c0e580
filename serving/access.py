"""Who may ask what: bearer tokens, and routes that need none.

    no --token-file          everybody may predict
    --token-file             health and readiness are open, everything else needs one of its tokens
    no --admin-token-file    nobody loads or unloads models
    --admin-token-file       who has one of its tokens loads and unloads, and predicts

A file holds one token a line, so that a new one can be handed out before the old one goes.
"""

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cyto_dl.errors import ConfigError
from serving.errors import Closed, Unknown
from serving.limits import refuse

# Probes carry no token, nor does a browser that opens the page, which tells nothing of the models.
# GET /v1/models/NAME is V1's readiness.
_OPEN = re.compile(r"/|/v2/health/(live|ready)|/v2/models/[^/]+/ready|/v1/models/[^/:]+")
_ADMINISTRATIVE = re.compile(r"/v2/repository/models/.*")
_OPEN_CALLS = ("ServerLive", "ServerReady", "ModelReady")
_ADMINISTRATIVE_CALLS = ("RepositoryModelLoad", "RepositoryModelUnload")
_MIN_LENGTH = 16  # characters; a token that is shorter can be guessed


def read_tokens(path: str) -> tuple[str, ...]:
    """The tokens in a file, one a line.

    Raises:
        ConfigError: There is no such file, no token in it, or one that is too short; none is shown.
    """
    try:
        lines = Path(path).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tokens cannot be read from {path}: {type(error).__name__}.") from error
    if not lines or min(len(line) for line in lines) < _MIN_LENGTH:
        raise ConfigError(
            f"{path} must hold tokens of {_MIN_LENGTH} or more characters, one a line, without spaces: "
            "openssl rand -hex 32"
        )
    return tuple(lines)


@dataclass(frozen=True)
class Access:
    """Who may ask what.

    Args:
        tokens: That allow to predict; empty: nobody needs one.
        admin_tokens: That allow everything; empty: models are neither loaded nor unloaded over the network.
    """

    tokens: tuple[str, ...] = field(default=(), repr=False)
    admin_tokens: tuple[str, ...] = field(default=(), repr=False)

    def check_path(self, path: str, headers: Mapping[str, str]) -> None:
        """See whether a REST request is allowed.

        Raises:
            Unknown: It needs a token that it does not carry.
            Closed: Nobody may do it.
        """
        if _ADMINISTRATIVE.fullmatch(path):
            self._check_admin(headers)
        elif not _OPEN.fullmatch(path):
            self._check(headers)

    def check_call(self, method: str, headers: Mapping[str, str]) -> None:
        """See whether a gRPC call is allowed; as `check_path`."""
        if method in _ADMINISTRATIVE_CALLS:
            self._check_admin(headers)
        elif method not in _OPEN_CALLS:
            self._check(headers)

    def _check(self, headers: Mapping[str, str]) -> None:
        if self.tokens and not _carries(headers, (*self.tokens, *self.admin_tokens)):
            raise Unknown("this server needs a token: send the header Authorization: Bearer TOKEN")

    def _check_admin(self, headers: Mapping[str, str]) -> None:
        if not self.admin_tokens:
            raise Closed("models are not loaded or unloaded over the network here; the operator has not allowed it")
        if not _carries(headers, self.admin_tokens):
            raise Unknown("only the operator loads and unloads models: send the header Authorization: Bearer TOKEN")


EVERYBODY = Access()


class TokenCheck:
    """ASGI middleware that lets only allowed requests pass, before anything of their bodies is read."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            try:
                self._access.check_path(scope["path"], Headers(scope=scope))
            except (Unknown, Closed) as error:
                await refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


def _carries(headers: Mapping[str, str], tokens: tuple[str, ...]) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return False
    # every token is compared, each in constant time: how long it takes tells nothing
    equal = [hmac.compare_digest(given.strip().encode(), token.encode()) for token in tokens]
    return any(equal)
