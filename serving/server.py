"""KServe's ModelServer with the parts of `serving` put in."""

from collections.abc import Sequence

import kserve.model_server
from kserve import ModelServer

from serving.dataplane import ClosedRepository, ImageDataPlane
from serving.executor import Executor
from serving.model import BundleModel
from serving.routes import add_routes

GRPC_MESSAGE_BYTES = 256 * 2**20  # KServe's 8 MiB is one 32 x 256 x 256 volume of float32 and not a byte more
GRACE_PERIOD_S = 300  # a volume on CPUs takes minutes; KServe would cut it 30 s after SIGTERM


def build_server(models: Sequence[BundleModel], executor: Executor, *, http_port: int, grpc_port: int) -> ModelServer:
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
    add_routes(kserve.model_server.app, server.dataplane, executor)
    return server
