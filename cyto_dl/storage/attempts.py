"""Talk to S3 again and again while a failure may pass, and say what is wrong when it does not.

operation --connection, timeout, 5xx, throttling--> wait, again, until CYTO_DL_S3_RETRY_S have passed
          --403, no such bucket, bad address------> StorageError at once
"""

import logging
import os
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from cyto_dl.errors import StorageError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

_RETRY_S = 60.0  # a server that restarts is back within a minute
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 8.0
_PASSING_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestTimeTooSkewed"}
_GENERAL_ADVICE = "Check AWS_ENDPOINT_URL_S3, the credentials and the bucket's name."
_ADVICE = {
    "NoSuchBucket": "The bucket does not exist at this endpoint: create it, or correct its name.",
    "InvalidBucketName": "Correct the bucket's name.",
    "InvalidAccessKeyId": "The endpoint does not know this access key: check AWS_ACCESS_KEY_ID.",
    "SignatureDoesNotMatch": "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    "ExpiredToken": "The credentials have expired: fetch new ones.",
    "AccessDenied": "These credentials may not do this: ask for the right, or use others.",
}


class NothingThereError(StorageError):
    """There is no object at an address, in a bucket that answers."""


class ConflictError(StorageError):
    """Somebody else wrote an object in the meantime."""


class RefusedError(StorageError):
    """The server answers, and refuses."""


def patience_s() -> float:
    """How many seconds a failure that may pass is borne: CYTO_DL_S3_RETRY_S, by default a minute.

    Raises:
        StorageError: It is no number.
    """
    given = os.environ.get("CYTO_DL_S3_RETRY_S", _RETRY_S)
    try:
        return float(given)
    except ValueError as error:
        raise StorageError(f"CYTO_DL_S3_RETRY_S is '{given}'. Set it to a number of seconds, e.g. 60.") from error


def persistently(operation: Callable[[], Result], uri: str, *, doing: str) -> Result:
    """What `operation` returns, tried again while it fails in a way that may pass.

    Args:
        operation: Calls boto3. It may be called several times.
        uri: What it is about, for messages.
        doing: What is not possible when it fails, e.g. "read".

    Raises:
        NothingThereError: There is no such object.
        ConflictError: The object is not the one that was to be replaced.
        RefusedError: The server forbids it, or has no such bucket.
        StorageError: Any other failure, at once or after `patience_s`.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    deadline, pause_s = time.monotonic() + patience_s(), _FIRST_PAUSE_S
    while True:
        try:
            return operation()
        except (Boto3Error, BotoCoreError, ClientError, ValueError) as raised:  # ValueError: the endpoint is not a URL
            error = _cause(raised)
            left_s = deadline - time.monotonic()
            if not _may_pass(error) or left_s <= 0:
                raise _explained(error, uri, doing) from error
            level = logging.DEBUG if pause_s > _FIRST_PAUSE_S else logging.WARNING  # one line for a server that is down
            logger.log(level, "%s cannot be %s: %s; trying for %.0f s more", uri, doing, _reason(error), left_s)
        time.sleep(min(left_s, pause_s * random.uniform(0.5, 1)))  # so that many workers do not come back at once
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _cause(error: BaseException) -> BaseException:
    """What happened in a transfer: boto3 wraps it in errors that only have a text."""
    from boto3.exceptions import RetriesExceededError, S3UploadFailedError

    if isinstance(error, RetriesExceededError):
        return error.last_exception
    return error.__context__ or error if isinstance(error, S3UploadFailedError) else error


def _may_pass(error: BaseException) -> bool:
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        return (_status(error) >= 500 and _status(error) != 501) or _code(error) in _PASSING_CODES
    passing = (
        exceptions.ConnectionError,
        exceptions.HTTPClientError,
        exceptions.IncompleteReadError,
        exceptions.ResponseStreamingError,
    )
    hopeless = (exceptions.SSLError, exceptions.ProxyConnectionError)
    return isinstance(error, passing) and not isinstance(error, hopeless)


def _explained(error: BaseException, uri: str, doing: str) -> StorageError:
    """The error that a user reads. boto3's messages hold addresses and codes, but no credentials."""
    from botocore.exceptions import ClientError

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "the default S3 endpoint"
    message = f"{uri} cannot be {doing} at {endpoint}: {_reason(error)}."
    if isinstance(error, ClientError):
        if _status(error) == 404 and _code(error) != "NoSuchBucket":
            return NothingThereError(f"{uri}: there is nothing at this address. Check the bucket's name and the key.")
        if _status(error) in (409, 412):
            return ConflictError(f"{message} Somebody else has written it: let one process at a time do so.")
        kind = RefusedError if _status(error) < 500 else StorageError
        return kind(f"{message} {_ADVICE.get(_code(error), _GENERAL_ADVICE)}")
    return StorageError(f"{message} {_GENERAL_ADVICE}")


def _reason(error: BaseException) -> str:
    return str(error).strip().rstrip(".")


def _code(error: Any) -> str:
    return error.response.get("Error", {}).get("Code", "")


def _status(error: Any) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
