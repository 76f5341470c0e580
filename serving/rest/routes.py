"""The REST routes that take an image or describe a model; the others are KServe's.

    POST /v2/models/NAME/infer         tensors, JSON or binary
    POST /v1/models/NAME:predict       one image file, its address, or JSON
    GET  /v2/models/NAME               names, shapes, datatypes, axes

A request that finds no room is refused before its body is read, and waits for its turn as the bytes that came. One
whose client goes away is given up.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from kserve.constants.constants import PredictorProtocol
from kserve.errors import InvalidInput, ModelNotReady

from serving.errors import Gone
from serving.executor import Executor, Work
from serving.messages.dataplane import ImageDataPlane
from serving.messages.files import FileBody
from serving.messages.responses import Answer
from serving.model import BundleModel
from serving.references.addresses import Addresses
from serving.references.by_reference import answer_reference
from serving.rest import openapi

Result = TypeVar("Result")


def add_routes(app: FastAPI, dataplane: ImageDataPlane, executor: Executor, addresses: Addresses) -> None:
    """Put our routes before KServe's, which are added when the server starts."""

    async def predict(model_name: str, request: Request, protocol: PredictorProtocol) -> Response:
        model = dataplane.get_model_from_registry(model_name)
        if not isinstance(model, BundleModel) or not model.ready:
            raise ModelNotReady(model_name)
        executor.check_room()
        body, headers, work = await request.body(), dict(request.headers), Work(model.limits.timeout_s)

        def answer() -> Answer:  # JSON takes many times its bytes once it is read: not before it is this one's turn
            payload, _ = dataplane.decode(body, headers, protocol.value, model_name)
            payload = with_query(payload, dict(request.query_params))
            if isinstance(payload, dict) and "image_uri" in payload:
                return answer_reference(model, payload, headers, work, addresses=addresses)
            return model.answer(payload, headers, work)

        content, content_headers = await while_connected(request, executor.run(work, answer))
        return Response(content, headers=content_headers)

    async def infer_v2(model_name: str, request: Request) -> Response:
        return await predict(model_name, request, PredictorProtocol.REST_V2)

    async def predict_v1(model_name: str, request: Request) -> Response:
        return await predict(model_name, request, PredictorProtocol.REST_V1)

    async def metadata(model_name: str) -> JSONResponse:
        return JSONResponse(dataplane.get_model_from_registry(model_name).metadata())

    async def no_versions(model_name: str) -> None:
        raise HTTPException(404, "a server has one version of a model; leave /versions/... out of the address")

    app.add_api_route(
        "/v2/models/{model_name}/infer", infer_v2, methods=["POST"], response_model=None, openapi_extra=openapi.INFER
    )
    app.add_api_route(
        "/v1/models/{model_name}:predict",
        predict_v1,
        methods=["POST"],
        response_model=None,
        openapi_extra=openapi.PREDICT,
    )
    app.add_api_route("/v2/models/{model_name}", metadata, methods=["GET"], response_model=None)
    app.add_api_route(
        "/v2/models/{model_name}/versions/{rest:path}", no_versions, methods=["GET", "POST"], include_in_schema=False
    )


def with_query(payload: Any, query: Mapping[str, str]) -> Any:
    """The payload with the parameters in its address, which only a file needs.

    Raises:
        InvalidInput: It is no file.
    """
    if not query:
        return payload
    if not isinstance(payload, FileBody):
        raise InvalidInput(f"parameters: {sorted(query)[0]}: those of a JSON body stand in it, under `parameters`")
    return replace(payload, parameters=query)


async def while_connected(request: Request, answer: Awaitable[Result]) -> Result:
    """Wait for an answer, and cancel it when the client goes away.

    Raises:
        Gone: The client went away.
    """
    working = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone("the client closed the connection")
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()


async def _disconnected(request: Request) -> None:
    """Return when the client has closed the connection; its body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
