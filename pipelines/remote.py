"""Run a pipeline on a Kubeflow Pipelines server and wait for it, have it run by a clock, or ask how a run goes.

`kfp run create --watch` exits with 0 when a run fails (kfp 2.17), and its wait does not end when a run is canceled.
"""

import logging
import re
import time
import urllib.request
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyto_dl.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from kfp.client import Client

logger = logging.getLogger(__name__)

_REACH_SECONDS = 10  # a server that is there answers its health check in milliseconds
_MAX_SILENCES = 5  # in a row: a server that restarts is back by then
_HEALTH_BYTES = 1 << 16
_REFUSALS = (401, 403)  # of a token that has expired; waiting does not mend it
_CRON_FIELD = re.compile(r"[\d*/,?-]+|[A-Z]{3}([,-][A-Z]{3})*", re.IGNORECASE)
_END_STATES = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED", "ERROR"}


@dataclass(frozen=True)
class Server:
    """A Kubeflow Pipelines server.

    Attributes:
        host: Its address, e.g. http://ml-pipeline.kubeflow:8888.
        namespace: Of a multi-user installation; None in a single-user one.
        token: Bearer token, if it asks for one.
    """

    host: str
    namespace: str | None = None
    token: str | None = None

    def connect(self) -> "Client":
        """A client, once the server has answered.

        Raises:
            StorageError: It does not answer, or refuses the token.
        """
        from kfp.client import Client

        self._check()
        with warnings.catch_warnings():
            # It says at every start that servers before version 2 are not supported.
            warnings.filterwarnings("ignore", message="This client only works with", category=FutureWarning)
            return Client(host=self.host, namespace=self.namespace or "kubeflow", existing_token=self.token)

    def _check(self) -> None:
        request = urllib.request.Request(f"{self.host.rstrip('/')}/apis/v2beta1/healthz")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=_REACH_SECONDS) as answer:
                kind, health = answer.headers.get_content_type(), answer.read(_HEALTH_BYTES)
        except (OSError, ValueError) as error:  # URLError and HTTPError are OSErrors; ValueError: not a URL
            raise StorageError(
                f"Kubeflow Pipelines at {self.host} cannot be used: {error}. Check --host "
                "(e.g. http://localhost:8080 after kubectl port-forward svc/ml-pipeline-ui 8080:80) and the token."
            ) from error
        if not health.lstrip().startswith(b"{"):
            raise self.stranger(f"its health check is {kind}")

    def stranger(self, found: str) -> StorageError:
        """The error for a server that answers, but not as Kubeflow Pipelines does: a login page, mostly."""
        return StorageError(
            f"{self.host} does not answer as Kubeflow Pipelines does: {found}. Check --host and the token; a login "
            "page is an answer too."
        )


@dataclass(frozen=True)
class RemoteRun:
    """A run: its id, its page, its state (PENDING, RUNNING, SUCCEEDED, FAILED, CANCELED, ...) and its error."""

    run_id: str
    link: str
    state: str
    error: str

    @property
    def has_ended(self) -> bool:
        """Whether its state is final."""
        return self.state in _END_STATES


def submit(
    package: str | Path,
    arguments: Mapping[str, Any],
    server: Server,
    *,
    experiment: str,
    timeout_s: float,
    poll_s: float,
) -> RemoteRun:
    """Create a run of a compiled pipeline and wait until it has ended, or the time is over.

    Raises:
        StorageError: The server cannot be reached, or refuses the run.
        TimeoutError: The run goes on after `timeout_s`.
    """
    from kfp_server_api import ApiException

    client = server.connect()
    try:
        created = client.create_run_from_pipeline_package(
            str(package),
            arguments=dict(arguments),
            run_name=Path(package).stem,
            experiment_name=experiment,
            namespace=server.namespace,
        )
    except ApiException as error:
        raise StorageError(f"{server.host} refuses the run: {error.status} {error.reason} {error.body}") from error
    if not created.run_id:
        raise server.stranger("a run was asked for, and it names none")
    return _wait(client, created.run_id, server, timeout_s=timeout_s, poll_s=poll_s)


