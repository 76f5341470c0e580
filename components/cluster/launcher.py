"""Run a TrainJob as if it were a process here: its log on this output, its exit code as the result, gone at the end.

    create --exists--> attach, or again if it had failed --> follow the first node's log --> exit code --> delete

SIGKILL alone leaves the job behind; the next attempt of the step has the same name for it and goes on with it.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from components.cluster.api import CustomObject, Object, connect, explained
from components.cluster.train_job import GROUP, PLURAL, VERSION
from cyto_dl.errors import StorageError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

logger = logging.getLogger(__name__)

_UNKNOWN_FAILURE = 1  # a job that failed before a container ran: an image that cannot be pulled, a deadline


def run_train_job(
    job: Object, *, poll_s: float, silence_s: float = 300, say: Callable[[str], None], client: "ApiClient | None" = None
) -> int:
    """Start a TrainJob, or attach to it, and follow it to its end.

    Args:
        job: From `train_job`.
        poll_s: Between two looks.
        silence_s: So long the Kubernetes API may be away; the job goes on meanwhile.
        say: Gets the lines of the first node's log.
        client: Of the cluster; by default the one that this runs in.

    Returns:
        0, or the exit code of the container that failed.

    Raises:
        ConfigError: Kubernetes refuses the job.
        StorageError: Kubernetes does not answer for longer than `silence_s`.
    """
    client = client or connect()
    metadata = job["metadata"]
    live = CustomObject(client, GROUP, VERSION, PLURAL, metadata["namespace"], metadata["name"])
    with _terminated_by_exception():
        try:
            _start(live, job, poll_s)
            return _follow(live, _Log(client, live, say), poll_s=poll_s, silence_s=silence_s)
        finally:
            live.delete()


def _start(live: CustomObject, job: Object, poll_s: float) -> None:
    while live.create(job) is None:
        found = live.get()
        if found and not _has(found, "Failed") and "deletionTimestamp" not in found["metadata"]:
            logger.info("TrainJob %s exists: following it", live.name)
            return
        # What an earlier attempt left: its failure is not ours. It is away when its pods are.
        live.delete()
        time.sleep(poll_s)
    logger.info("TrainJob %s created in %s", live.name, live.namespace)


def _follow(live: CustomObject, log: "_Log", *, poll_s: float, silence_s: float) -> int:
    heard = time.monotonic()
    while True:
        try:
            found = live.get()
            log.read()
            heard = time.monotonic()
        except StorageError as error:
            if time.monotonic() - heard > silence_s:
                raise
            logger.warning("%s; asking again", error)
        else:
            if found is None:
                logger.error("TrainJob %s was deleted by someone else", live.name)
                return _UNKNOWN_FAILURE
            if _has(found, "Complete"):
                return 0
            if _has(found, "Failed"):
                logger.error("TrainJob %s failed: %s", live.name, _has(found, "Failed"))
                return log.exit_code() or _UNKNOWN_FAILURE
        time.sleep(poll_s)


def _has(job: Object, condition: str) -> str:
    """The condition's message, or its name, if it is true; else ""."""
    for one in job.get("status", {}).get("conditions", []):
        if one["type"] == condition and one["status"] == "True":
            return str(one.get("message") or condition)
    return ""


class _Log:
    """The log of a job's first node, line by line, and how its pods ended."""

    def __init__(self, client: "ApiClient", live: CustomObject, say: Callable[[str], None]) -> None:
        from kubernetes.client import CoreV1Api

        self._core = CoreV1Api(client)
        self._live = live
        self._say = say
        self._said: dict[str, int] = {}  # pod -> lines

    def read(self) -> None:
        """Say what is new. The whole log is asked for: a time of the last line would lose lines of the same second."""
        for pod in self._pods("batch.kubernetes.io/job-completion-index=0"):
            if pod["status"].get("phase") in (None, "Pending"):
                continue
            name = pod["metadata"]["name"]
            text = self._text(name)
            lines = text.splitlines()
            for line in lines[self._said.get(name, 0) :]:
                self._say(line)
            if lines:
                self._said[name] = len(lines)

    def _text(self, pod: str) -> str:
        from kubernetes.client import ApiException

        with explained(f"log of {pod}"):
            try:
                text: str = self._core.read_namespaced_pod_log(pod, self._live.namespace, container="node")
            except ApiException as error:
                if error.status in (400, 404):  # its container is about to start, or it was evicted a moment ago
                    return ""
                raise
        return text

    def exit_code(self) -> int:
        """Of the container that ended first with one; 0 if none did."""
        ended = [
            status["state"]["terminated"]
            for pod in self._pods()
            for status in pod["status"].get("containerStatuses") or ()
            if (status.get("state") or {}).get("terminated")
        ]
        failed = [one for one in ended if one["exitCode"]]
        # The others are killed when one has failed, and say only that.
        return int(min(failed, key=lambda one: str(one.get("finishedAt")))["exitCode"]) if failed else 0

    def _pods(self, *labels: str) -> list[dict[str, Any]]:
        selector = [f"jobset.sigs.k8s.io/jobset-name={self._live.name}", "jobset.sigs.k8s.io/replicatedjob-name=node"]
        with explained(f"pods of {self._live.name}"):
            pods = self._core.list_namespaced_pod(self._live.namespace, label_selector=",".join([*selector, *labels]))
        answer: list[dict[str, Any]] = self._core.api_client.sanitize_for_serialization(pods.items)
        return answer


@contextmanager
def _terminated_by_exception() -> Iterator[None]:
    """SIGTERM, which a canceled run and a drained node send, ends the block as an exception, so that it cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
