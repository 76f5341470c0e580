"""Send to a server that may go away: in order, at once while it answers, again and again while it does not.

send -> answered                                     nothing is kept
     -> no answer -> file in the run's folder -> a thread sends it when the server is back, and removes the file
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cyto_dl.errors import StorageError
from cyto_dl.storage import atomic_path

logger = logging.getLogger(__name__)

Message = Mapping[str, Any]

_LONGEST_PAUSE_S = 30  # between attempts, which begin a second apart


class Outbox:
    """Messages to a server, none of which gets lost, and which nobody waits for before the end.

    A message is sent twice where a process ends between its sending and the file's removal: `send` must not mind.

    Args:
        path: File that keeps what could not be sent, one JSON object a line; what an earlier process left there is
            sent first.
        send: Sends one message. Raises ConnectionError where the server may answer later, StorageError where it
            refuses the message.
        server: What messages call it.
    """

    def __init__(self, path: Path, send: Callable[[Message], None], *, server: str) -> None:
        self._path, self._send, self._server = path, send, server
        self._waiting = deque(_read(path))
        self._changed = threading.Condition()
        self._refusal: StorageError | None = None
        self._outage: ConnectionError | None = None  # the last one
        self._thread: threading.Thread | None = None
        if self._waiting:
            logger.info("sending to %s what an earlier process could not: %d messages", server, len(self._waiting))
            self._start()

    def put(self, message: Message) -> None:
        """Send a message, or keep it if the server does not answer.

        Raises:
            StorageError: The server refuses this message, or refused one that was kept.
        """
        with self._changed:
            self._raise_refusal()
            if not self._waiting:
                try:
                    self._send(message)
                except ConnectionError as error:
                    self._outage = error
                    logger.warning("%s. The run goes on; what is not sent is kept in %s", error, self._path)
                else:
                    return
            self._waiting.append(message)
            with self._path.open("a") as file:
                file.write(_line(message))
            self._start()

    def wait(self, patience_s: float) -> None:
        """Wait until everything is sent.

        Raises:
            StorageError: The server does not come back in time, and what is not sent stays in the file; or it refuses a
                message.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._thread is None, timeout=patience_s)
            self._raise_refusal()
            if self._waiting:
                raise StorageError(
                    f"{self._server} did not come back within {patience_s:g} s ({self._outage}). {len(self._waiting)} "
                    f"messages are kept in {self._path}. Start the same command again when it is back: it sends them, "
                    "and trains nothing twice."
                ) from self._outage

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._deliver, name="outbox", daemon=True)
            self._thread.start()

    def _deliver(self) -> None:
        """Send the first message until it is sent, then the next, until there is none."""
        pause_s = 1
        while (message := self._first()) is not None:
            try:
                self._send(message)
            except ConnectionError as error:
                self._outage = error
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            except StorageError as error:
                with self._changed:
                    self._refusal = error
            with self._changed:
                self._waiting.popleft()

    def _first(self) -> Message | None:
        """The message to send next; None ends the thread, with nothing left or after a refusal."""
        with self._changed:
            if self._waiting and self._refusal is None:
                return self._waiting[0]
            if self._waiting:
                _write(self._path, self._waiting)  # without the one that was refused: the next process goes on
            else:
                self._path.unlink(missing_ok=True)
                logger.info("%s is back: everything is sent", self._server)
            self._thread = None
            self._changed.notify_all()
            return None

    def _raise_refusal(self) -> None:
        if self._refusal is not None:
            raise StorageError(str(self._refusal)) from self._refusal


def _read(path: Path) -> list[Message]:
    """The messages of a file, whose last line may be cut off: by a process that was killed while it wrote."""
    if not path.is_file():
        return []
    *whole, _ = path.read_text().split("\n")
    messages = [json.loads(line) for line in whole]
    _write(path, messages)
    return messages


def _write(path: Path, messages: Iterable[Message]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(_line(message) for message in messages))


def _line(message: Message) -> str:
    return json.dumps(dict(message)) + "\n"
