"""The page of a server: its models' cards, and a place to drop an image and see each head's output over it.

    GET  /                       to a browser the page, to everybody else that the server lives, as in KServe
    POST /v1/models/NAME:read    the image that the model takes of a file, as .npy: browsers do not read TIFF

The page is one file that loads nothing from elsewhere, and its Content-Security-Policy allows nothing else: only the
one script and the one style sheet that are in it, by their hashes. It needs no token; what it asks the server for does.
"""

import base64
import hashlib
import io
import re
from pathlib import Path

import numpy as np
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from kserve.errors import InvalidInput, ModelNotReady

from serving.executor import Work
from serving.messages.dataplane import ImageDataPlane
from serving.messages.files import FILE_BEGINNINGS, FileBody
from serving.messages.media_types import NPY
from serving.model import BundleModel

_PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")


def _hash_of(element: str) -> str:
    """The one inline element of a kind, as a policy names it."""
    (content,) = re.findall(f"<{element}>(.*?)</{element}>", _PAGE, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


_HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; script-src {_hash_of('script')}; style-src {_hash_of('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
    "vary": "Accept",
}


def add_page(app: FastAPI, dataplane: ImageDataPlane) -> None:
    """Put the page and its route before KServe's."""

    async def page(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(_PAGE, headers=_HEADERS)
        return JSONResponse(await dataplane.live(), headers={"vary": "Accept"})

    async def read(model_name: str, request: Request) -> Response:
        model = dataplane.get_model_from_registry(model_name)
        if not isinstance(model, BundleModel) or not model.ready:
            raise ModelNotReady(model_name)
        body = await request.body()
        if not body.startswith(FILE_BEGINNINGS):
            raise InvalidInput("this is no image: TIFF, PNG, JPEG and .npy are")
        # where predictions are computed: it takes as much memory
        content = await model.executor.run(
            Work(model.limits.timeout_s), lambda: _npy(model.read(FileBody(body), {}).images[0].array)
        )
        return Response(content, media_type=NPY)

    router = APIRouter(include_in_schema=False)  # it is for people and for the page itself
    router.add_api_route("/", page, methods=["GET"], response_model=None)
    router.add_api_route("/v1/models/{model_name}:read", read, methods=["POST"], response_model=None)
    app.include_router(router)


def _npy(array: np.ndarray) -> bytes:
    """A .npy file of numbers that a browser knows."""
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    elif array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        array = array.astype(np.float64)
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
