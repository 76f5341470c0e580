"""KServe's ModelServer with the parts of `serving` put in."""

from collections.abc import Sequence

import kserve.model_server
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from kserve import ModelServer
from kserve.constants.constants import PredictorProtocol
from kserve.errors import ModelNotReady

from serving.dataplane import ClosedRepository, ImageDataPlane
from serving.errors import Closed, ServerFault, answer_error
from serving.model import BundleModel

GRPC_MESSAGE_BYTES = 256 * 2**20  # KServe's 8 MiB is one 32 x 256 x 256 volume of float32 and not a byte more
GRACE_PERIOD_S = 300  # a volume on CPUs takes minutes; KServe would cut it 30 s after SIGTERM


def build_server(models: Sequence[BundleModel], *, http_port: int, grpc_port: int) -> ModelServer:
    """A server with `models` registered; `start([])` serves them until SIGTERM.

    One process: KServe's workers would each load the model, and its parent kills those that are busy.
    """
    # KServe hands these two to gRPC from its own parsed arguments, and offers no other way.
    vars(kserve.model_server.args).update(
        grpc_max_receive_message_length=GRPC_MESSAGE_BYTES, grpc_max_send_message_length=GRPC_MESSAGE_BYTES
    )
    server = ModelServer(http_port=http_port, grpc_port=grpc_port, workers=1, grace_period=GRACE_PERIOD_S)
    server.dataplane = ImageDataPlane(server.registered_models)
    server.model_repository_extension = ClosedRepository(server.registered_models)
    for model in models:
        server.register_model(model)
    add_routes(kserve.model_server.app, server.dataplane)
    return server


def add_routes(app: FastAPI, dataplane: ImageDataPlane) -> None:
    """Put our infer and metadata routes before KServe's, which are added when the server starts."""

    async def infer(model_name: str, request: Request) -> Response:
        if not await dataplane.model_ready(model_name):
            raise ModelNotReady(model_name)
        headers = dict(request.headers)
        tensors, _ = dataplane.decode(await request.body(), headers, PredictorProtocol.REST_V2.value, model_name)
        content, content_headers = await dataplane.infer(model_name, tensors, headers)
        return Response(content, headers=content_headers)

    async def metadata(model_name: str) -> JSONResponse:
        document = await dataplane.model_metadata(model_name)
        parameters = dataplane.get_model_from_registry(model_name).tensor_parameters()
        for tensor in [*document["inputs"], *document["outputs"]]:
            tensor["parameters"] = parameters[tensor["name"]]
        return JSONResponse(document)

    app.add_api_route("/v2/models/{model_name}/infer", infer, methods=["POST"], response_model=None)
    app.add_api_route("/v2/models/{model_name}", metadata, methods=["GET"], response_model=None)
    app.add_exception_handler(ServerFault, answer_error)
    app.add_exception_handler(Closed, answer_error)
