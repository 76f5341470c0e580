"""Serve an exported model over HTTP and gRPC with KServe's protocols.

    python -m serving --bundle runs/nuclei/bundle
    python -m serving --bundle s3://models/nuclei --model_name nuclei --http_port 8080 --grpc_port 8081

The server listens only after the bundle was checked and its sample replayed; a bundle that fails ends the process
with a message and exit code 2.
"""

import logging
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from cyto_dl.errors import ConfigError, CytoDLError
from serving.logs import configure_logging
from serving.settings import parse_arguments

logger = logging.getLogger("serving")  # not __main__, as which this file runs


def check_ports(**ports: int) -> None:
    """See that the server will be able to listen, before the model is loaded.

    Raises:
        ConfigError: A port is taken, twice the same, or not a port.
    """
    with ExitStack() as listeners:
        for option, port in ports.items():
            try:
                listeners.enter_context(socket.create_server(("", port)))
            except (OSError, OverflowError) as error:
                raise ConfigError(f"--{option} {port} cannot be used: {error}. Choose a free port.") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the bundle and serve it until SIGTERM; the exit code."""
    options = parse_arguments(arguments, __doc__)
    configure_logging()
    try:
        check_ports(http_port=options.http_port, grpc_port=options.grpc_port)
        from cyto_dl.bundle import load_bundle  # with torch: --help does not wait for it

        predictor = load_bundle(options.bundle, allow=options.allow_target, engine=options.engine)
    except CytoDLError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    from serving.executor import Executor  # with kserve
    from serving.model import BundleModel
    from serving.server import build_server

    executor = Executor(max_running=options.max_running, max_waiting=options.max_waiting)
    model = BundleModel(options.model_name or predictor.name, predictor, executor, timeout_s=options.timeout_s)
    http, grpc = options.http_port, options.grpc_port
    logger.info("model %s: /v1/models/%s:predict on port %d, gRPC on port %d", model.name, model.name, http, grpc)
    build_server([model], executor, http_port=http, grpc_port=grpc).start([])
    return 0


if __name__ == "__main__":
    sys.exit(main())
