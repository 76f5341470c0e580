"""Local files, and how an S3 server's answers are taken: repeated, explained, verified; copies within a bound."""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cyto_dl.errors import StorageError
from cyto_dl.storage import (
    ConflictError,
    NothingThereError,
    atomic_path,
    fetch_published,
    identity,
    localize,
    localized,
    patience_s,
    sha256,
)
from cyto_dl.storage.s3 import client, replace

KEYS = {"AWS_ACCESS_KEY_ID": "an-access-key", "AWS_SECRET_ACCESS_KEY": "a-very-secret-key"}


class Handler(BaseHTTPRequestHandler):
    """Answers with what the test put into `server.answers`, then with the object of the path."""

    def do_GET(self):
        self.server.seen.append((self.command, self.path, self.headers))
        status = self.server.answers.pop(0) if self.server.answers else 200
        content = self.server.objects.get(self.path.partition("?")[0])
        if status == 200 and content is None:
            status = 404
        body = (content or b"") if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        for name, value in self.server.headers_of.get(self.path, {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.server.alter(body))

    do_HEAD = do_GET  # the name that http.server looks for

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.server.answers:
            self.server.objects[self.path] = content
        self.do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The edge of the process: what a server answers can be chosen, which a real one does not allow."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.answers, server.objects, server.headers_of = [], [], {"/lab/a/cell.npy": b"content"}, {}
    server.alter = lambda body: body
    values = {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.server_port}", "AWS_EC2_METADATA_DISABLED": "true"}
    values |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    for name, value in (values | KEYS | {"TMPDIR": str(tmp_path), "CYTO_DL_S3_RETRY_S": "20"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", None)  # so that it looks at TMPDIR
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "folder" / "table.csv"
    with atomic_path(target) as temporary:
        temporary.write_text("one")
    with pytest.raises(FileNotFoundError), atomic_path(target) as temporary:
        temporary.with_name("absent").rename(temporary)
    assert target.read_text() == "one"
    assert [path.name for path in target.parent.iterdir()] == ["table.csv"]


def test_a_local_path_is_its_own_copy(tmp_path):
    assert localize(tmp_path) == tmp_path
    with localized(tmp_path / "x") as path:
        assert path == tmp_path / "x"


def test_a_server_that_is_busy_is_asked_again(server):
    server.answers = [503] * 5  # more than boto3 repeats by itself
    assert localize("s3://lab/a/cell.npy").read_bytes() == b"content"


def test_what_will_not_pass_is_not_tried_again_and_shows_no_key(server, caplog):
    caplog.set_level(logging.DEBUG, logger="cyto_dl")
    server.answers = [403] * 9
    with pytest.raises(StorageError, match=r"s3://lab/a/cell\.npy cannot be .* at http://127") as error:
        localize("s3://lab/a/cell.npy")
    assert len(server.seen) == 2  # HEAD, and the listing that would tell the reason
    assert not any(key in str(error.value) + caplog.text for key in KEYS.values())


def test_a_server_that_is_away_is_given_up_after_the_time_that_is_set(server, monkeypatch):
    monkeypatch.setenv("CYTO_DL_S3_RETRY_S", "0.2")
    server.answers = [503] * 100
    with pytest.raises(StorageError, match="503"):
        identity("s3://lab/a/cell.npy")


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "runs/mine"])
def test_an_address_without_a_bucket_is_refused(uri):
    with pytest.raises(StorageError, match="names no bucket"):
        fetch_published(uri, "last", "last.ckpt")


def test_times_that_are_no_numbers_are_refused(monkeypatch):
    monkeypatch.setenv("CYTO_DL_S3_RETRY_S", "a minute")
    with pytest.raises(StorageError, match="CYTO_DL_S3_RETRY_S is 'a minute'"):
        patience_s()


@pytest.mark.parametrize("own", [False, True], ids=["MD5 of the server", "SHA-256 of the upload"])
def test_content_that_was_altered_on_its_way_is_found_and_nothing_is_kept(server, tmp_path, own):
    server.alter = lambda body: body.replace(b"o", b"0")
    if own:
        metadata = {"x-amz-meta-sha256": hashlib.sha256(b"content").hexdigest(), "ETag": '"several-2"'}
        server.headers_of = {"/lab/a/cell.npy": metadata}
    with pytest.raises(StorageError, match="is damaged"):
        localize("s3://lab/a/cell.npy")
    assert not list(tmp_path.rglob("cell.npy"))


def test_without_credentials_requests_are_not_signed(server, monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name)
    localize("s3://lab/a/cell.npy")
    assert not any("Authorization" in headers for _, _, headers in server.seen)


def test_one_client_serves_until_the_settings_change(server, monkeypatch):
    first = client()
    assert client() is first
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert client() is not first


def test_a_copy_is_brought_once_and_what_was_used_longest_ago_goes_first(server, tmp_path, monkeypatch):
    monkeypatch.setenv("CYTO_DL_SCRATCH_GB", "2e-8")  # 20 bytes: two of the objects
    server.objects = {f"/lab/{name}.npy": name.encode() * 9 for name in "abc"}
    for name in "abac":
        with localized(f"s3://lab/{name}.npy") as copy:
            assert copy.read_bytes() == name.encode() * 9
    assert sorted(copy.name for copy in tmp_path.rglob("*.npy")) == ["a.npy", "c.npy"]
    gets = [path.partition("?")[0] for method, path, _ in server.seen if method == "GET"]
    assert gets == ["/lab/a.npy", "/lab/b.npy", "/lab/c.npy"]


def test_a_copy_that_another_process_uses_stays(server, tmp_path, monkeypatch):
    server.objects = {f"/lab/{name}.npy": name.encode() * 9 for name in "abc"}
    code = "from cyto_dl.storage import localize; print(localize('s3://lab/a.npy'), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        used = other.stdout.readline().strip()
        monkeypatch.setenv("CYTO_DL_SCRATCH_GB", "1e-8")  # one of the objects
        for name in "bc":
            with localized(f"s3://lab/{name}.npy"):
                assert Path(used).read_text() == "a" * 9
        assert sorted(copy.name for copy in tmp_path.rglob("*.npy")) == ["a.npy", "c.npy"]
        other.communicate("\n")
    with localized("s3://lab/b.npy"):
        assert sorted(copy.name for copy in tmp_path.rglob("*.npy")) == ["b.npy"]


def test_an_object_that_is_absent_is_told_from_a_server_that_fails(server):
    server.objects["/lab"] = b"<ListBucketResult/>"  # the bucket is there, and holds nothing
    with pytest.raises(NothingThereError, match="there is nothing at this address"):
        localize("s3://lab/absent.npy")


@pytest.mark.parametrize(("etag", "condition"), [('"9a"', ("If-Match", '"9a"')), (None, ("If-None-Match", "*"))])
def test_an_object_that_somebody_else_wrote_meanwhile_is_not_replaced(server, etag, condition):
    server.answers = [412]
    with pytest.raises(ConflictError, match="Somebody else has written it"):
        replace("s3://lab/a/cell.npy", b"ours", etag=etag)
    assert server.seen[0][2][condition[0]] == condition[1]
    assert server.objects["/lab/a/cell.npy"] == b"content"
    server.answers = [412]  # to the second attempt of a request whose answer was lost
    replace("s3://lab/a/cell.npy", b"content", etag=etag)


def test_a_server_without_conditions_is_written_without(server):
    server.answers = [501]
    replace("s3://lab/a/cell.npy", b"ours", etag='"9a"')
    assert server.objects["/lab/a/cell.npy"] == b"ours"
    assert "If-Match" not in server.seen[-1][2]


def test_a_hash_is_that_of_the_content(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert sha256(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()
