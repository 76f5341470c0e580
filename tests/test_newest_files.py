"""The newest content of a file reaches the server, and nobody waits for it."""

import os
import threading

import pytest

from cyto_dl.errors import StorageError
from cyto_dl.newest_files import NewestFiles

PATIENCE_S = 60  # a busy machine starts a thread late


class Server:
    """Receives a file when it is let; `problem` is what it answers with instead."""

    def __init__(self):
        self.received, self.problem = [], None
        self.asked, self.let, self.answered = threading.Event(), threading.Event(), threading.Event()

    def send(self, path):
        self.asked.set()
        assert self.let.wait(PATIENCE_S)
        if self.problem is not None:
            raise self.problem
        self.received.append((path.name, path.read_text()))
        self.answered.set()


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def files(server):
    return NewestFiles(server.send, server="the server")


def write(path, text):
    """Replace a file at once, as checkpoints are."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    os.replace(temporary, path)
    return path


def test_the_writer_does_not_wait_and_the_server_gets_what_the_file_held(files, server, tmp_path):
    path = write(tmp_path / "last.ckpt", "one")
    files.put(path)
    assert server.asked.wait(PATIENCE_S)
    write(path, "two")  # while "one" is being sent
    server.let.set()
    assert server.answered.wait(PATIENCE_S)
    files.finish()
    assert server.received == [("last.ckpt", "one")]
    assert not files.is_sent(path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_was_replaced_before_its_turn_is_left_out(files, server, tmp_path):
    files.put(write(tmp_path / "best.ckpt", "best"))
    assert server.asked.wait(PATIENCE_S)
    for number in range(5):
        files.put(write(tmp_path / "last.ckpt", f"{number}"))
    server.let.set()
    while not files.is_sent(tmp_path / "last.ckpt"):
        server.answered.wait(0.01)
    files.finish()
    assert server.received == [("best.ckpt", "best"), ("last.ckpt", "4")]


def test_a_file_that_has_not_changed_is_not_sent_again(files, server, tmp_path):
    server.let.set()
    path = write(tmp_path / "best.ckpt", "best")
    for _ in range(2):
        files.put(path)
        while not files.is_sent(path):
            server.answered.wait(0.01)
    files.finish()
    assert server.received == [("best.ckpt", "best")]


@pytest.mark.parametrize("problem", [ConnectionError("nobody answers"), StorageError("no such run")])
def test_a_server_that_does_not_take_it_is_a_warning_and_the_file_is_not_counted_as_sent(
    files, server, tmp_path, caplog, problem
):
    server.problem = problem
    server.let.set()
    path = write(tmp_path / "last.ckpt", "one")
    files.put(path)
    assert server.asked.wait(PATIENCE_S)
    files.finish()
    assert not files.is_sent(path)
    assert f"last.ckpt is not at the server yet, the run goes on: {problem}" in caplog.text

    server.problem = None
    files.put(path)  # as the next training in the same process
    while not files.is_sent(path):
        server.answered.wait(0.01)
    files.finish()
    assert server.received == [("last.ckpt", "one")]
