"""The REST routes for jobs: volumes that nobody waits for with an open connection.

POST   /v2/models/NAME/jobs               an image's address as JSON, or its file  -> 202, Location
GET    /v2/models/NAME/jobs               all of them
GET    /v2/models/NAME/jobs/ID            state, progress, and once it has succeeded where the results are
GET    /v2/models/NAME/jobs/ID/result     an OME-TIFF, where the client named no place of its own; ?output=HEAD
DELETE /v2/models/NAME/jobs/ID            cancels it, or forgets one that has ended
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse
from grpc_interceptor.exceptions import FailedPrecondition
from kserve.constants.constants import PredictorProtocol
from kserve.errors import InvalidInput, ModelNotReady

from serving.errors import Closed
from serving.jobs.folder import SUCCEEDED, Job
from serving.jobs.queue import JobQueue
from serving.messages.dataplane import ImageDataPlane
from serving.messages.files import FileBody
from serving.messages.media_types import TIFF
from serving.model import BundleModel
from serving.rest import openapi


class NotDone(FailedPrecondition):
    """The job has no result here: not yet, or not any more, or elsewhere."""

    http_status = 409


def add_job_routes(app: FastAPI, dataplane: ImageDataPlane, jobs: JobQueue | None) -> None:
    """Put the routes before KServe's; without a queue they say that there are no jobs here."""

    def queue() -> JobQueue:
        if jobs is None:
            raise Closed("this server takes no jobs; the operator has given it no folder for them")
        return jobs

    async def submit(model_name: str, request: Request) -> JSONResponse:
        identity = request.headers.get("x-job-id")
        queue().check_room(identity)
        model = dataplane.get_model_from_registry(model_name)
        if not isinstance(model, BundleModel) or not await dataplane.model_ready(model_name):
            raise ModelNotReady(model_name)
        headers = dict(request.headers)
        payload, _ = dataplane.decode(await request.body(), headers, PredictorProtocol.REST_V1.value, model_name)
        document, content = _document(payload, headers, dict(request.query_params))
        job = await queue().submit(model, document, content, identity)
        return JSONResponse(_described(job, queue()), 202, {"location": _address(job)})

    async def listed(model_name: str) -> JSONResponse:
        return JSONResponse({"jobs": [_described(job, queue()) for job in queue().of_model(model_name)]})

    async def described(model_name: str, job_id: str) -> JSONResponse:
        return JSONResponse(_described(queue().get(model_name, job_id), queue()))

    async def cancel(model_name: str, job_id: str) -> JSONResponse:
        job = await queue().cancel(queue().get(model_name, job_id))
        return JSONResponse(_described(job, queue()))

    async def result(model_name: str, job_id: str, output: str | None = None) -> FileResponse:
        job = queue().get(model_name, job_id)
        head = _head(job, output)
        return FileResponse(queue().result(job, head), media_type=TIFF, filename=f"{head}.ome.tif")

    every, one = "/v2/models/{model_name}/jobs", "/v2/models/{model_name}/jobs/{job_id}"
    for path, route, method, told in (
        (every, submit, "POST", openapi.SUBMIT),
        (every, listed, "GET", openapi.JOBS),
        (one, described, "GET", openapi.JOB),
        (one, cancel, "DELETE", openapi.JOB),
        (f"{one}/result", result, "GET", openapi.RESULT),
    ):
        status = 202 if method == "POST" else 200
        app.add_api_route(path, route, methods=[method], status_code=status, response_model=None, openapi_extra=told)


def _document(
    payload: Any, headers: Mapping[str, str], query: Mapping[str, str]
) -> tuple[dict[str, Any], bytes | None]:
    """A job's request, and the file that was posted with it."""
    if not isinstance(payload, FileBody):
        if query:
            raise InvalidInput(f"parameters: {sorted(query)[0]}: those of a JSON body stand in it, under `parameters`")
        if "image_uri" not in payload:
            raise InvalidInput(
                'image_uri: a job takes {"image_uri": ADDRESS}, or the file itself (.npy, TIFF, PNG, JPEG) as its body'
            )
        return payload, None
    heads = [name.strip() for name in headers.get("x-outputs", "").split(",") if name.strip()]
    parameters = {name: value for name, value in query.items() if name != "output_uri"}
    document: dict[str, Any] = {"outputs": heads, "parameters": parameters}
    return document | ({"output_uri": query["output_uri"]} if "output_uri" in query else {}), payload.content


def _described(job: Job, jobs: JobQueue) -> dict[str, Any]:
    work = jobs.work(job)
    done = job.num_windows if work is None else work.num_windows
    of = max(done, work.all_windows) if work is not None else done if job.state == SUCCEEDED else 0
    found = {
        "id": job.id,
        "model_name": job.model,
        "state": job.state,
        "created": job.created,
        "changed": job.changed,
        "progress": {"windows": done, "of": of or None},  # null: nobody knows yet
        "seconds": job.seconds if work is None else round(work.elapsed_s, 3),
        "outputs": job.outputs,
    }
    return found | ({"error": job.error} if job.error else {})


def _address(job: Job) -> str:
    return f"/v2/models/{job.model}/jobs/{job.id}"


def _head(job: Job, output: str | None) -> str:
    """The head whose result is asked for."""
    if job.state != SUCCEEDED:
        raise NotDone(f"the job is {job.state}; there is a result once it has succeeded")
    if job.document.get("output_uri") is not None:
        raise NotDone("the results are where output_uri said")
    heads: list[str] = [each["name"] for each in job.outputs]
    if output is None and len(heads) == 1:
        return heads[0]
    if output is None or output not in heads:
        raise InvalidInput(f"output: say which result: {', '.join(heads)}")
    return output
