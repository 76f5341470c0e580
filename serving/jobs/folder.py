"""Jobs as they lie in a folder, so that they outlive the server.

JOBS/<id>/job.json             what is asked, and how far it is; replaced as a whole
         /input                the file that was posted, until it is computed
         /results/<head>...    if the client named no place of its own

A job exists once its job.json does: that is written after the input, and before the client hears of the job.
"""

import hashlib
import json
import logging
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cyto_dl.errors import ConfigError
from cyto_dl.storage import atomic_path

logger = logging.getLogger(__name__)

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = "queued", "running", "succeeded", "failed", "cancelled"
UNFINISHED = (QUEUED, RUNNING)
ID = re.compile("[0-9a-f]{32}")
_RECORD, _INPUT, _RESULTS = "job.json", "input", "results"


@dataclass(frozen=True)
class Job:
    """What is asked, and what became of it.

    Args:
        id: Nobody guesses it.
        model: Name of the model.
        document: The request by reference; without `image_uri` where a file was posted.
        state: queued, running, succeeded, failed or cancelled.
        created: Seconds since 1970.
        changed: Likewise, of the last change of state.
        num_starts: How often a server has begun with it.
        num_windows: Of the network, that were computed when it ended.
        outputs: Per head: name, uri, shape, datatype.
        seconds: That the last start took.
        error: Why it failed.
        request_id: Of the request that brought it.
        content_sha256: Of the file that was posted; "" where there was none.
    """

    id: str
    model: str
    document: Mapping[str, Any]
    state: str = QUEUED
    created: float = field(default_factory=time.time)
    changed: float = field(default_factory=time.time)
    num_starts: int = 0
    num_windows: int = 0
    outputs: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""
    request_id: str = ""
    content_sha256: str = ""

    def at(self, state: str, **changes: Any) -> "Job":
        """The job in another state."""
        return replace(self, state=state, changed=time.time(), **changes)


def new_job(
    model: str,
    document: Mapping[str, Any],
    identity: str | None = None,
    request_id: str = "",
    content: bytes | None = None,
) -> Job:
    """A job that waits; its id may be the client's."""
    digest = "" if content is None else hashlib.sha256(content).hexdigest()
    return Job(identity or uuid.uuid4().hex, model, document, request_id=request_id, content_sha256=digest)


class JobFolder:
    """The folder of all jobs of one server.

    Args:
        path: It is made if it is not there.

    Raises:
        ConfigError: It cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path).resolve()
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            with atomic_path(self._path / ".writable") as probe:
                probe.touch()
        except OSError as error:
            raise ConfigError(f"--jobs {path} cannot be written: {error}. Give a folder that can be.") from error

    def input(self, job: Job) -> Path:
        """The file that was posted; there is none where an address was."""
        return self._path / job.id / _INPUT

    def results(self, job: Job) -> Path:
        """Folder for the results that the client fetches from here."""
        return self._path / job.id / _RESULTS

    def add(self, job: Job, content: bytes | None) -> None:
        """Keep a new job, and the file that was posted with it."""
        if content is not None:
            with atomic_path(self.input(job)) as temporary:
                temporary.write_bytes(content)
        self.save(job)

    def save(self, job: Job) -> None:
        """Replace a job's record; what a job that has ended does not need any more is removed."""
        with atomic_path(self._path / job.id / _RECORD) as temporary:
            temporary.write_text(json.dumps(asdict(job), indent=2) + "\n")
        if job.state not in UNFINISHED:
            self.input(job).unlink(missing_ok=True)
        if job.state in (FAILED, CANCELLED):
            shutil.rmtree(self.results(job), ignore_errors=True)

    def remove(self, job: Job) -> None:
        """Forget a job and its results."""
        (self._path / job.id / _RECORD).unlink(missing_ok=True)  # first: without it the rest is nobody's
        shutil.rmtree(self._path / job.id, ignore_errors=True)

    def restore(self) -> list[Job]:
        """The jobs of the server before, in the order of their coming; leftovers of others are removed."""
        jobs = []
        for folder in self._path.iterdir():
            if not ID.fullmatch(folder.name):
                continue
            if not (folder / _RECORD).is_file():
                shutil.rmtree(folder, ignore_errors=True)  # its client never heard of it
                continue
            for scratch in folder.glob(".*"):  # what a killed process was writing
                shutil.rmtree(scratch, ignore_errors=True)
            jobs.append(_read(folder / _RECORD))
        return sorted(jobs, key=lambda job: job.created)


def _read(path: Path) -> Job:
    try:
        record = json.loads(path.read_text())
        return Job(**{each.name: record[each.name] for each in fields(Job) if each.name in record})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} is no record of a job: {error!r}. Remove its folder.") from error
