"""A proxy in front of an S3 server that spoils answers."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>no</Message></Error>'


@dataclass(frozen=True)
class Refuse:
    """Answer with an error of S3."""

    status: int
    code: str


class CutBody:
    """Announce the whole body, send half of it and close the connection."""


Fault = Refuse | CutBody


@dataclass
class FaultyProxy:
    """Forwards requests; `fault_of(number, path)` spoils the GET of an object with this number, from 0 up."""

    target: str
    endpoint: str = ""
    fault_of: Callable[[int, str], Fault | None] = lambda number, path: None
    paths: list[str] = field(default_factory=list)
    """The objects that were asked for, in order."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, path: str) -> Fault | None:
        with self.lock:
            self.paths.append(path)
            return self.fault_of(len(self.paths) - 1, path)


@contextmanager
def start_proxy(target: str) -> Iterator[FaultyProxy]:
    """A proxy on loopback for the server at `target`, http://HOST:PORT."""
    proxy = FaultyProxy(target.removeprefix("http://"))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            is_object = self.command == "GET" and "?" not in self.path.replace("?x-id=GetObject", "")
            fault = proxy.next_fault(self.path.partition("?")[0]) if is_object else None
            if isinstance(fault, Refuse):
                self._answer(fault.status, [], _ERROR.format(code=fault.code).encode(), None)
                return
            connection = http.client.HTTPConnection(proxy.target)
            # The signature covers the Host header.
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            self._answer(answer.status, answer.getheaders(), answer.read(), fault)
            connection.close()

        def _answer(
            self, status: int, headers: list[tuple[str, str]], body: bytes, fault: Fault | None
        ) -> None:
            self.send_response(status)
            is_head = self.command == "HEAD"
            for name, value in headers:
                if name.lower() not in (
                    "content-length",
                    "transfer-encoding",
                    "connection",
                    "date",
                    "server",
                ) or (is_head and name.lower() == "content-length"):
                    self.send_header(name, value)
            if not is_head:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if isinstance(fault, CutBody):
                body, self.close_connection = body[: len(body) // 2], True
            if not is_head:
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
