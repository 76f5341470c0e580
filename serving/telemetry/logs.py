"""What the server's log says: which bundle, which addresses, one line a request, traces of the server's own faults.

As text for a terminal, or as one JSON object a line for a log collector. Bodies, headers and tokens are never logged.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from serving.telemetry.observation import observation

# What uvicorn says between "loaded" and "running", and on its way down, is about itself.
_ABOUT_UVICORN = (
    "Started server process",
    "Waiting for application",
    "Application startup complete",
    "Application shutdown complete",
    "Finished server process",
)


class TextFormatter(logging.Formatter):
    """Lines for a terminal; a request's fields follow as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # logging's name
        """The line, with the fields that the record carries."""
        line = super().formatMessage(record)
        fields: dict[str, Any] = record.__dict__.get("fields", {})
        pairs = [f"{name}={_quoted(value)}" for name, value in fields.items()]
        request = [f"id={_id_of(record)}"] if _id_of(record) else []
        return " ".join([line, *pairs, *request])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id, a request's fields, and a fault's trace."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if identity := _id_of(record):
            document["request_id"] = identity
        document |= record.__dict__.get("fields", {})
        if record.exc_info:
            document["trace"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def configure_logging(log_format: str = "text") -> None:
    """Set up the log of a server's process, as "text" or "json"."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("alembic").setLevel(logging.WARNING)  # lists its plugins when it is imported
    logging.getLogger("kserve").setLevel(logging.WARNING)  # at INFO it tells what it has not, and times every request
    logging.getLogger("uvicorn.error").addFilter(without_uvicorns_own)


def without_uvicorns_own(record: logging.LogRecord) -> bool:
    """Leave out what uvicorn says about itself."""
    return not record.getMessage().startswith(_ABOUT_UVICORN)


def _id_of(record: logging.LogRecord) -> str:
    return str(record.__dict__.get("request_id") or observation().id)


def _quoted(value: Any) -> str:
    """A value in one word; what a client wrote cannot begin a line of its own."""
    text = str(value)
    return text if text.isprintable() and " " not in text and text else json.dumps(text)
