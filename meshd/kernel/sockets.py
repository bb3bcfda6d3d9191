"""Which ports of this host its own processes have, by sock_diag. It must not know what is published.

A TCP or SCTP socket has its port while it listens, a UDP socket while it is bound and not connected. Layouts:
linux/inet_diag.h, linux/sock_diag.h.
"""

import errno
import socket
import struct
from typing import NamedTuple

from meshd.errors import KernelError
from meshd.kernel import frames, netlink

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
INET_DIAG_SKV6ONLY = 11
TCP_CLOSE, TCP_LISTEN = 7, 10
_STATES = {6: TCP_LISTEN, 17: TCP_CLOSE, 132: TCP_LISTEN}
_REQUEST = struct.Struct("=BBBxI48x")  # family, protocol, extensions, states, which socket
_ANSWER = struct.Struct(">4x HH 16s 16s 4x 8x")  # source and destination: port, address
_UID_AT = 4 + 48 + 12  # behind it the inode
_ANSWER_BYTES = 72
_MAPPED = bytes(10) + b"\xff\xff"
_UNKNOWN = (
    errno.ENOENT,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.EPROTONOSUPPORT,
)  # a protocol the kernel lacks


class Listener(NamedTuple):
    """``protocol``: IP's number; ``address``: packed, None for every one of ``families``; ``uid``: whose it is;
    ``inode``: what /proc/PID/fd calls it."""

    protocol: int
    families: tuple[int, ...]
    address: bytes | None
    port: int
    uid: int
    inode: int = 0


def listeners() -> list[Listener]:
    """Return what has a port in the current namespace. Raises KernelError."""
    try:
        link = netlink.Netlink(NETLINK_SOCK_DIAG)
    except OSError as error:
        if error.errno in _UNKNOWN:
            return []  # a kernel without sock_diag does not tell
        raise KernelError("reading sockets", errno=error.errno or 0, words=str(error)) from None
    found: list[Listener] = []
    try:
        for protocol, state in _STATES.items():
            for family in (socket.AF_INET, socket.AF_INET6):
                request = _REQUEST.pack(family, protocol, 0, 1 << state)
                try:
                    chunks = link.dump(frames.request(SOCK_DIAG_BY_FAMILY, 0, request))
                except KernelError as error:
                    if error.errno not in _UNKNOWN:
                        raise
                    continue
                for chunk in chunks:
                    found += [
                        _read(protocol, chunk, start, end)
                        for kind, _, start, end in frames.split(chunk)
                        if kind == SOCK_DIAG_BY_FAMILY
                    ]
    finally:
        link.close()
    return found


def _read(protocol: int, chunk: bytes, start: int, end: int) -> Listener:
    start += frames.HEADER_BYTES
    port, _, address, _ = _ANSWER.unpack_from(chunk, start)
    uid, inode = struct.unpack_from("=II", chunk, start + _UID_AT)
    families: tuple[int, ...]
    if chunk[start] == socket.AF_INET:
        families, address = (4,), address[:4]
    elif address.startswith(_MAPPED):
        families, address = (4,), address[12:]
    else:
        only = frames.attributes(chunk, start + _ANSWER_BYTES, end).get(INET_DIAG_SKV6ONLY, b"\0")
        families = (4, 6) if not any(address) and not any(only) else (6,)
    return Listener(protocol, families, address if any(address) else None, port, uid, inode)
