"""The REST application: what surrounds our routes and KServe's.

    observation -> CORS -> tokens -> body limit -> routes -> answers to errors

KServe's own middleware and error handlers are left out: they time every request twice, and show exceptions' texts.
"""

import re
from collections.abc import Sequence

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from kserve.protocol.rest.v1_endpoints import V1Endpoints
from kserve.protocol.rest.v2_endpoints import V2Endpoints
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access import Access, TokenCheck
from serving.errors import ANSWERED, answer_to
from serving.limits import BodyLimit, Buffered, Limits, refuse
from serving.messages.dataplane import ImageDataPlane
from serving.repository import Repository
from serving.telemetry.metrics import Metrics
from serving.telemetry.observation import Listener, Observation, begin, end, observation, request_id

_PREDICTION = re.compile(r"/(?:v1/models/(?P<v1>[^/]+):predict|v2/models/(?P<v2>[^/]+)/infer)")
# What a page elsewhere may send and read, beyond what every page may.
_ASKED_WITH = ["authorization", "content-type", "inference-header-content-length", "x-job-id", "x-outputs"]
_ASKED_WITH += ["x-request-id"]
_ANSWERED_WITH = ["inference-header-content-length", "location", "retry-after", "x-drift", "x-model-version"]
_ANSWERED_WITH += ["x-request-id", "x-seconds", "x-waited-seconds", "x-windows"]


class Observed:
    """ASGI middleware around everything else: the request's id, its line in the log, its metrics."""

    def __init__(self, app: ASGIApp, listener: Listener) -> None:
        self._app, self._listener = app, listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; what is raised beyond all handlers becomes a 500 without a trace."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        observed = _observe(scope)
        begin(observed)
        status = 499  # nobody was there to be answered

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(observed.headers())
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001  # whatever it is, its text stays in the log
            if status == 499:
                await refuse(error, scope, receive, send_with_headers)
            else:  # the answer has begun and cannot be taken back; uvicorn closes the connection
                observed.error = answer_to(error).message
        finally:
            end(observed, str(status), listener=self._listener)


def build_application(access: Access, limits: Limits, buffered: Buffered, *, origins: Sequence[str]) -> FastAPI:
    """An application without routes and without `Observed`.

    Args:
        access: Who may ask what.
        limits: Of bodies.
        buffered: The memory that bodies take.
        origins: Of pages elsewhere that may ask from a browser; none: browsers refuse them.
    """
    # Swagger's pages are left out: they load code from elsewhere. The name and version are not KServe's.
    app = FastAPI(title="CytoDL", version="v2", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, limits=limits, buffered=buffered)
    app.add_middleware(TokenCheck, access=access)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=_ASKED_WITH,
            expose_headers=_ANSWERED_WITH,
        )
    for kind in ANSWERED:
        app.add_exception_handler(kind, _answer)
    return app


def add_kserves_routes(app: FastAPI, dataplane: ImageDataPlane, repository: Repository, metrics: Metrics) -> None:
    """Those of KServe's routes that are offered, after ours; their descriptions are about KServe's code."""
    app.add_middleware(Observed, listener=metrics.count)
    router, v1, v2 = APIRouter(), V1Endpoints(dataplane, repository), V2Endpoints(dataplane, repository)
    router.add_api_route("/metrics", metrics.answer, methods=["GET"], include_in_schema=False)
    router.add_api_route("/v2/repository/index", repository.listed, methods=["POST"])
    router.add_api_route("/v2/repository/index", repository.listed, methods=["GET"], include_in_schema=False)
    for route, endpoint in {
        "/v1/models": v1.models,
        "/v1/models/{model_name}": v1.model_ready,
        "/v2": v2.metadata,
        "/v2/health/live": v2.live,
        "/v2/health/ready": v2.ready,
        "/v2/models": v2.models,
        "/v2/models/{model_name}/ready": v2.model_ready,
    }.items():
        router.add_api_route(route, endpoint, methods=["GET"], description=" ")
    for action, endpoint in {"load": v2.load, "unload": v2.unload}.items():
        router.add_api_route(
            f"/v2/repository/models/{{model_name}}/{action}", endpoint, methods=["POST"], description=" "
        )
    router.add_api_route("/v1/models/{model_name}:explain", _no_explanations, methods=["POST"], include_in_schema=False)
    app.include_router(router)


async def _no_explanations() -> None:
    raise HTTPException(404, "this server predicts; it does not explain")


def _observe(scope: Scope) -> Observation:
    headers, path = Headers(scope=scope), scope["path"]
    found = _PREDICTION.fullmatch(path) if scope["method"] == "POST" else None
    protocol = (found.lastgroup or "") if found else ""
    model = found[protocol] if found else None
    return Observation(request_id(headers), f"{scope['method']} {path}", protocol, model)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    answer = answer_to(error)
    observation().error = answer.message
    return JSONResponse({"error": answer.message}, answer.status, dict(answer.headers))
