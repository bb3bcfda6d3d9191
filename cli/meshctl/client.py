"""HTTP/1.1 over the daemon's unix socket. Decides which failures mean that the daemon is not reachable, and how
its refusals reach the caller; knows no route.

http.client costs about 15 ms beside click, of the 90 that a whole command may take; a parser of our own would save
them and have to be trusted.
"""

import errno
import http.client
import json
import os
import socket
import stat
import struct
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from meshctl.errors import Failed, Unreachable, reason

ANSWER_S = 30.0  # the daemon gives up on its peers and its disk well before
EVENT_MAX_BYTES = 1024 * 1024  # a longer line is not one of the daemon's
TIMEVAL = struct.Struct("@ll")
UCRED = struct.Struct("@iII")  # pid, uid, gid: linux/socket.h
SAFE_METHODS = ("GET", "HEAD")

HINTS: dict[int, str] = {
    errno.ENOENT: "start it: systemctl start meshd; --socket or MESHD_SOCKET names another socket",
    errno.ECONNREFUSED: "the daemon has stopped: systemctl start meshd",
    errno.EACCES: "run as root or as a member of the group meshd",
}
"""What to do about a connect that failed, by errno."""

NAMES_IT = "--socket or MESHD_SOCKET names the daemon's api.sock"


class _UnixConnection(http.client.HTTPConnection):
    """http.client over AF_UNIX."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # With a timeout of Python's a connect would not wait while others crowd the socket, but fail at once.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, TIMEVAL.pack(int(ANSWER_S), 0))
        self.sock.connect(self.path)
        self.sock.settimeout(ANSWER_S)


class Client:
    """One daemon. Connects anew for each call, so it holds nothing open between them."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, *segments: str, **query: str | int | None) -> Any:
        """GET /v1/SEGMENTS and return the JSON document. None leaves a query parameter out."""
        return self.ask("GET", target(segments, query))[1]

    def post(self, *segments: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """POST a JSON body; return the status (200 or 201) and the JSON document."""
        return self.ask("POST", target(segments, {}), {} if body is None else body)

    def patch(self, *segments: str, body: Mapping[str, Any]) -> Any:
        """PATCH with a JSON body and return the JSON document."""
        return self.ask("PATCH", target(segments, {}), body)[1]

    def delete(self, *segments: str, **query: str) -> Any:
        """DELETE /v1/SEGMENTS and return the JSON document."""
        return self.ask("DELETE", target(segments, query))[1]

    def ask(self, method: str, where: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Return status and document. Raises Failed where the daemon refuses, Unreachable where it is silent."""
        connection = self._send(method, where, body)
        try:
            response = connection.getresponse()
            raw = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error, method) from None
        finally:
            connection.close()
        document = self._document(raw)
        if response.status >= 400:
            raise refusal(response.status, document)
        return response.status, document

    def has_our_pids(self) -> bool:
        """Say whether the daemon knows processes by the ids that they have here, so that one can be named to it. It, or
        the service manager that made its socket, has to be seen in this process's PID namespace. Raises Unreachable."""
        connection = self._connected()
        try:
            credentials = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        finally:
            connection.close()
        try:
            its = os.stat(f"/proc/{UCRED.unpack(credentials)[0]}/ns/pid")
            return os.path.samestat(its, os.stat("/proc/self/ns/pid"))
        except OSError:
            return False

    def text(self, where: str) -> str:
        """GET a page that is not JSON, ``where`` its whole path. Raises as ``ask`` does."""
        connection = self._send("GET", where, None)
        try:
            response = connection.getresponse()
            raw = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error, "GET") from None
        finally:
            connection.close()
        if response.status >= 400:
            raise refusal(response.status, self._document(raw))
        return raw.decode(errors="replace")

    def lines(self, *segments: str, **query: str | int | None) -> Iterator[Any]:
        """GET a stream of JSON documents, one a line, and yield each as it comes; waits for ever between them."""
        connection = self._send("GET", target(segments, query), None)
        try:
            response = connection.getresponse()
            if response.status >= 400:
                raise refusal(response.status, self._document(response.read()))
            if connection.sock is not None:
                connection.sock.settimeout(None)
            while line := response.readline(EVENT_MAX_BYTES):
                if line.strip():
                    yield self._document(line)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error, "GET") from None
        finally:
            connection.close()

    def _connected(self) -> _UnixConnection:
        connection = _UnixConnection(self.path)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            what = f"meshd is not reachable at {self.path}"
            if error.errno is None or (os.path.exists(self.path) and not _is_socket(self.path)):
                why = "a socket's path has at most 107 bytes" if error.errno is None else "it is not a socket"
                raise Unreachable(f"{what}: {why}", NAMES_IT) from None
            raise Unreachable(f"{what}: {reason(error)}", HINTS.get(error.errno, "")) from None
        return connection

    def _send(self, method: str, where: str, body: Mapping[str, Any] | None) -> http.client.HTTPConnection:
        connection = self._connected()
        headers = {"Accept": "application/json"}
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, where, payload, headers)
        except OSError as error:
            connection.close()
            raise self._broken(error, method) from None
        return connection

    def _broken(self, error: Exception, method: str) -> Unreachable:
        """Make the error for a conversation that ended before its answer."""
        hint = (
            "" if method in SAFE_METHODS else "it may have been done all the same: look before you try again"
        )
        if isinstance(error, TimeoutError):
            return Unreachable(f"meshd at {self.path} did not answer within {ANSWER_S:.0f} s", hint)
        if isinstance(error, (OSError, http.client.IncompleteRead)):
            return Unreachable(f"meshd at {self.path} closed the connection before it had answered", hint)
        return Unreachable(f"what answers at {self.path} does not speak HTTP", NAMES_IT)

    def _document(self, raw: bytes) -> Any:
        try:
            return json.loads(raw) if raw.strip() else {}
        except ValueError:
            raise Unreachable(
                f"what answers at {self.path} is not meshd: its answer is not JSON", NAMES_IT
            ) from None


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True  # it went away meanwhile: what connect said stands


def target(segments: tuple[str, ...], query: Mapping[str, str | int | None]) -> str:
    """Return the request target; names in ``segments`` are quoted, so that none can reach another route."""
    path = "/v1/" + "/".join(quote(segment, safe="") for segment in segments)
    asked = urlencode({name: value for name, value in query.items() if value is not None})
    return f"{path}?{asked}" if asked else path


def refusal(status: int, document: Any) -> Failed:
    """Make the error that the daemon's ``{"error","hint","code"}`` says."""
    said = document if isinstance(document, dict) else {}
    what = str(said.get("error") or f"meshd answered with status {status}")
    lines = said.get("lines")
    hint = "\n".join([str(said.get("hint") or ""), *map(str, lines if isinstance(lines, list) else ())])
    return Failed(what, hint, code=str(said.get("code") or ""), status=status)
