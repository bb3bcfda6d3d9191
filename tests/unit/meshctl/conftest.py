"""A fake daemon: a few canned answers over HTTP on a unix socket, from a thread of the test.

It stands for meshd, so that these tests see what meshctl asks and how it takes any answer, wrong ones included.
That the real daemon answers so is what the lab tests show (tests/lab).
"""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshctl.main import cli

Answer = tuple[int, object] | bytes | Callable[["Request"], "tuple[int, object] | bytes"]


class Request:
    """What meshctl asked."""

    def __init__(self, raw: bytes) -> None:
        head, _, body = raw.partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        self.method, self.target, _ = first.split(" ")
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in rest)}
        self.body = json.loads(body) if body else None

    def __repr__(self) -> str:
        return f"{self.method} {self.target}"


class FakeDaemon:
    """``answers`` maps "METHOD /path" (with or without the query) to (status, document), to raw bytes to send as
    they are before the connection is closed, or to a function of the request. Unknown ones are 404s.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Answer] = {}
        self.requests: list[Request] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(16)
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def stop(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()

    def asked(self) -> list[str]:
        return [repr(request) for request in self.requests]

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(ConnectionError):  # tests kill meshctl while it waits
                if raw := read_request(connection):
                    request = Request(raw)
                    self.requests.append(request)
                    connection.sendall(self._answer(request))

    def _answer(self, request: Request) -> bytes:
        path = request.target.partition("?")[0]
        keys = (f"{request.method} {request.target}", f"{request.method} {path}")
        answer = next((self.answers[key] for key in keys if key in self.answers), None)
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, bytes):
            return answer
        unknown = {"error": f"nothing is at {request.target}", "hint": "", "code": "not-found"}
        return http_answer(*(answer or (404, unknown)))


def read_request(connection: socket.socket) -> bytes:
    raw = b""
    while b"\r\n\r\n" not in raw:
        piece = connection.recv(65536)
        if not piece:
            return b""
        raw += piece
    head, _, body = raw.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while lengths and len(body) < int(lengths[0].partition(b":")[2]):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def http_answer(status: int, document: object) -> bytes:
    body = json.dumps(document).encode()
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    running = FakeDaemon(tmp_path / "api.sock")
    yield running
    running.stop()


@pytest.fixture
def meshctl(tmp_path: Path) -> Callable[..., Result]:
    """Run one command line in this process; the socket is the fake daemon's, or nothing where no test asked for it."""

    def run(*args: str, **kwargs: object) -> Result:
        kwargs.setdefault("env", {"MESHD_SOCKET": str(tmp_path / "api.sock")})
        return CliRunner().invoke(cli, args, **kwargs)  # type: ignore[arg-type]

    return run
