"""The bodies of the greetings, by which two hosts learn each other's session: HELLO, HELLO_ACK and WHO.

    HELLO      id 16 | session 16 | incarnation 8 | challenge 16 | zeros to the size of a HELLO_ACK
    HELLO_ACK  id 16 | session 16 | challenge 16 | incarnation known of you 8 | my incarnation 8
    WHO        nonce 12 of the datagram that could not be read

A HELLO is as long as its answer and a WHO no longer than any datagram that carries a probe, so that nobody
can use a host to multiply traffic. Bytes beyond those named are ignored, so that a newer host can add some.
Decides layout only; wire/seal.py decides whom to believe.
"""

import struct
from typing import NamedTuple

from meshd.model import HostId, SessionId
from meshd.wire.errors import WireError
from meshd.wire.header import NONCE_BYTES

CHALLENGE_BYTES = 16
_HELLO = struct.Struct(">16s16sQ16s")
_ACK = struct.Struct(">16s16s16sQQ")
HELLO_BODY_BYTES = _ACK.size


class Hello(NamedTuple):
    """Who starts, in which session, at which incarnation."""

    host: HostId
    session: SessionId
    incarnation: int
    challenge: bytes


class HelloAck(NamedTuple):
    """Who answers; ``known``: the incarnation at which it knows the asker, 0 for not at all."""

    host: HostId
    session: SessionId
    challenge: bytes
    known: int
    incarnation: int


def pack_hello(hello: Hello) -> bytes:
    """Lay out a HELLO's body."""
    return _HELLO.pack(*hello).ljust(HELLO_BODY_BYTES, b"\0")


def unpack_hello(body: bytes) -> Hello:
    """Read a HELLO's body. Raises WireError when it is shorter than a HELLO_ACK's."""
    if len(body) < HELLO_BODY_BYTES:
        raise WireError("malformed", "HELLO")
    return Hello(*_HELLO.unpack_from(body))


def pack_ack(ack: HelloAck) -> bytes:
    """Lay out a HELLO_ACK's body."""
    return _ACK.pack(*ack)


def unpack_ack(body: bytes) -> HelloAck:
    """Read a HELLO_ACK's body. Raises WireError when it is too short."""
    if len(body) < _ACK.size:
        raise WireError("malformed", "HELLO_ACK")
    return HelloAck(*_ACK.unpack_from(body))


def unpack_who(body: bytes) -> bytes:
    """Read a WHO's body: the nonce of a datagram. Raises WireError when it is too short."""
    if len(body) < NONCE_BYTES:
        raise WireError("malformed", "WHO")
    return body[:NONCE_BYTES]
