"""A real MLflow server on this machine, whose clients need no key to where it keeps its files."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.integration.process import started, wait_for


@contextmanager
def mlflow_server(
    folder: Path,
    port: int,
    *,
    database: str | None = None,
    files: str | None = None,
    values: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a server on http://127.0.0.1:<port>.

    Args:
        folder: Receives its log, and what has no other place.
        port: A free one.
        database: Address of the database of runs; an sqlite file in `folder` unless given.
        files: Where artifacts go, e.g. s3://bucket/mlflow; a folder in `folder` unless given.
        values: Its environment, e.g. the keys to the bucket.
    """
    log = folder / "mlflow.log"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database or f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--serve-artifacts", "--artifacts-destination", files or str(folder / "artifacts")]
    given = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(values or {})}
    with started(command, log=log, values=given) as process:
        wait_for(f"http://127.0.0.1:{port}/health", process, log=log, is_up=lambda status: status == 200)
        yield process
