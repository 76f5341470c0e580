"""Computes jobs one after the other, beside the requests that somebody waits for.

    submit -> queued -> running -> succeeded | failed | cancelled -> removed after a time
                ^          |
                +----------+  the server ended meanwhile: the next one begins anew, but not for ever

Jobs have one thread of their own, so that they take no place among the requests; their windows take turns with the
requests' windows on the device (`serving.executor`).
"""

import asyncio
import contextlib
import contextvars
import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from grpc_interceptor.exceptions import NotFound
from kserve import ModelRepository
from kserve.errors import InvalidInput

from cyto_dl.data.image import Image
from serving.errors import Busy, Gone, answer_to
from serving.executor import Work, stand_back
from serving.jobs.folder import CANCELLED, FAILED, ID, QUEUED, RUNNING, SUCCEEDED, UNFINISHED, Job, JobFolder, new_job
from serving.limits import Limits
from serving.messages.files import read_file
from serving.messages.parameters import Asked, read_asked
from serving.messages.requests import choose_heads
from serving.model import BundleModel
from serving.references.addresses import Addresses
from serving.references.transfer import KEYS, read_format, read_image_at, write_results
from serving.telemetry.observation import JOB, Listener, Observation, begin, end, observation

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 60  # jobs are long
MAX_STARTS = 3  # of one job: it may be what ends the server, for want of memory say
_SWEEP_S = 60.0


class NoSuchJob(NotFound):
    """There is no job of this id; it may have expired."""

    http_status = 404


@dataclass(frozen=True)
class Task:
    """A job's request, understood."""

    image: str | None  # address; None: the file was posted
    output: str | None
    suffix: str
    heads: list[str]
    asked: Asked


def read_task(document: Mapping[str, Any], model: BundleModel, limits: Limits, addresses: Addresses) -> Task:
    """A job's request, checked; nothing of the image is read yet.

    Raises:
        InvalidInput: It is wrong.
        Closed: An address is not allowed.
    """
    if unknown := sorted(set(document) - set(KEYS)):
        raise InvalidInput(f"{unknown[0]}: a job has the keys {', '.join(KEYS)}, and no others")
    parameters = document.get("parameters")
    if isinstance(parameters, Mapping) and "timeout_s" in parameters:
        raise InvalidInput("parameters: timeout_s: a job takes as long as it takes; cancel it with DELETE")
    image, output = document.get("image_uri"), document.get("output_uri")
    return Task(
        image=addresses.to_read(image) if "image_uri" in document else None,
        output=None if output is None else addresses.to_write(output),
        suffix=read_format(document),
        heads=choose_heads(document.get("outputs") or [], list(model.predictor.outputs)),
        asked=read_asked(parameters, model.predictor, limits),
    )


