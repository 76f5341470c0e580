"""What the server's log says: which bundle, which addresses, one line a request, traces of the server's own faults."""

import logging

# What uvicorn says between "loaded" and "running", and on its way down, is about itself.
_ABOUT_UVICORN = (
    "Started server process",
    "Waiting for application",
    "Application startup complete",
    "Application shutdown complete",
    "Finished server process",
)
_CLIENTS_FAULTS = ("InvalidInput", "ModelNotFound", "ModelNotReady")  # by name: a log is set up before kserve is there


def configure_logging() -> None:
    """Set up the log of a server's process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # lists its plugins when it is imported
    # At INFO it lists the endpoints that it does not have, and times every request in two lines beside uvicorn's one.
    kserve = logging.getLogger("kserve")
    kserve.setLevel(logging.WARNING)
    kserve.addFilter(without_clients_traces)
    logging.getLogger("uvicorn.error").addFilter(without_uvicorns_own)


def without_clients_traces(record: logging.LogRecord) -> bool:
    """Keep a record; KServe's trace of a wrong request becomes one line, because the fault lies not in this code."""
    error = record.exc_info[1] if record.exc_info else None
    if type(error).__name__ in _CLIENTS_FAULTS:
        record.msg, record.args, record.exc_info = "refused: %s", (str(error),), None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


def without_uvicorns_own(record: logging.LogRecord) -> bool:
    """Leave out what uvicorn says about itself."""
    return not record.getMessage().startswith(_ABOUT_UVICORN)
