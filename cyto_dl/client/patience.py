"""What a client does about failures: some pass while it waits, the others are an error that says what to do.

429 and Retry-After, as long as there is time     ─┐
502, 503, no connection, a connection that broke   ├─> tried again, later and later ─> EndpointError
too slow, a fault of the server, another answer   ─┘─> EndpointError at once
the image (400, 413, 422, 504)                     ──> ImageError
token, model, heads, parameters (401, 403, 404...) ──> ConfigError
"""

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from cyto_dl.errors import ConfigError, CytoDLError, ImageError, StorageError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

TRIES = 6  # with the pauses between them some 15 s: a pod that is replaced is back, a wrong address is told soon
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_ABOUT_THE_QUESTION = (
    "outputs:",
    "parameters:",
    "inputs:",
    "output_uri:",
    "format:",
)  # how the server's messages begin that are not the image's


class EndpointError(StorageError):
    """The server cannot be reached, has no room, or failed."""


class PassingError(Exception):
    """A failure that may pass.

    Args:
        message: What the user is told if it does not.
        retry_after_s: When the server wants to be asked again; None: it does not say.
        is_full: It is there, and has no room now.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, is_full: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s, self.is_full = retry_after_s, is_full


def patiently(attempt: Callable[[float], Result], *, timeout_s: float) -> Result:
    """The result of the first attempt that does not fail in a way that may pass.

    Args:
        attempt: Is given the seconds that are left.
        timeout_s: For all attempts and the pauses between them.

    Raises:
        EndpointError: It did not pass.
    """
    deadline = time.monotonic() + timeout_s
    for number in range(1_000_000):  # a full server is asked until the time is over
        try:
            return attempt(max(deadline - time.monotonic(), 0.001))
        except PassingError as error:
            pause_s = _pause(number, error)
            is_last = number + 1 >= TRIES and not error.is_full
            if is_last or time.monotonic() + pause_s >= deadline:
                raise EndpointError(f"{error} (tried {number + 1} times)") from error
            logger.info("%s; trying again in %.1f s", error, pause_s)
            time.sleep(pause_s)
    raise AssertionError("the deadline ends the loop before")


def error_of_status(status: int, said: str, *, where: str) -> CytoDLError | PassingError:
    """The error for an answer of HTTP.

    Args:
        status: Of HTTP.
        said: The server's words.
        where: Its address.
    """
    if status in (429, 502, 503):
        return PassingError(f"{where}: {said}", is_full=status == 429)
    if status == 403:
        return ConfigError(f"{where}: {said}. Ask its operator.")
    if status == 401:
        return ConfigError(f"{where}: {said}. Give the token that its operator has handed out (--token-file, token=).")
    if status == 504:
        return ImageError(f"{said}; a smaller image, fewer heads or a smaller overlap take less time")
    if status in (400, 413, 422) and not said.startswith(_ABOUT_THE_QUESTION):
        return ImageError(said)
    if 300 <= status < 400:
        return ConfigError(f"{where}: the server sends elsewhere ({status}): {said}. Give that address itself.")
    if 400 <= status < 500:
        return ConfigError(f"{where}: {said}")
    return EndpointError(f"{where}: {said}")


def _pause(number: int, error: PassingError) -> float:
    """Seconds until the next attempt; no two clients wait equally long, or they would come back together."""
    grown = min(_FIRST_PAUSE_S * 2**number, _LONGEST_PAUSE_S) * random.uniform(0.75, 1.25)
    return max(grown, error.retry_after_s or 0.0)
