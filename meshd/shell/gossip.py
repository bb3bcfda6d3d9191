"""The only place that mutates a running Node: mutate, drain, arm one timer (stack.md, B1: aioquic, str0m).

Datagrams are drained from the plain socket, up to DRAIN_PACKETS a wakeup with one checkpoint: ``await recvfrom``
a packet costs three times as much (perf.md, 5).
"""

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Callable

import structlog
import trio

from meshd.config import DATAGRAM_MAX_BYTES, DRAIN_PACKETS, UDP_BUFFER_BYTES
from meshd.errors import ConfigError
from meshd.model import Address
from meshd.node import Node, NodeEvent
from meshd.shell.watchdog import Loop
from meshd.wire import filter as packet_filter

log = structlog.get_logger()

_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 10, 23  # linux/in.h, in6.h; not in Python's socket module
_PMTUDISC_PROBE = 3  # DF set, and never mind what the kernel believes of the path
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_INSTRUCTION_BYTES = 8  # struct sock_filter


def bind(address: Address, kind: socket.SocketKind) -> socket.socket:
    """Bind a non-blocking socket of ``kind`` to ``address``. Raises ConfigError in the operator's terms."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER_BYTES)
        sock.bind(tuple(address))
        if kind == socket.SOCK_STREAM:
            sock.listen(128)
    except OSError as error:
        sock.close()
        proto = "TCP" if kind == socket.SOCK_STREAM else "UDP"
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"gossip.port: {proto} {address} is in use by another program; nothing was started",
                f"stop that program (ss -lpn 'sport = :{address.port}' shows it) or set another [gossip] port",
            ) from None
        what = f"cannot use {proto} {address}: {error.strerror}; nothing was started"
        if error.errno == errno.EACCES:
            raise ConfigError(
                f"gossip.port: {what}", "set [gossip] port to 1024 or more: those below need a privilege"
            ) from None
        raise ConfigError(
            f"gossip.bind: {what}", "set [gossip] bind to an address that this host has"
        ) from None
    return sock


def keep_junk_out(sock: socket.socket, tag: bytes) -> None:
    """Have the kernel drop what is no datagram to this session, before it wakes the process (wire/filter.py).
    struct sock_fprog {unsigned short len; struct sock_filter *filter}; needs no privilege."""
    packed = packet_filter.pack(packet_filter.program(tag))
    buffer = ctypes.create_string_buffer(packed, len(packed))
    head = struct.pack("@HP", len(packed) // _INSTRUCTION_BYTES, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, head)


class Gossip:
    """UDP and the timer around one Node."""

    def __init__(
        self,
        node: Node,
        sock: socket.socket,
        on_event: Callable[[NodeEvent], None],
        loop: Loop | None = None,
    ) -> None:
        self.node = node
        self._loop = loop or Loop()
        self._sock = sock
        self._on_event = on_event
        self._timer = trio.CancelScope()
        self.send_errors = 0
        self.sent = self.received = 0
        self._pumping = False
        self._receive_bytes = DATAGRAM_MAX_BYTES
        options: list[tuple[int, int, int]] = [(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)]
        if sock.family == socket.AF_INET6:  # which fragments at the sender, unless told not to
            options = [
                (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE),
                (socket.IPPROTO_IPV6, socket.IPV6_DONTFRAG, 1),
            ]
        self._unfragmented = options
        self._as_usual = [(level, name, sock.getsockopt(level, name)) for level, name, _ in options]

    def now(self) -> float:
        """Monotonic seconds: the only clock the core sees."""
        return trio.current_time()

    def underlay(self, mtu: int) -> None:
        """Say what this host's underlay carries, in bytes: padded probes of that size are sent and taken."""
        self._receive_bytes = max(DATAGRAM_MAX_BYTES, mtu)
        self.node.underlay(mtu, self.now())
        self.pump()

    def rebind(self, sock: socket.socket) -> None:
        """Send and receive by another bound socket from now on; the one before is closed."""
        before, self._sock = self._sock, sock
        trio.lowlevel.notify_closing(before)
        before.close()

    def pump(self) -> None:
        """Send what the node wants sent, act on what happened, and arm the one timer. Call after every change."""
        if self._pumping:
            return  # a handler below changed the node: the loop that called it goes round again
        self._pumping = True
        try:
            while True:
                datagrams, events = self.node.take_datagrams(), self.node.take_events()
                probes = self.node.take_probes()
                if not (datagrams or events or probes):
                    break
                if probes:
                    self._send_unfragmented(probes)
                for datagram, address in datagrams:
                    self._send(datagram, address)
                for event in events:
                    self._on_event(event)
        finally:
            self._pumping = False
        self._timer.deadline = self._due()

    def _send(self, datagram: bytes, address: Address) -> None:
        try:
            self._sock.sendto(datagram, tuple(address))
            self.sent += 1
        except OSError as error:  # a full buffer or no route: probes and digests notice what is missing
            self.send_errors += 1
            if self.send_errors & (self.send_errors - 1) == 0:
                log.warning(
                    "datagram not sent", to=str(address), error=error.strerror, times=self.send_errors
                )

    def _send_unfragmented(self, probes: list[tuple[bytes, Address]]) -> None:
        """Send with DF set, whatever the kernel believes of the path. What it refuses does not get through."""
        for option in self._unfragmented:
            self._sock.setsockopt(*option)
        try:
            for datagram, address in probes:
                with contextlib.suppress(OSError):
                    self._sock.sendto(datagram, tuple(address))
        finally:
            for option in self._as_usual:
                self._sock.setsockopt(*option)

    async def run(self) -> None:
        """Receive and keep time, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            nursery.start_soon(self._keep_time)

    async def _receive(self) -> None:
        while True:
            sock = self._sock
            try:
                await trio.lowlevel.wait_readable(sock)
            except trio.ClosedResourceError:  # by rebind
                continue
            for _ in range(DRAIN_PACKETS):
                try:
                    datagram, source = sock.recvfrom(self._receive_bytes + 1)
                except BlockingIOError:
                    break
                except OSError:  # an ICMP error of an earlier send: nothing was received
                    continue
                self.received += 1
                self.node.receive(datagram, Address(source[0], source[1]), self.now())
            self.pump()

    async def _keep_time(self) -> None:
        self.pump()
        while True:
            self._loop.goes_round()
            self._timer = trio.CancelScope(deadline=self._due())
            await self._sleep(self._timer)
            self.node.tick(self.now())
            self.pump()

    def _due(self) -> float:
        """When the timer goes next: for the node, or because the loop is watched."""
        return min(self.node.deadline(), self._loop.last + self._loop.every_s)

    async def _sleep(self, until: trio.CancelScope) -> None:
        """Sleep until the scope's deadline, which ``pump`` moves meanwhile."""
        with until:
            await trio.sleep_forever()
