import json
import logging
import sys

import pytest

from cyto_dl.errors import ImageError
from serving.telemetry.logs import JsonFormatter, TextFormatter, configure_logging, without_uvicorns_own


def record_of(message, error=None, **extra):
    record = logging.LogRecord("serving", logging.ERROR, __file__, 1, message, (), None)
    record.__dict__.update(extra)
    if error is not None:
        try:
            raise error
        except type(error):
            record.exc_info = sys.exc_info()
    return record


def test_a_json_line_holds_the_requests_id_and_fields():
    line = JsonFormatter().format(record_of("request", request_id="a1", fields={"status": "200", "seconds": 0.5}))
    document = json.loads(line)
    assert (document["message"], document["level"], document["logger"]) == ("request", "ERROR", "serving")
    assert (document["request_id"], document["status"], document["seconds"]) == ("a1", "200", 0.5)


def test_a_trace_stays_within_its_json_line():
    line = JsonFormatter().format(record_of("a request failed", ImageError("two\nlines")))
    assert "\n" not in line
    assert "Traceback" in json.loads(line)["trace"]


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_what_a_client_wrote_cannot_begin_a_line_of_its_own(formatter):
    line = formatter.format(record_of("request", fields={"request": "GET /a\nERROR serving: all is lost"}))
    assert "\n" not in line


def test_a_text_line_names_its_fields():
    line = TextFormatter().format(record_of("request", request_id="a1", fields={"status": "200", "error": "too dark"}))
    assert line.endswith('ERROR serving: request status=200 error="too dark" id=a1')


def test_of_uvicorns_start_the_address_is_left():
    assert without_uvicorns_own(record_of("Uvicorn running on http://0.0.0.0:8080 (Press CTRL+C to quit)"))
    assert not without_uvicorns_own(record_of("Waiting for application startup."))


def test_what_kserve_and_alembic_say_of_themselves_is_left_out():
    configure_logging()
    for name in ("kserve", "kserve.trace", "alembic.runtime.plugins"):
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)
