"""Serve exported models over HTTP and gRPC with KServe's protocols.

    python -m serving --bundle runs/nuclei/bundle
    python -m serving --bundle s3://models/nuclei --model_name nuclei --http_port 8080 --grpc_port 8081
    python -m serving --bundle nuclei=runs/nuclei/bundle --bundle membranes=s3://models/membranes

The server listens only after every bundle was checked, its sample replayed and its network warmed up; a bundle that
fails ends the process with a message and exit code 2.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cyto_dl.errors import ConfigError, CytoDLError
from serving.identity import check_name
from serving.settings import Settings, parse_arguments
from serving.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from serving.server import BundleServer

logger = logging.getLogger("serving")  # not __main__, as which this file runs


def choose_ports(**ports: int) -> dict[str, int]:
    """See that the server will be able to listen, before the model is loaded; 0 becomes a port that is free.

    Raises:
        ConfigError: A port is taken, twice the same, or not a port.
    """
    chosen = {}
    with ExitStack() as listeners:
        for option, port in ports.items():
            try:
                listener = listeners.enter_context(socket.create_server(("", port)))
            except (OSError, OverflowError) as error:
                raise ConfigError(f"--{option} {port} cannot be used: {error}. Choose a free port.") from error
            chosen[option] = listener.getsockname()[1]
    return chosen


def check_files(settings: Settings) -> None:
    """See that what the operator names is there, within a second or two; torch takes ten to import.

    Raises:
        CytoDLError: It is not: a bundle, tokens, a folder; or two bundles have one name.
    """
    from cyto_dl.bundle.format import read_document
    from cyto_dl.storage import is_remote
    from serving.access import read_tokens
    from serving.jobs.folder import JobFolder
    from serving.references.addresses import read_prefixes

    for path in filter(None, (settings.token_file, settings.admin_token_file)):
        read_tokens(path)
    read_prefixes(settings.allow_read, option="--allow-read")
    read_prefixes(settings.allow_write, option="--allow-write")
    names = []
    for name, address in settings.bundle:
        if not is_remote(address):
            document = read_document(Path(address))
            names.append(name or settings.model_name or check_name(document["name"]))
    if len(set(names)) < len(names):
        raise ConfigError("two bundles have the same name; give each its own: --bundle NAME=PATH.")
    if settings.jobs:
        JobFolder(settings.jobs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the bundles and serve them until SIGTERM; the exit code."""
    settings = parse_arguments(arguments, __doc__)
    configure_logging(settings.log_format)
    try:
        ports = choose_ports(http_port=settings.http_port, grpc_port=settings.grpc_port)
        settings = replace(settings, http_port=ports["http_port"], grpc_port=ports["grpc_port"])
        check_files(settings)
        import uvicorn

        from serving.assembly import build_server  # with torch and kserve: --help does not wait for them

        server = build_server(settings)
        loop = uvicorn.Config(server.app, log_config=None).get_loop_factory()  # uvloop, where there is one
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(_serve(server, settings))
        server.executor.device.close()
    except CytoDLError as error:
        if settings.log_format == "json":
            logger.error("%s", error)
        else:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


async def _serve(server: "BundleServer", settings: Settings) -> None:
    for name, address in settings.bundle:
        await server.repository.add(name or settings.model_name, address)
    if len(server.models.get_models()) < len(settings.bundle):
        raise ConfigError("two bundles have the same name; give each its own: --bundle NAME=PATH.")
    http, grpc = settings.http_port, settings.grpc_port
    for name in server.models.get_models():
        logger.info("model %s: /v1/models/%s:predict on port %d, gRPC on port %d", name, name, http, grpc)
    await server.serve(http_port=http, grpc_port=grpc, drain_s=settings.drain_s)


if __name__ == "__main__":
    # While bundles are loaded nothing is lost; and without a handler the first process of a container hears no signal.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    sys.exit(main())
