"""Files that are replaced again and again, e.g. the last checkpoint: a thread sends the newest of each, when it can.

put(last.ckpt) --> the training goes on
               └-> thread: hard link -> send -> rest, nine times as long as that took -> the newest there is by now
finish() ---------> waits for what is being sent; is_sent(last.ckpt)?
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cyto_dl.errors import StorageError

logger = logging.getLogger(__name__)

_REST = 9.0  # as long as a sending took: so a tenth of the time at most goes into it, however often files change
_LINKS = ".sending"


class NewestFiles:
    """Sends a file under its name each time that it changes, or less often where sending takes long; never waits.

    Args:
        send: Sends one file. Raises ConnectionError where the server may answer later, StorageError where it refuses.
        server: What messages call it.
    """

    def __init__(self, send: Callable[[Path], None], *, server: str) -> None:
        self._send, self._server = send, server
        self._waiting: dict[str, Path] = {}
        self._sent: dict[str, tuple[int, int]] = {}
        self._changed = threading.Condition()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, path: Path) -> None:
        """Send a file, or what has replaced it when its turn comes. The process may end without waiting for it."""
        with self._changed:
            self._waiting[path.name] = path
            self._changed.notify()
            if self._thread is None:
                self._ending.clear()
                self._thread = threading.Thread(target=self._deliver, name="newest files", daemon=True)
                self._thread.start()

    def finish(self) -> None:
        """Wait until the thread has ended: after the file that it is sending, and leaving the others."""
        self._ending.set()
        with self._changed:
            self._changed.notify()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        self._waiting.clear()

    def is_sent(self, path: Path) -> bool:
        """Whether the server has a file as it is now."""
        return path.is_file() and self._sent.get(path.name) == _version(path)

    def _deliver(self) -> None:
        while (path := self._next()) is not None:
            if not path.is_file() or self.is_sent(path):
                continue
            started = time.monotonic()
            try:
                self._send_content(path)
            except (OSError, StorageError) as error:  # who asks `is_sent` at the end tries again, and fails if it must
                logger.warning("%s is not at %s yet, the run goes on: %s", path.name, self._server, error)
            self._ending.wait(_REST * (time.monotonic() - started))

    def _next(self) -> Path | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending.is_set())
            if self._ending.is_set():
                return None
            return self._waiting.pop(next(iter(self._waiting)))

    def _send_content(self, path: Path) -> None:
        link = path.parent / _LINKS / path.name  # keeps the content when the training replaces the file
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)  # of a process that was killed
        os.link(path, link)
        try:
            self._send(link)
            self._sent[path.name] = _version(link)
        finally:
            link.unlink()
            link.parent.rmdir()


def _version(path: Path) -> tuple[int, int]:
    """What changes when another file takes a file's place."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns
