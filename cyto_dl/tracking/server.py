"""Reach MLflow, a server or an sqlite file, and say what is wrong with it in one message."""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cyto_dl.errors import StorageError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

_ADDRESS = "MLFLOW_TRACKING_URI"
_SQLITE = "sqlite:///"
PATIENCE_S = 300.0  # a server's restart, or its move to another node, takes a minute or two

# HTTP's words for "later": too many requests, and what is the server's fault. MLflow says 500 where nobody answers.
_MAY_PASS = (429, 500, 502, 503, 504)


def check_server(tracking_uri: str) -> "MlflowClient":
    """A client of MLflow, which answered.

    Raises:
        StorageError: It does not answer, after retries.
    """
    from mlflow.tracking import MlflowClient

    _notice_soon()
    with as_storage_error(tracking_uri), _tables_made_once(tracking_uri):
        client = MlflowClient(tracking_uri)
        client.search_experiments(max_results=1)
    return client


def make_experiment(client: "MlflowClient", name: str, tracking_uri: str) -> str:
    """The identifier of an experiment, which is made unless it is there; another run may do so at the same time."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=_artifact_location(tracking_uri))
        except MlflowException:
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    return found.experiment_id


@contextmanager
def used_by_the_process(tracking_uri: str) -> Iterator[None]:
    """Have all of MLflow use an address for a moment; what the caller has set comes back, the variable too."""
    import mlflow

    variable, before = os.environ.get(_ADDRESS), mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield
    finally:
        # None: again the variable's, or MLflow's default
        mlflow.set_tracking_uri(None if variable in (None, before) else before)  # type: ignore[arg-type]
        if variable is not None:
            os.environ[_ADDRESS] = variable


@contextmanager
def as_storage_error(
    tracking_uri: str, remedy: str = "and that the server runs, or train without it: logger=csv"
) -> Iterator[None]:
    """Turn what MLflow, its transport and its store of artifacts raise into a StorageError that says what to check."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except (MlflowException, RequestException, OSError, Boto3Error, BotoCoreError, ClientError) as error:
        raise StorageError(
            f"MLflow at {tracking_uri} cannot be used: {_reason(error)}. Check MLFLOW_TRACKING_URI {remedy}."
        ) from error


@contextmanager
def outages_told_apart(tracking_uri: str) -> Iterator[None]:
    """`as_storage_error`, but a ConnectionError where nobody answers, or a server that has trouble of its own.

    Raises:
        ConnectionError: The same call may succeed later.
        StorageError: It will not: the server refuses it.
    """
    from botocore.exceptions import HTTPClientError
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    outage: ConnectionError | None = None
    with as_storage_error(tracking_uri):
        try:
            yield
        except MlflowException as error:
            if error.get_http_status_code() not in _MAY_PASS:
                raise
            outage = _outage(tracking_uri, error)
        except RequestException as error:
            if error.response is not None and error.response.status_code not in _MAY_PASS:
                raise
            outage = _outage(tracking_uri, error)
        except HTTPClientError as error:  # S3, where artifacts go there without the server
            outage = _outage(tracking_uri, error)
    if outage is not None:
        raise outage


def call_patiently(call: Callable[[], None], tracking_uri: str) -> None:
    """Call something that may be called twice, again and again while MLflow is away, for `PATIENCE_S`.

    Raises:
        StorageError: MLflow does not come back in time, or refuses the call.
    """
    _notice_soon()
    deadline, pause_s = time.monotonic() + PATIENCE_S, 1
    while True:
        try:
            with outages_told_apart(tracking_uri):
                return call()
        except ConnectionError as outage:
            if time.monotonic() + pause_s > deadline:
                raise StorageError(f"{outage}. Start the same command again when it is back.") from outage
            logger.warning("%s. Trying again", outage)
            time.sleep(pause_s)
            pause_s *= 2


@contextmanager
def _tables_made_once(tracking_uri: str) -> Iterator[None]:
    """One process at a time inside, if MLflow is an sqlite file: two that make its tables at once stop each other."""
    if not tracking_uri.startswith(_SQLITE):
        yield
        return
    database = Path(tracking_uri.removeprefix(_SQLITE))
    database.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{database}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        yield


def _notice_soon() -> None:
    """MLflow's own defaults wait for minutes before they say that nobody answers."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


def _outage(tracking_uri: str, error: Exception) -> ConnectionError:
    outage = ConnectionError(f"MLflow at {tracking_uri} does not answer: {_reason(error)}")
    outage.__cause__ = error
    return outage


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _artifact_location(tracking_uri: str) -> str | None:
    if not tracking_uri.startswith(_SQLITE):
        return None
    return (Path(tracking_uri.removeprefix(_SQLITE)).resolve().parent / "mlartifacts").as_uri()
