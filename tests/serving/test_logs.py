import logging
import sys

import pytest
from kserve.errors import InvalidInput, ModelNotFound

from cyto_dl.errors import ImageError
from serving.logs import configure_logging, without_clients_traces, without_uvicorns_own


def record_of(message, error=None):
    record = logging.LogRecord("kserve", logging.ERROR, __file__, 1, message, (), None)
    if error is not None:
        try:
            raise error
        except type(error):
            record.exc_info = sys.exc_info()
    return record


@pytest.mark.parametrize("error", [InvalidInput("raw: shape [3, 4]"), ModelNotFound("cells")])
def test_a_wrong_request_is_one_line_without_a_trace(error):
    record = record_of("Exception:", error)
    assert without_clients_traces(record)
    assert logging.Formatter("%(levelname)s %(message)s").format(record) == f"WARNING refused: {error}"


def test_the_servers_own_fault_keeps_its_trace():
    record = record_of("Exception:", ImageError("a bug"))
    assert without_clients_traces(record)
    assert "Traceback" in logging.Formatter().format(record)
    assert record.levelno == logging.ERROR


def test_of_uvicorns_start_the_address_is_left():
    assert without_uvicorns_own(record_of("Uvicorn running on http://0.0.0.0:8080 (Press CTRL+C to quit)"))
    assert not without_uvicorns_own(record_of("Waiting for application startup."))


def test_what_kserve_and_alembic_say_of_themselves_is_left_out():
    configure_logging()
    for name in ("kserve", "kserve.trace", "alembic.runtime.plugins"):
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)
