"""Reach MLflow, a server or an sqlite file, and say what is wrong with it in one message."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cyto_dl.errors import StorageError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def check_server(tracking_uri: str) -> "MlflowClient":
    """A client of MLflow, which answered.

    Raises:
        StorageError: It does not answer, after retries.
    """
    from mlflow.tracking import MlflowClient

    # MLflow's own defaults wait for minutes before they say that nobody answers.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    with as_storage_error(tracking_uri):
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
def as_storage_error(
    tracking_uri: str, remedy: str = "and that the server runs, or train without it: logger=csv"
) -> Iterator[None]:
    """Turn what MLflow and its transport raise into a StorageError that says what to check."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except (MlflowException, RequestException, OSError) as error:
        raise StorageError(
            f"MLflow at {tracking_uri} cannot be used: {str(error).splitlines()[0]}. "
            f"Check MLFLOW_TRACKING_URI {remedy}."
        ) from error


def _artifact_location(tracking_uri: str) -> str | None:
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return (Path(tracking_uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()
