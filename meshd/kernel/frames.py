"""How netlink messages are framed: header, attributes, several in one buffer. It must not know what they are
about, nor any socket. Layouts: linux/netlink.h.
"""

import struct
from collections.abc import Iterator

NLMSG_ERROR, NLMSG_DONE = 2, 3
REQUEST, ACK, DUMP_INTR = 0x1, 0x4, 0x10
REPLACE, EXCL, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
DUMP = 0x300
CAPPED, ACK_TLVS = 0x100, 0x200
NLMSGERR_ATTR_MSG = 1
TYPE_MASK = 0x3FFF  # of an attribute's type: the upper two bits say nested and byte order

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
HEADER_BYTES = HEADER.size
ATTRIBUTE = struct.Struct("=HH")  # length with these 4 bytes, type


def attribute(kind: int, value: bytes) -> bytes:
    """Pack one attribute, padded to 4 bytes."""
    return ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes | memoryview, start: int, end: int) -> dict[int, bytes]:
    """Return the attributes in ``data[start:end]`` by type, the nested and byte-order bits taken off."""
    found: dict[int, bytes] = {}
    while start + 4 <= end:
        size, kind = ATTRIBUTE.unpack_from(data, start)
        if size < 4 or start + size > end:
            break
        found[kind & TYPE_MASK] = bytes(data[start + 4 : start + size])
        start += (size + 3) & ~3
    return found


def request(kind: int, flags: int, body: bytes) -> bytes:
    """Pack one request; ``Netlink`` numbers it."""
    return HEADER.pack(HEADER_BYTES + len(body), kind, REQUEST | flags, 0, 0) + body


def split(chunk: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Walk a received buffer: (type, flags, start, end) of each message, the header included."""
    offset, size = 0, len(chunk)
    while offset + HEADER_BYTES <= size:
        length, kind, flags, _, _ = HEADER.unpack_from(chunk, offset)
        if length < HEADER_BYTES:
            break
        yield kind, flags, offset, offset + length
        offset += (length + 3) & ~3
