"""One client's connection: reads requests, has them answered, within limits of size and time. What a request means
is the handler's business, who else is connected the server's.

h11 parses and frames (RFC 9112). What it leaves open is closed here: a request with both Content-Length and
Transfer-Encoding, a target that is not a plain path, or a body beyond the limit is refused whole, so that
what was judged is what is executed (Docker CVE-2024-41110, CVE-2026-34040).
"""

import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol
from urllib.parse import parse_qsl

import h11
import trio

from meshd import config
from meshd.api.errors import TimedOut, TooLarge
from meshd.api.exchange import Handler, Request, Response
from meshd.api.peers import Peer
from meshd.errors import BadRequest, Forbidden, MeshdError


class Host(Protocol):
    """What a connection needs of its server (api/http.py)."""

    handle: Handler
    refuse: Callable[[MeshdError], Response]
    body_max_bytes: int
    log: Any
    stopping: bool

    def admits(self, peer: Peer, /) -> bool:
        """Say whether a peer may talk at all."""
        ...

    def waiting(self, seconds: float) -> AbstractContextManager[trio.CancelScope]:
        """Bound a wait that a stopping server may cut short at once."""
        ...

    def silent(self, peer: Peer, /) -> AbstractContextManager[trio.CancelScope]:
        """Bound a wait for a peer's next request, which also ends where its place is needed."""
        ...


