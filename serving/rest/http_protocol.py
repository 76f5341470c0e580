"""uvicorn's HTTP protocol with a bound on a request's head, which it would otherwise collect without end."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 2**16  # 8 KiB are common in servers; a token, a traceparent and a long address fit many times


class BoundedHead(HttpToolsProtocol):
    """Closes a connection whose request line and headers do not end; who sends them needs no token yet."""

    _is_in_head = False
    _head_bytes = 0

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._is_in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """What follows is the body, which `serving.limits` bounds."""
        self._is_in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Parse what came, and count it while the head goes on."""
        super().data_received(data)
        if self._is_in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response(f"The request's head is larger than {MAX_HEAD_BYTES} bytes.")
