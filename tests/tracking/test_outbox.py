"""Nothing that is put into an outbox gets lost, and nobody waits for a server that is away."""

import json
import threading

import pytest

from cyto_dl.errors import StorageError
from cyto_dl.tracking.outbox import Outbox

PATIENCE_S = 60  # attempts begin a second apart; a busy machine takes longer


class Server:
    """Answers while `up`; refuses the messages in `refused`."""

    def __init__(self):
        self.up, self.refused, self.received = True, [], []

    def send(self, message):
        if not self.up:
            raise ConnectionError("nobody answers")
        if message in self.refused:
            raise StorageError("no such run")
        self.received.append(message)


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "unsent.jsonl"


def open_outbox(path, server):
    return Outbox(path, server.send, server="the server")


def numbers(count):
    return [{"number": number} for number in range(count)]


def test_a_server_that_answers_gets_everything_at_once_and_nothing_is_kept(path, server):
    outbox = open_outbox(path, server)
    for message in numbers(3):
        outbox.put(message)
        assert server.received[-1] == message
        assert not path.exists()
    outbox.wait(0)


def test_what_a_server_missed_is_sent_in_order_when_it_is_back(path, server):
    outbox = open_outbox(path, server)
    first, *missed, last = numbers(5)
    outbox.put(first)
    server.up = False
    for message in missed:
        outbox.put(message)
    assert server.received == [first]
    assert [json.loads(line) for line in path.read_text().splitlines()] == missed
    server.up = True
    outbox.put(last)
    outbox.wait(PATIENCE_S)
    assert server.received == numbers(5)
    assert not path.exists()


def test_nobody_waits_while_a_server_is_away(path, server):
    """After the first message that found it away, the others do not ask at all."""
    server.up = False
    outbox = open_outbox(path, server)
    outbox.put({"number": 0})
    server.send = None  # would raise if it were called
    for message in numbers(100)[1:]:
        outbox.put(message)
    assert len(path.read_text().splitlines()) == 100


def test_a_server_that_stays_away_is_an_error_at_the_end_that_says_how_to_go_on(path, server):
    server.up = False
    outbox = open_outbox(path, server)
    outbox.put({"number": 0})
    with pytest.raises(StorageError, match=r"did not come back within 0.1 s \(nobody answers\).*same command again"):
        outbox.wait(0.1)
    assert path.exists()


def test_the_next_process_sends_what_the_one_before_could_not(path, server):
    server.up = False
    outbox = open_outbox(path, server)
    for message in numbers(3):
        outbox.put(message)
    with path.open("a") as file:
        file.write('{"number": 3, "cut o')  # killed while it wrote
    back = Server()
    after = open_outbox(path, back)
    after.put({"number": 4})
    after.wait(PATIENCE_S)
    assert back.received == [*numbers(3), {"number": 4}]
    assert not path.exists()


def test_what_is_refused_is_an_error_at_once(path, server):
    outbox = open_outbox(path, server)
    server.refused = [{"number": 0}]
    with pytest.raises(StorageError, match="no such run"):
        outbox.put({"number": 0})
    assert not path.exists()


def test_what_is_refused_later_is_an_error_and_hinders_no_other_process(path, server):
    server.up = False
    outbox = open_outbox(path, server)
    for message in numbers(3):
        outbox.put(message)
    server.refused, server.up = [{"number": 0}], True
    with pytest.raises(StorageError, match="no such run"):
        outbox.wait(PATIENCE_S)
    with pytest.raises(StorageError, match="no such run"):
        outbox.put({"number": 3})
    after = open_outbox(path, server)
    after.wait(PATIENCE_S)
    assert server.received == numbers(3)[1:]


def test_the_thread_ends_with_the_outage(path, server):
    before = set(threading.enumerate())
    server.up = False
    outbox = open_outbox(path, server)
    outbox.put({"number": 0})
    (thread,) = set(threading.enumerate()) - before
    server.up = True
    outbox.wait(PATIENCE_S)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