class Connection:
    """One client: reads a request, has it answered, and again while both sides want to."""

    def __init__(self, host: Host, stream: trio.SocketStream, sock: socket.socket, peer: Peer) -> None:
        self.host = host
        self.stream = stream
        self.sock = sock
        self.peer = peer
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=config.API_HEADER_MAX_BYTES)
        self.bodiless = False  # the request was HEAD, whose answer has no body (RFC 9110, 9.3.2)

    async def run(self) -> None:
        """Serve until either side is done."""
        while True:
            try:
                request = await self._request()
            except MeshdError as error:
                await self._refuse(error)
                return
            except h11.RemoteProtocolError as error:
                too_large = error.error_status_hint == 431
                what = "request header too large" if too_large else f"not a valid HTTP request: {error}"
                await self._refuse(TooLarge(what) if too_large else BadRequest(what))
                return
            if request is None:
                return
            await self._answer(await self._handled(request))
            if self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
                return
            self.http.start_next_cycle()

    async def _handled(self, request: Request) -> Response:
        """Run the handler; every failure becomes an answer."""
        try:
            return await self.host.handle(request)
        except MeshdError as error:
            return self.host.refuse(error)
        except Exception as error:
            self.host.log.error("request failed", method=request.method, path=request.path, exc_info=error)
            return self.host.refuse(
                MeshdError("meshd failed to answer, this is a fault in meshd", "see its log, and report it")
            )

    # --- reading ----------------------------------------------------------------------------------------
    async def _request(self) -> Request | None:
        """Read one whole request; None when the client is done or idle for too long.

        Raises MeshdError or h11.RemoteProtocolError when it is to be refused.
        """
        head = await self._head()
        if head is None:
            return None
        if not self.host.admits(self.peer):
            raise Forbidden(
                f"uid {self.peer.uid} may not use this socket", "become root, or a member of group meshd"
            )
        names = [name for name, _ in head.headers]
        if b"content-length" in names and b"transfer-encoding" in names:
            raise BadRequest("both Content-Length and Transfer-Encoding given")
        path, query = _target(head.target)
        body = await self._body(head)
        return Request(self.peer, head.method.decode("ascii"), path, query, body)

    async def _head(self) -> h11.Request | None:
        """Wait for a request to begin, then read its head within API_HEADER_S."""
        if not self.http.trailing_data[0]:
            with self.host.silent(self.peer) as scope:
                if not await self._fill():
                    return None
            if scope.cancelled_caught:
                return None
        with trio.move_on_after(config.API_HEADER_S):
            while True:
                event = self.http.next_event()
                if isinstance(event, h11.Request):
                    self.bodiless = event.method == b"HEAD"
                    return event
                if event is not h11.NEED_DATA:
                    return None
                await self._fill()
        raise TimedOut(f"no whole request header within {config.API_HEADER_S:g} s")

    async def _body(self, head: h11.Request) -> bytes:
        """Read a body within API_REQUEST_S and the server's limit of bytes."""
        limit = self.host.body_max_bytes
        too_large = TooLarge(f"request body larger than {limit} bytes")
        for name, value in head.headers:
            if name == b"content-length" and int(value) > limit:
                raise too_large
        if self.http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        body = bytearray()
        with trio.move_on_after(config.API_REQUEST_S):
            while True:
                event = self.http.next_event()
                if event is h11.NEED_DATA:
                    await self._fill()
                elif isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > limit:
                        raise too_large
                else:
                    return bytes(body)
        raise TimedOut(f"no whole request body within {config.API_REQUEST_S:g} s")

    async def _fill(self) -> bool:
        """Read once; False at the end of what the client sends."""
        data = await self.stream.receive_some(config.API_READ_BYTES)
        self.http.receive_data(data)
        return bool(data)

    # --- answering --------------------------------------------------------------------------------------
    async def _answer(self, response: Response) -> None:
        """Send an answer; a stream is the last one on its connection."""
        headers = [("Content-Type", response.content_type), *response.headers]
        if response.stream is not None:
            await self._stream(response, response.stream, [*headers, ("Connection", "close")])
            return
        headers.append(("Content-Length", str(len(response.body))))
        if self.host.stopping:
            headers.append(("Connection", "close"))
        body = b"" if self.bodiless else response.body
        await self._send(
            h11.Response(status_code=response.status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )

    async def _stream(
        self, response: Response, chunks: AsyncIterator[bytes], headers: list[tuple[str, str]]
    ) -> None:
        """Send chunks until they end, the client goes, or the server stops."""
        try:
            await self._send(h11.Response(status_code=response.status, headers=headers))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_gone, nursery.cancel_scope)
                while True:
                    with self.host.waiting(float("inf")) as scope:
                        chunk = await anext(chunks, None)
                    if scope.cancelled_caught or chunk is None:
                        break
                    await self._send(h11.Data(data=chunk))
                await self._send(h11.EndOfMessage())
                nursery.cancel_scope.cancel()
        finally:
            if response.done is not None:
                response.done()

    async def _until_gone(self, scope: trio.CancelScope) -> None:
        """Cancel ``scope`` when the client hangs up. One that only shut down its sending side still reads:
        the kernel reports POLLHUP for the former alone (net/unix/af_unix.c, unix_poll).
        """
        dropped = 0
        while dropped <= config.API_BODY_MAX_BYTES:
            try:
                data = await self.stream.receive_some(config.API_READ_BYTES)
            except trio.BrokenResourceError:
                break
            dropped += len(data)
            if not data:
                if _hung_up(self.sock):
                    break
                await trio.sleep(config.API_LINGER_S)
        scope.cancel()

    async def _refuse(self, error: MeshdError) -> None:
        """Answer what cannot be handled and close; what the client still sends is read and dropped for a
        moment, since closing on unread data makes its write fail before it sees the answer.
        """
        self.host.log.info(
            "audit",
            uid=self.peer.uid,
            pid=self.peer.pid,
            verb="request",
            object="",
            result=error.code,
            error=error.what,
            ms=0,
        )
        if self.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = self.host.refuse(error)
            await self._answer(
                Response(response.status, response.body, headers=(*response.headers, ("Connection", "close")))
            )
        await self.stream.send_eof()
        with trio.move_on_after(config.API_LINGER_S):
            left = 16 * self.host.body_max_bytes
            while left > 0 and (data := await self.stream.receive_some(config.API_READ_BYTES)):
                left -= len(data)

    async def _send(self, *events: h11.Event) -> None:
        """Write events at once, each piece of them within API_WRITE_S. Raises trio.TooSlowError."""
        data = b"".join(self.http.send(event) or b"" for event in events)
        for start in range(0, len(data), config.API_WRITE_BYTES):
            with trio.fail_after(config.API_WRITE_S):
                await self.stream.send_all(data[start : start + config.API_WRITE_BYTES])


def _target(target: bytes) -> tuple[str, dict[str, str]]:
    """Split a request target into path and query. Raises BadRequest unless it is a plain absolute path."""
    path, _, query = target.decode("ascii").partition("?")
    if not path.startswith("/") or path.startswith("//"):
        raise BadRequest("the request target is not a path like /v1/status")
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=config.API_QUERY_FIELDS
        )
    except ValueError:
        raise BadRequest("the query is not of the form name=value&...") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise BadRequest("the query names a field twice")
    return path, fields


def _hung_up(sock: socket.socket) -> bool:
    """Say whether the other end is closed, not only shut for sending."""
    poll = select.poll()
    poll.register(sock, 0)
    return any(mask & (select.POLLHUP | select.POLLERR) for _, mask in poll.poll(0))