def schedule(package: str | Path, arguments: Mapping[str, Any], server: Server, *, experiment: str, cron: str) -> str:
    """Have the server run a compiled pipeline again and again; returns the id of the recurring run.

    Args:
        package: A compiled pipeline.
        arguments: Of every run.
        server: Where it runs.
        experiment: Groups runs on the server; made if it does not exist.
        cron: Second, minute, hour, day of the month, month, day of the week, in UTC: "0 30 2 * * *" is half past two
            every night. A run is not started while the one before goes on, nor afterwards for one that was missed.

    Raises:
        ConfigError: `cron` is no clock of six fields.
        StorageError: The server cannot be reached, or refuses the schedule.
    """
    from kfp_server_api import ApiException

    fields = cron.split()
    if len(fields) != 6 or not all(_CRON_FIELD.fullmatch(each) for each in fields):
        raise ConfigError(
            f"--cron '{cron}' has {len(fields)} fields: write second minute hour day month weekday, numbers or *, "
            "e.g. '0 30 2 * * *' for half past two every night (UTC)."
        )
    client = server.connect()
    try:
        group = client.create_experiment(experiment, namespace=server.namespace)
        created = client.create_recurring_run(
            group.experiment_id,
            Path(package).stem,
            cron_expression=cron,
            params=dict(arguments),
            pipeline_package_path=str(package),
            max_concurrency=1,
            no_catchup=True,
        )
    except ApiException as error:
        raise StorageError(f"{server.host} refuses the schedule: {error.status} {error.reason} {error.body}") from error
    if not created.recurring_run_id:
        raise server.stranger("a schedule was asked for, and it names none")
    return str(created.recurring_run_id)


def find_run(run_id: str, server: Server) -> RemoteRun:
    """The present state of a run, which may go on.

    Raises:
        StorageError: The server cannot be reached, or knows no such run.
    """
    from kfp_server_api import ApiException

    try:
        run = server.connect().get_run(run_id)
    except ApiException as error:
        raise StorageError(f"{server.host} has no run '{run_id}': {error.status} {error.reason}.") from error
    if not run.run_id:
        raise server.stranger(f"run {run_id} was asked for, and it names none")
    link = f"{server.host.rstrip('/')}/#/runs/details/{run_id}"
    return RemoteRun(run_id, link, (run.state or "PENDING").upper(), run.error.message if run.error else "")


def _wait(client: "Client", run_id: str, server: Server, *, timeout_s: float, poll_s: float) -> RemoteRun:
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    link = f"{server.host.rstrip('/')}/#/runs/details/{run_id}"
    end = time.monotonic() + timeout_s
    state, silences = "", 0
    while True:
        try:
            run = client.get_run(run_id)
            if not run.run_id:
                raise server.stranger(f"{link} was asked for, and it names no run")
            silences = 0
        except (ApiException, HTTPError, StorageError) as error:
            silences += 1
            status = getattr(error, "status", None)
            if status in _REFUSALS:
                raise StorageError(
                    f"{server.host} refuses to say how {link} goes: {status}. The run goes on; the token has expired "
                    "or may not read: ask again with `python -m pipelines status` and a new one."
                ) from error
            if silences >= _MAX_SILENCES:
                raise StorageError(f"{server.host} has stopped answering about {link}: {error}") from error
        else:
            if run.state != state:
                state = run.state or ""
                logger.info("run %s: %s", run_id, state or "created")
            if state.upper() in _END_STATES:
                return RemoteRun(run_id, link, state.upper(), run.error.message if run.error else "")
        if time.monotonic() > end:
            raise TimeoutError(f"{link} is {state or 'not started'} after {timeout_s:.0f} s and goes on; see its page.")
        time.sleep(poll_s)
