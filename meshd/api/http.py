"""HTTP/1.1 over unix sockets: which connections are taken, and that none of them waits for another (each client
is a task of its own). What is read from and written to one is api/connection.py's business.
"""

import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import h11
import structlog
import trio

from meshd import config
from meshd.api.connection import Connection
from meshd.api.errors import body_of, status_of
from meshd.api.exchange import JSON, Handler, Response, error_response
from meshd.api.peers import Peer, credentials
from meshd.errors import MeshdError, Unavailable
from meshd.shell.watchdog import Loop


def _canned(error: MeshdError) -> bytes:
    """Make a whole answer that needs no parser state, for a connection that is not taken."""
    body = body_of(error)
    head = f"HTTP/1.1 {status_of(error)} \r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


_BUSY = _canned(
    Unavailable(
        "too many connections to this socket", "close idle ones, or try again in a moment", code="busy"
    )
)
_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Server:
    """Serves any number of listening unix sockets with one handler.

    ``handle`` answers requests; a MeshdError it raises becomes what ``refuse`` makes of it, by default its JSON,
    anything else too, as a fault of meshd's, and a log line with the traceback. ``admits`` says of a peer whether it may
    talk at all; others are refused and closed.
    ``loop`` is told that connections are being taken.
    """

    def __init__(
        self,
        handle: Handler,
        admits: Callable[[Peer], bool],
        *,
        peer_of: Callable[[socket.socket], Peer] = credentials,
        log: Any = None,
        loop: Loop | None = None,
        refuse: Callable[[MeshdError], Response] = error_response,
        body_max_bytes: int = config.API_BODY_MAX_BYTES,
        connections: int = config.API_CONNECTIONS,
    ) -> None:
        self.handle = handle
        self._loop = loop or Loop()
        self.admits = admits
        self.log = log if log is not None else structlog.get_logger("meshd.api")
        self.refuse = refuse
        self.body_max_bytes = body_max_bytes
        self.stopping = False
        self._connections = connections
        self._peer_of = peer_of
        self._taken: dict[int, int] = {}
        self._waiting: set[trio.CancelScope] = set()
        self._silent: dict[trio.CancelScope, tuple[int, float]] = {}  # the oldest first: whose, since when

    async def serve(
        self,
        listeners: Sequence[socket.socket],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until ``stop``; then let requests under way finish within API_STOP_S and return. The
        listening sockets stay open: they are their owner's to close.
        """
        async with trio.open_nursery() as clients:
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(self._accept, listener, clients)
                task_status.started()
            clients.cancel_scope.deadline = trio.current_time() + config.API_STOP_S

    def stop(self) -> None:
        """Take no more connections, close idle ones, end streams with a proper last chunk."""
        self.stopping = True
        for scope in tuple(self._waiting):
            scope.cancel()

    @contextmanager
    def waiting(self, seconds: float) -> Iterator[trio.CancelScope]:
        """Bound a wait that ``stop`` may cut short at once."""
        with trio.CancelScope(deadline=trio.current_time() + seconds) as scope:
            self._waiting.add(scope)
            if self.stopping:
                scope.cancel()
            try:
                yield scope
            finally:
                self._waiting.discard(scope)

    @contextmanager
    def silent(self, peer: Peer) -> Iterator[trio.CancelScope]:
        """Bound a wait for a peer's next request, which also ends where its place is needed."""
        with self.waiting(config.API_IDLE_S) as scope:
            self._silent[scope] = (peer.uid, trio.current_time())
            try:
                yield scope
            finally:
                self._silent.pop(scope, None)

    async def _accept(self, listener: socket.socket, clients: trio.Nursery) -> None:
        """Take connections; nothing here waits for a client (Calico Typha CVE-2023-41378)."""
        while not self.stopping:
            self._loop.goes_round()
            with self.waiting(self._loop.every_s) as scope:
                await trio.lowlevel.wait_readable(listener)
            if scope.cancelled_caught:  # stopping, or nobody came
                continue
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                if error.errno not in _SHORTAGE:
                    raise
                self.log.warning("api cannot accept", error=error.strerror)
                await trio.sleep(config.API_ACCEPT_PAUSE_S)
                continue
            sock.setblocking(False)
            try:
                peer = self._peer_of(sock)
            except OSError:
                sock.close()
                continue
            if self._take(peer.uid):
                clients.start_soon(self._client, sock, peer)
            else:
                _turn_away(sock)
                self.log.warning(
                    "audit", uid=peer.uid, pid=peer.pid, verb="connect", object="", result="busy", ms=0
                )

    def _take(self, uid: int) -> bool:
        """Count a connection in, or say that there is no place for it. Root is bound by the total alone. The place of
        one that ends now for this one is free in a moment."""
        total = sum(self._taken.values())
        if uid == 0:
            free = total < self._connections
        else:
            others = total - self._taken.get(0, 0)
            free = (
                total < self._connections
                and others < self._connections - config.API_CONNECTIONS_FOR_ROOT
                and self._taken.get(uid, 0) < config.API_CONNECTIONS_PER_UID
            )
        taken = free or self._shed(uid)
        if taken:
            self._taken[uid] = self._taken.get(uid, 0) + 1
        return taken

    def _shed(self, uid: int) -> bool:
        """End the connection that has been silent for longest, if for so long that it is not about to speak: of the
        same user, or anybody's for root. Say whether there was one."""
        since_at_most = trio.current_time() - config.API_HEADER_S
        for scope, (owner, since) in self._silent.items():
            if since > since_at_most:
                break
            if uid in (0, owner):
                del self._silent[scope]
                scope.cancel()
                return True
        return False

    def _release(self, uid: int) -> None:
        self._taken[uid] -= 1
        if not self._taken[uid]:
            del self._taken[uid]

    async def _client(self, sock: socket.socket, peer: Peer) -> None:
        """Serve one connection to its end; whatever happens here stays here."""
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        try:
            await Connection(self, stream, sock, peer).run()
        except* (
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            trio.TooSlowError,
            h11.LocalProtocolError,
        ):
            pass  # it hung up, or takes its answer too slowly
        except* Exception as group:
            self.log.error("api connection failed", uid=peer.uid, pid=peer.pid, exc_info=group)
        finally:
            self._release(peer.uid)
            await trio.aclose_forcefully(stream)


def _turn_away(sock: socket.socket) -> None:
    """Say no without a task and without waiting."""
    with sock:
        try:
            sock.send(_BUSY)
        except OSError:
            return