class JobQueue:
    """The jobs of one server. Its methods run on the event loop.

    Args:
        folder: That keeps them.
        models: That are served.
        limits: Of images.
        addresses: That clients may name.
        max_jobs: That may wait and run; further ones are refused.
        keep_s: How long a job that has ended can be asked for.
    """

    def __init__(
        self,
        folder: JobFolder,
        models: ModelRepository,
        *,
        limits: Limits,
        addresses: Addresses,
        max_jobs: int = 100,
        keep_s: float = 86400,
    ) -> None:
        self._folder, self._models, self._limits, self._addresses = folder, models, limits, addresses
        self._max_jobs, self._keep_s = max_jobs, keep_s
        self._jobs = {job.id: job for job in folder.restore()}
        self._works: dict[str, Work] = {}  # of the one that runs
        self._coming: dict[str, asyncio.Task[Job]] = {}  # accepted, and not yet written
        self.listener: Listener = lambda observed: None  # is told of every start that ended
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()  # records are written in the order of the changes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="job", initializer=stand_back)

    def check_room(self, identity: str | None = None) -> None:
        """See that one more job may come, before its body is read.

        Args:
            identity: That the client gave it; one that is here already takes no more room.

        Raises:
            InvalidInput: It is no id.
            Busy: There are as many as may wait.
        """
        if identity is not None and not ID.fullmatch(identity):
            raise InvalidInput("X-Job-Id: a job's id is 32 hexadecimal digits in lower case, drawn at random")
        if identity in self._jobs or identity in self._coming:
            return
        unfinished = sum(job.state in UNFINISHED for job in self._jobs.values()) + len(self._coming)
        if unfinished >= self._max_jobs:
            raise Busy(retry_after_s=RETRY_AFTER_S, what=f"has the {self._max_jobs} jobs that it takes")

    async def submit(
        self, model: BundleModel, document: Mapping[str, Any], content: bytes | None, identity: str | None = None
    ) -> Job:
        """Take a job, with the file that was posted; when this returns, it is not lost any more.

        Args:
            model: That computes it.
            document: The request.
            content: The file.
            identity: That the client gave it. A job that is here already is not taken again: its client asks a second
                time when it has lost the first answer.

        Raises:
            InvalidInput, Closed: The request is wrong, or the id is that of a job which asks for something else.
            Busy: There are as many jobs as may wait.
        """
        read_task(document, model, self._limits, self._addresses)
        # a large file takes a tenth of a second, which nobody else should wait for
        job = await asyncio.to_thread(new_job, model.name, document, identity, observation().id, content)
        self.check_room(identity)
        if job.id not in self._jobs:
            if job.id not in self._coming:
                self._coming[job.id] = asyncio.create_task(self._add(job, content))
            # a client that goes away does not take back its job, for which it may ask again
            await asyncio.shield(self._coming[job.id])
        found = self._jobs.get(job.id, job)
        if _question(found) != _question(job):
            raise InvalidInput("X-Job-Id: there is a job of this id that asks for something else; draw another")
        return found

    async def _add(self, job: Job, content: bytes | None) -> Job:
        try:
            await asyncio.to_thread(self._folder.add, job, content)
            self._jobs[job.id] = job
        finally:
            self._coming.pop(job.id)
        self._log(job)
        self._changed.set()
        return job

    def counts(self) -> Mapping[tuple[str, str], int]:
        """How many jobs there are of each model and state."""
        return Counter((job.model, job.state) for job in list(self._jobs.values()))

    def of_model(self, model: str) -> list[Job]:
        """All jobs of a model, the oldest first."""
        return [job for job in self._jobs.values() if job.model == model]

    def get(self, model: str, identity: str) -> Job:
        """One of them.

        Raises:
            NoSuchJob: There is none of this id.
        """
        job = self._jobs.get(identity)
        if job is None or job.model != model:
            raise NoSuchJob(f"there is no job '{identity[:64]}' of this model; results are kept for a time only")
        return job

    def work(self, job: Job) -> Work | None:
        """How far the job is that runs."""
        return self._works.get(job.id)

    async def cancel(self, job: Job) -> Job:
        """Stop a job, or forget one that has ended; the job as it is then."""
        if job.state in UNFINISHED:
            if work := self._works.pop(job.id, None):
                work.cancel()
                return await self._put(job.at(CANCELLED, **_progress(work)))
            job = await self._put(job.at(CANCELLED))
            self._tell(_observe(job), job)
            return job
        self._jobs.pop(job.id, None)
        async with self._turn:
            await asyncio.to_thread(self._folder.remove, job)
        return job

    def result(self, job: Job, head: str) -> str:
        """The path of a head's result that lies here."""
        return str(self._folder.results(job) / f"{head}.ome.tif")

    async def run(self) -> None:
        """Compute jobs until this is cancelled; the one that is running then is begun anew by the next server."""
        try:
            while True:
                try:
                    await self._next()
                except OSError:
                    logger.exception("the folder of jobs cannot be written; trying again in %g s", _SWEEP_S)
                    await asyncio.sleep(_SWEEP_S)
        finally:
            self._thread.shutdown(wait=False)

    async def _next(self) -> None:
        """Compute the job that waits longest, or wait for one."""
        await self._sweep()
        waiting = next((job for job in self._jobs.values() if job.state in UNFINISHED), None)
        if waiting is not None:
            await self._run(waiting)
            return
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), _SWEEP_S)

    async def _run(self, job: Job) -> None:
        if job.num_starts >= MAX_STARTS:
            job = await self._put(
                job.at(FAILED, error=f"the server ended {MAX_STARTS} times while it computed this job")
            )
            self._tell(_observe(job), job)
            return
        self._works[job.id] = work = Work(math.inf)
        job = await self._put(job.at(RUNNING, num_starts=job.num_starts + 1))
        observed = _observe(job, work)
        work.waited_s = observed.elapsed_s
        context = contextvars.copy_context()
        context.run(begin, observed)  # what the model finds on its way is noted there
        try:
            loop = asyncio.get_running_loop()
            outputs = await loop.run_in_executor(self._thread, context.run, self._compute, job, work)
            ended = job.at(SUCCEEDED, outputs=outputs)
        except asyncio.CancelledError:
            work.cancel()
            self._works.pop(job.id, None)
            if self._jobs.get(job.id) is job:  # the server stops in good order: this start does not count
                self._jobs[job.id] = job = job.at(QUEUED, num_starts=job.num_starts - 1)
                self._folder.save(job)
            raise
        except Gone:
            ended = job.at(CANCELLED)
        except Exception as error:  # noqa: BLE001  # whatever it is belongs to the job: the others have to go on
            ended = job.at(FAILED, error=answer_to(error).message)
        self._works.pop(job.id, None)
        if self._jobs.get(job.id) is job:  # else it was cancelled meanwhile, which its client has heard
            ended = await self._put(ended.at(ended.state, **_progress(work)))
        self._tell(observed, self._jobs.get(job.id, ended))

    def _tell(self, observed: Observation, job: Job) -> None:
        observed.error = job.error
        end(observed, job.state, listener=self.listener)

    async def _put(self, job: Job) -> Job:
        self._jobs[job.id] = job
        async with self._turn:
            await asyncio.to_thread(self._folder.save, job)
        self._log(job)
        return job

    def _log(self, job: Job) -> None:
        fields = {"job": job.id, "model": job.model, "state": job.state, "seconds": job.seconds, "error": job.error}
        extra = {"fields": fields, "request_id": job.request_id}
        logger.info("job %s of %s: %s", job.id, job.model, job.state, extra=extra)

    def _compute(self, job: Job, work: Work) -> list[dict[str, Any]]:
        """What a job gives; in its thread."""
        model = self._models.get_model(job.model)
        if not isinstance(model, BundleModel):
            raise InvalidInput(f"the model {job.model} is not served any more")
        task = read_task(job.document, model, self._limits, self._addresses)
        work.check()
        image = self._read(job, task, model)
        prediction = model.predict_alone(image, task.heads, task.asked, work)
        work.check()
        results = self._folder.results(job)
        shutil.rmtree(results, ignore_errors=True)  # of an earlier start
        place = task.output or str(results)
        outputs = write_results(prediction, image, place, suffix=task.suffix, labels=model.labels)
        if task.output is None:
            address = f"/v2/models/{job.model}/jobs/{job.id}/result?output="
            return [each | {"uri": address + each["name"]} for each in outputs]
        return outputs

    def _read(self, job: Job, task: Task, model: BundleModel) -> Image:
        if task.image is not None:
            return read_image_at(task.image, task.asked, predictor=model.predictor, limits=self._limits)
        content = self._folder.input(job).read_bytes()
        return read_file(content, task.asked, predictor=model.predictor, limits=self._limits)

    async def _sweep(self) -> None:
        """Forget jobs that ended long ago."""
        limit = time.time() - self._keep_s
        for job in [job for job in self._jobs.values() if job.state not in UNFINISHED and job.changed < limit]:
            await self.cancel(job)


def _observe(job: Job, work: Work | None = None) -> Observation:
    """A job as a request that came when the job did."""
    observed = Observation(job.request_id or job.id, f"job {job.id}", JOB, job.model, work=work)
    observed.begun -= max(0.0, time.time() - job.created)  # the clock may have been put back
    return observed


def _question(job: Job) -> tuple[object, ...]:
    return job.model, job.document, job.content_sha256


def _progress(work: Work) -> dict[str, Any]:
    return {"num_windows": work.num_windows, "seconds": round(work.elapsed_s, 3)}


@asynccontextmanager
async def computing(jobs: JobQueue | None) -> AsyncIterator[Callable[[], object]]:
    """Compute jobs in a block, which may end that before; a job that runs then is left for the next server."""
    if jobs is None:
        yield lambda: None
        return
    running = asyncio.create_task(jobs.run())
    try:
        yield running.cancel
    finally:
        running.cancel()
        await asyncio.wait([running])
