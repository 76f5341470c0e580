"""A real S3 object store on this machine: OpenStack Swift, which checks signatures, from PyPI alone.

client -> proxy-server (S3) -> account-server, container-server, object-server -> files
"""

import fcntl
import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from tests.integration.process import environment, started, wait_for
from tests.serving.process import free_ports

_TEMPLATES = Path(__file__).parent / "swift"
_KINDS = ("account", "container", "object")
# Swift imports pkg_resources, which setuptools 81 no longer has.
_REQUIREMENTS = ("swift==2.38.3", "setuptools<81")


@dataclass
class ObjectStore:
    """Where the store is, the key to it, and its switch."""

    endpoint: str
    proxy: Callable[[str], AbstractContextManager[None]]
    access_key: str = "lab:scientist"
    secret_key: str = "tests-only-secret-d41f"
    _running: ExitStack = field(default_factory=ExitStack)

    def start(self) -> None:
        """Let clients in."""
        self._running.enter_context(self.proxy(self.secret_key))

    def stop(self) -> None:
        """Break all connections, and refuse further ones."""
        self._running.close()

    def change_key(self, secret_key: str) -> None:
        """Accept another secret key from now on, as after an administrator has changed it."""
        self.stop()
        self.secret_key = secret_key
        self.start()

    @property
    def variables(self) -> dict[str, str]:
        """What a user sets to reach it, and nothing of a developer's own AWS settings."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


@contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """A running store that keeps its objects in `folder`, on a file system with extended attributes."""
    programs = _installed() / "bin"
    proxy, *ports = free_ports(4)
    store = ObjectStore(f"http://127.0.0.1:{proxy}", lambda secret: _proxy(programs, folder, proxy, secret))
    values = {"folder": str(folder), "user": getpass.getuser()}
    (folder / "devices" / "d1").mkdir(parents=True)
    shutil.copy(_TEMPLATES / "swift.conf", folder)
    for kind, port in zip(_KINDS, ports, strict=True):
        _write("storage-server.conf", folder / f"{kind}-server.conf", values | {"kind": kind, "port": str(port)})
        _make_ring(programs / "swift-ring-builder", folder / f"{kind}.builder", port)
    with ExitStack() as servers:
        for kind in _KINDS:
            servers.enter_context(_server(programs, folder, kind))
        servers.callback(store.stop)
        store.start()
        yield store


def _server(programs: Path, folder: Path, kind: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    command = [programs / f"swift-{kind}-server", folder / f"{kind}-server.conf", "-v"]
    return started(command, log=folder / f"{kind}.log", values={"SWIFT_DIR": str(folder)})


@contextmanager
def _proxy(programs: Path, folder: Path, port: int, secret: str) -> Iterator[None]:
    values = {"folder": str(folder), "user": getpass.getuser(), "port": str(port), "secret": secret}
    _write("proxy-server.conf", folder / "proxy-server.conf", values)
    with _server(programs, folder, "proxy") as process:
        wait_for(f"http://127.0.0.1:{port}", process, log=folder / "proxy.log", is_up=lambda status: status < 500)
        yield


def _write(template: str, path: Path, values: dict[str, str]) -> None:
    path.write_text(Template((_TEMPLATES / template).read_text()).safe_substitute(values))


def _make_ring(program: Path, builder: Path, port: int) -> None:
    """The table that says which server keeps what: 2^6 parts, one copy, no pause between changes."""
    for words in (["create", "6", "1", "0"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
        subprocess.run([program, builder, *words], check=True, capture_output=True)


def _installed() -> Path:
    """Swift in an environment of its own, because it needs other versions than we do; kept for the next time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cyto-dl-tests"
    folder = cache / f"swift-2.38.3-python{sys.version_info.major}.{sys.version_info.minor}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "swift.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            command = [sys.executable, "-m", "venv", "--clear", folder]
            subprocess.run(command, check=True, env=environment())
            installed = subprocess.run(
                [folder / "bin" / "pip", "install", "--quiet", *_REQUIREMENTS],
                env=environment(),
                capture_output=True,
                text=True,
                check=False,
            )
            assert installed.returncode == 0, f"Swift, the object store, cannot be installed:\n{installed.stderr}"
            (folder / "complete").touch()
    return folder
