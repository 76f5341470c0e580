"""Computing for many requests at once, in bounded memory and without ever holding the event loop.

admitted request -> a thread of its own: decode its body, preprocess, cut windows, stitch, postprocess, encode
                                              |  windows    ^ logits
                                              v             |
                    the device's thread: the network, for windows of all requests in turn
one too many -> Busy

A network uses all cores already, so only one thread runs it. Windows of different requests take turns there: a small
image does not wait for a large volume. Those of one model and one shape that wait at the same time are one batch.
"""

import asyncio
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from cyto_dl.inference.predictor import HeadsNetwork
from cyto_dl.inference.sliding_window import SlidingWindow
from cyto_dl.inference.views import Network
from serving.errors import Busy, Gone, TooSlow

Result = TypeVar("Result")


def stand_back() -> None:
    """Let the event loop go first where processors are scarce: it has little to do, and liveness waits for it."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        thread = threading.get_native_id()
        # a server that was started with a lower priority may not raise it
        os.setpriority(os.PRIO_PROCESS, thread, max(10, os.getpriority(os.PRIO_PROCESS, thread)))


@dataclass(eq=False)
class Work:
    """One request while it is computed: how long it may take, whether it is still wanted, how far it is.

    Args:
        timeout_s: Seconds that it may take from its beginning on, waiting included; the request itself may shorten it.
    """

    timeout_s: float
    num_windows: int = 0  # done so far; views of test-time augmentation count
    all_windows: int = 0  # of the image at hand; 0 until it is known
    network_s: float = 0.0  # its share of the network's time
    waited_s: float = 0.0  # until a thread took it
    _begin: float = field(default_factory=time.monotonic)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Nobody wants the result any more; it stops before its next windows."""
        self._cancelled.set()

    def check(self) -> None:
        """Go on, or not.

        Raises:
            Gone: It was cancelled.
            TooSlow: Its time is over.
        """
        if self._cancelled.is_set():
            raise Gone("the request was cancelled")
        if self.elapsed_s > self.timeout_s:
            raise TooSlow(
                f"the prediction took longer than {self.timeout_s:g} s ({self.num_windows} windows were done). Send a "
                "smaller image, ask for a longer timeout_s, or send it as a job."
            )

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self._begin

    def start(self) -> None:
        """A thread has taken it."""
        self.waited_s = self.elapsed_s
        self.check()


@dataclass(frozen=True)
class CountedWindow(SlidingWindow):
    """A sliding window that tells the work how many windows its image has."""

    work: Work = field(kw_only=True)

    def __call__(self, source_BCZYX: Tensor, network: Network) -> dict[str, Tensor]:
        """As `SlidingWindow`; where a head's scale needs another grid the number is a little too small."""
        self.work.all_windows += len(source_BCZYX) * self.num_windows(source_BCZYX.shape[2:])
        return super().__call__(source_BCZYX, network)


@dataclass(eq=False)
class _Batch:
    """Windows of one request that wait for the device."""

    key: Hashable
    network: HeadsNetwork
    windows: Tensor
    limit: int
    logits: "Future[tuple[Mapping[str, Tensor], float]]" = field(default_factory=Future)


