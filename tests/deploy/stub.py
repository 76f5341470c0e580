"""A small Kubernetes API over HTTP: stores objects, counts generations, refuses stale writes, says what a test says."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]


class StubCluster:
    """What a real API server does with objects, as far as the client sees it.

    Attributes:
        objects: By their address without a name's query, e.g. /apis/.../inferenceservices/nuclei.
        requests: Method, address and body of every request.
        look: Called with an object before a GET answers with it: a test plays the controller here.
        logs: By the name of a pod.
        refuse: Status and message of the next answers; empty for none.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.look: Callable[[Object], None] = lambda _: None
        self.logs: dict[str, str] = {}
        self.refuse: list[tuple[int, str]] = []
        self._version = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.host = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def methods(self) -> list[str]:
        """Of the requests that changed something."""
        return [method for method, _, _ in self.requests if method != "GET"]

    def answer(self, method: str, address: str, body: Any) -> tuple[int, Any]:
        self.requests.append((method, address, body))
        if self.refuse:
            status, message = self.refuse.pop(0)
            return status, {"kind": "Status", "status": "Failure", "message": message, "code": status}
        path = urlsplit(address).path
        if path.endswith("/log"):
            return 200, self.logs[path.split("/")[-2]]
        if method == "GET" and path.endswith("/pods"):
            return 200, {"items": self._labelled(path, parse_qs(urlsplit(address).query)["labelSelector"][0])}
        if method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            return (409, {"message": "exists"}) if path in self.objects else (201, self._store(path, body))
        if path not in self.objects:
            return 404, {"message": f"{path} not found"}
        return self._known(method, path, body)

    def _labelled(self, path: str, selector: str) -> list[Object]:
        labels = {tuple(word.split("=")) for word in selector.split(",")}
        pods = [one for key, one in self.objects.items() if key.startswith(f"{path}/")]
        return [pod for pod in pods if labels <= set(pod["metadata"]["labels"].items())]

    def _known(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        found = self.objects[path]
        if method == "DELETE":
            return 200, self.objects.pop(path)
        if method == "GET":
            self.look(found)
            return 200, found
        if (
            body["metadata"].get("resourceVersion", found["metadata"]["resourceVersion"])
            != found["metadata"]["resourceVersion"]
        ):
            return 409, {"message": "the object has been modified"}
        return 200, self._store(path, merged(found, body) if method == "PATCH" else body)

    def _store(self, path: str, body: Object) -> Object:
        before = self.objects.get(path)
        self._version += 1
        metadata = body["metadata"] | {"resourceVersion": str(self._version), "generation": 1}
        if before:
            same = before["spec"] == body["spec"]
            metadata["generation"] = before["metadata"]["generation"] + (not same)
        status = {"status": before["status"]} if before and "status" in before else {}
        self.objects[path] = json.loads(json.dumps(body | {"metadata": metadata} | status))
        return self.objects[path]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                status, answer = cluster.answer(self.command, self.path, body)
                content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396: JSON merge patch."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result
