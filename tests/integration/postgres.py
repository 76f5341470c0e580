"""A real PostgreSQL on this machine, Debian's, on a socket of its own."""

import getpass
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.integration.process import PATIENCE_S, environment, started

_SAFE_TO_LOSE = ["-c", "fsync=off", "-c", "synchronous_commit=off"]  # a test's data need not survive a power cut


@contextmanager
def postgres() -> Iterator[str]:
    """The address, as SQLAlchemy takes it, of an empty database."""
    programs = _programs()
    # not pytest's folder: root's is closed to the user that PostgreSQL runs as
    with tempfile.TemporaryDirectory(prefix="cyto-dl-postgres-") as name:
        folder = Path(name)
        shutil.chown(folder, _user())
        command = ["initdb", "--pgdata", folder / "data", "--username=mlflow", "--auth=trust", "--encoding=UTF8"]
        made = subprocess.run(
            [*_as_user(), programs / command[0], *command[1:], "--locale=C", "--no-sync"],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, f"PostgreSQL cannot make its files:\n{made.stderr}"
        server = [*_as_user(), programs / "postgres", "-D", folder / "data", "-k", folder, *_SAFE_TO_LOSE]
        log = folder / "postgres.log"
        with started([*server, "-c", "listen_addresses="], log=log) as process:
            try:
                _wait_for(folder, process, log)
                yield f"postgresql+psycopg://mlflow@/postgres?host={folder}"
            finally:
                process.send_signal(signal.SIGINT)  # its children have groups of their own, which only it can end
                process.wait(PATIENCE_S)


def _wait_for(folder: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert process.poll() is None, f"PostgreSQL ended by itself:\n{log.read_text()}"
        try:
            psycopg.connect(host=str(folder), user="mlflow", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, f"PostgreSQL does not answer after {PATIENCE_S} s:\n{log.read_text()}"
            time.sleep(0.1)


def _programs() -> Path:
    """Where initdb and postgres are: Debian keeps them out of PATH, a folder for each version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    in_path = shutil.which("initdb")
    assert found or in_path, "PostgreSQL is missing: apt-get install postgresql"
    return found[-1].parent if found else Path(str(in_path)).resolve().parent


def _user() -> str:
    return "postgres" if os.getuid() == 0 else getpass.getuser()


def _as_user() -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
