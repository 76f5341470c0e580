"""Lines of log and a progress bar on one terminal."""

import io
import logging
import sys

from cyto_dl.callbacks.console import ConsoleHandler


def test_a_line_goes_where_stdout_is_when_it_is_written(monkeypatch):
    handler = ConsoleHandler(sys.stdout)
    above_a_bar = io.StringIO()
    monkeypatch.setattr(sys, "stdout", above_a_bar)
    handler.handle(logging.makeLogRecord({"msg": "epoch 1 of 2"}))
    assert above_a_bar.getvalue() == "epoch 1 of 2\n"


def test_what_logging_sets_once_does_not_hold_it(capsys):
    handler = ConsoleHandler()
    handler.setStream(io.StringIO())
    handler.handle(logging.makeLogRecord({"msg": "here"}))
    assert capsys.readouterr().out == "here\n"