class Device:
    """The one thread that runs networks."""

    def __init__(self) -> None:
        self._waiting: deque[_Batch] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Compute what waits, and end the thread: one that is inside torch while Python ends aborts the process."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def compute(self, batch: _Batch) -> tuple[Mapping[str, Tensor], float]:
        """The logits of a batch, and the seconds that they took; waits for its turn.

        Raises:
            Gone: It was closed.
        """
        with self._changed:
            if self._is_closed:
                raise Gone("the server ends")
            self._waiting.append(batch)
            self._changed.notify()
        return batch.logits.result()

    def _run(self) -> None:
        stand_back()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if not self._waiting:
                    return
                batches = self._take()
            self._compute_together(batches)

    def _take(self) -> list[_Batch]:
        """The batch that waits longest, and others of its kind as far as they fit."""
        first = self._waiting.popleft()
        taken, room = [first], first.limit - len(first.windows)
        for other in list(self._waiting):
            if other.key == first.key and len(other.windows) <= room:
                self._waiting.remove(other)
                taken.append(other)
                room -= len(other.windows)
        return taken

    def _compute_together(self, batches: Sequence[_Batch]) -> None:
        try:
            self._compute(batches)
        except Exception as error:  # noqa: BLE001  # whatever it is belongs to the requests: this thread has to go on
            if len(batches) == 1:
                batches[0].logits.set_exception(error)
                return
            for batch in batches:  # one of them is at fault, or they are too large together
                self._compute_together([batch])

    @torch.inference_mode()
    def _compute(self, batches: Sequence[_Batch]) -> None:
        begin = time.perf_counter()
        sizes = [len(batch.windows) for batch in batches]
        windows = batches[0].windows if len(batches) == 1 else torch.cat([batch.windows for batch in batches])
        logits = batches[0].network(windows)
        parts = {head: torch.split(each, sizes) for head, each in logits.items()}
        seconds = time.perf_counter() - begin
        for index, batch in enumerate(batches):
            part = {head: each[index] for head, each in parts.items()}
            batch.logits.set_result((part, seconds * sizes[index] / sum(sizes)))


@dataclass(frozen=True, eq=False)
class SharedNetwork:
    """The network as one request sees it: its windows are computed by the device's thread, between other requests'.

    Args:
        network: That computes.
        name: Of the model. Batches are shared only within a model.
        max_batch: Windows that the network takes at once.
        device: That runs it.
        work: The request, which is asked before every batch whether to go on.
        heads: That the network has.
    """

    network: HeadsNetwork
    name: str
    max_batch: int
    device: Device
    work: Work
    heads: tuple[str, ...]

    def only(self, heads: Sequence[str]) -> "SharedNetwork":
        """The same network with these heads."""
        network = self.network.only(heads)
        return SharedNetwork(network, self.name, self.max_batch, self.device, self.work, tuple(heads))

    def __call__(self, windows: Tensor) -> Mapping[str, Tensor]:
        """Logits per head, of windows B C (Z) Y X."""
        self.work.check()
        key = (self.name, self.heads, tuple(windows.shape[1:]), windows.dtype)
        logits, seconds = self.device.compute(_Batch(key, self.network, windows, self.max_batch))
        self.work.num_windows += len(windows)
        self.work.network_s += seconds
        return logits


class Executor:
    """Takes as many requests as there is room for.

    Args:
        max_running: Requests that are computed at the same time, each with its image in memory.
        max_waiting: Requests beyond these that may wait, as the bytes that came; further ones are refused.
    """

    def __init__(self, *, max_running: int = 4, max_waiting: int = 16) -> None:
        self.device = Device()
        self.max_running, self.max_waiting = max_running, max_waiting
        self.num_admitted = 0  # changed on the event loop only
        self._mean_s = 1.0
        self._threads = ThreadPoolExecutor(max_running, thread_name_prefix="request", initializer=stand_back)

    def check_room(self) -> None:
        """See that one more request may come.

        Raises:
            Busy: There is no room; says when to come again.
        """
        if self.num_admitted >= self.max_running + self.max_waiting:
            turns = self.num_admitted / self.max_running
            raise Busy(retry_after_s=max(1, math.ceil(turns * self._mean_s)))

    async def run(self, work: Work, function: Callable[[], Result]) -> Result:
        """What a function returns, in a thread with this context; a caller that is cancelled cancels the work.

        Raises:
            Busy: There is no room.
            Gone, TooSlow: As `Work.check`.
        """
        self.check_room()
        self.num_admitted += 1
        future = asyncio.get_running_loop().run_in_executor(
            self._threads, copy_context().run, self._started, work, function
        )
        future.add_done_callback(lambda done: self._leave(work, done))  # a thread is busy beyond a cancellation
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            work.cancel()
            raise

    def _started(self, work: Work, function: Callable[[], Result]) -> Result:
        work.start()
        return function()

    def _leave(self, work: Work, done: "asyncio.Future[Any]") -> None:
        done.exception()  # after a cancellation nobody else asks for it, and asyncio would complain
        self.num_admitted -= 1
        self._mean_s += 0.1 * (work.elapsed_s - work.waited_s - self._mean_s)
