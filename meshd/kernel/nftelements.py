"""How elements of sets and maps are said to nf_tables, and read from it. It must not know which there should be.

One batch is one transaction: all of it or nothing, in one commit that counts the ruleset's generation up by one.
Layouts: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h.
"""

import itertools
import struct
from collections.abc import Iterator, Mapping

from meshd.config import NFT_ELEMENTS_A_MESSAGE
from meshd.kernel import frames
from meshd.plan.elements import SETS, Element

SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
NFT_MSG_NEWSETELEM, NFT_MSG_GETSETELEM, NFT_MSG_DELSETELEM = 12, 13, 14
NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFTA_LIST_ELEM = 1
NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA = 1, 2
NFTA_DATA_VALUE = 1
NESTED = 0x8000
FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}

_NFGENMSG = struct.Struct("=BBH")  # family, version, resource id
BODY_BYTES = frames.HEADER_BYTES + _NFGENMSG.size


def head(family: int = 0, resource: int = 0) -> bytes:
    """Pack the header that follows netlink's in every message of nfnetlink."""
    return _NFGENMSG.pack(family, 0, resource)


def begin() -> bytes:
    """Pack the message that opens a batch."""
    return frames.request(
        NFNL_MSG_BATCH_BEGIN, 0, head(0, struct.unpack("=H", struct.pack(">H", SUBSYSTEM))[0])
    )


def end() -> bytes:
    """Pack the message that closes a batch and has it committed."""
    return frames.request(
        NFNL_MSG_BATCH_END, 0, head(0, struct.unpack("=H", struct.pack(">H", SUBSYSTEM))[0])
    )


def put(table: str, elements: Mapping[Element, bytes]) -> list[bytes]:
    """Pack the messages that add elements, with their data where the set is a map."""
    return _messages(NFT_MSG_NEWSETELEM, frames.CREATE, table, elements)


def delete(table: str, elements: Mapping[Element, bytes]) -> list[bytes]:
    """Pack the messages that delete elements."""
    return _messages(NFT_MSG_DELSETELEM, 0, table, elements)


def dump_request(table: str, name: str) -> bytes:
    """Pack the dump request for one set."""
    return frames.request(
        SUBSYSTEM << 8 | NFT_MSG_GETSETELEM, 0, head(FAMILIES[SETS[name].family]) + _where(table, name)
    )


def parse(name: str, chunk: bytes) -> Iterator[tuple[Element, bytes]]:
    """Read (element, data) of a received buffer of the dump of one set."""
    for kind, _, start, stop in frames.split(chunk):
        if kind != SUBSYSTEM << 8 | NFT_MSG_NEWSETELEM:
            continue
        listed = frames.attributes(chunk, start + BODY_BYTES, stop).get(NFTA_SET_ELEM_LIST_ELEMENTS, b"")
        for one in _list(listed):
            fields = frames.attributes(one, 0, len(one))
            yield (
                Element(name, _value(fields.get(NFTA_SET_ELEM_KEY, b""))),
                _value(fields.get(NFTA_SET_ELEM_DATA, b"")),
            )


def _messages(kind: int, flags: int, table: str, elements: Mapping[Element, bytes]) -> list[bytes]:
    messages = []
    for name, group in itertools.groupby(sorted(elements), lambda element: element.set):
        for some in _chunks(list(group)):
            packed = b"".join(_element(element, elements[element]) for element in some)
            body = _where(table, name) + frames.attribute(NFTA_SET_ELEM_LIST_ELEMENTS | NESTED, packed)
            messages.append(
                frames.request(SUBSYSTEM << 8 | kind, flags, head(FAMILIES[SETS[name].family]) + body)
            )
    return messages


def _chunks(elements: list[Element]) -> Iterator[list[Element]]:
    for start in range(0, len(elements), NFT_ELEMENTS_A_MESSAGE):
        yield elements[start : start + NFT_ELEMENTS_A_MESSAGE]


def _where(table: str, name: str) -> bytes:
    return frames.attribute(NFTA_SET_ELEM_LIST_TABLE, table.encode() + b"\0") + frames.attribute(
        NFTA_SET_ELEM_LIST_SET, name.encode() + b"\0"
    )


def _element(element: Element, data: bytes) -> bytes:
    packed = frames.attribute(NFTA_SET_ELEM_KEY | NESTED, frames.attribute(NFTA_DATA_VALUE, element.key))
    if data:
        packed += frames.attribute(NFTA_SET_ELEM_DATA | NESTED, frames.attribute(NFTA_DATA_VALUE, data))
    return frames.attribute(NFTA_LIST_ELEM | NESTED, packed)


def _list(data: bytes) -> Iterator[bytes]:
    """Walk attributes of one type, which ``frames.attributes`` would keep the last of."""
    offset = 0
    while offset + 4 <= len(data):
        size, _ = frames.ATTRIBUTE.unpack_from(data, offset)
        if size < 4:
            return
        yield data[offset + 4 : offset + size]
        offset += (size + 3) & ~3


def _value(nested: bytes) -> bytes:
    return frames.attributes(nested, 0, len(nested)).get(NFTA_DATA_VALUE, b"")
