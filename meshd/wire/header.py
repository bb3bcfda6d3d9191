"""The 24 bytes in front of every datagram and of a stream's greeting, and the tags in them.

    version 1 | type 1 | key id 2 | destination tag 4 | source tag 4 | session tag 4 | counter 8

The last 12 bytes are the GCM nonce; all 24 are authenticated. Big endian. The tags are drawn from the
session, so they link the packets of one start of a host and say no more about it.
"""

import enum
import hashlib
import struct

from meshd.config import HEADER_BYTES
from meshd.model import SessionId

VERSION = 0x51
TAG_SIZE = 4
DST_TAG_OFFSET = 4
NOBODY = bytes(TAG_SIZE)
"""Destination tag of greetings: the receiver's session is not known yet."""

PREFIX = struct.Struct(">BBH")
"""Version, type, key id."""

SOURCE = slice(8, 16)
"""Source tag and session tag: what a sender's session is found by."""

NONCE = slice(12, HEADER_BYTES)
NONCE_BYTES = 12
COUNTER = slice(16, HEADER_BYTES)
COUNTER_BYTES = 8


class Type(enum.IntEnum):
    """What follows the header. Stream types are in no datagram, so that neither can pass for the other."""

    DATA = 1
    HELLO = 2
    HELLO_ACK = 3
    WHO = 4
    STREAM_HELLO = 5
    STREAM_ANSWER = 6


def source_tags(session: SessionId) -> bytes:
    """Source tag (4 bytes) and session tag (4 bytes) of a session.

    A host's source tag is also the destination tag by which others address it: who cannot read a datagram
    can still address its sender (WHO), and the sender's socket filter lets the answer in.
    """
    tags = hashlib.sha256(b"meshd/1 tags" + session).digest()[:8]
    if tags[:TAG_SIZE] == NOBODY:  # 0 means "nobody yet"
        return b"\x00\x00\x00\x01" + tags[TAG_SIZE:]
    return tags
