"""The sets and maps of our nftables tables, and their elements as values: what grows with networks, endpoints and
published ports is an element, never a rule, so that one more costs the same at 10 and at 10,000.

Decides the sets' types and how an element is written as text for nft(8). Keys and data are the bytes that the kernel
holds, so that a dump compares without conversion: each field in network order, padded to 4 bytes where a key has more
than one. Must not know which elements there should be.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from meshd.model import text_ip, text_mac

IFNAME_BYTES = 16
FIELD_BYTES = 4
"""Fields of a concatenation start at multiples of this: nf_tables' 32-bit registers."""

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


class Element(NamedTuple):
    """What an element is filed under: its set's name and its key, as bytes. Its data, b"" in a set, goes beside it."""

    set: str
    key: bytes


Elements = dict[Element, bytes]


class Field(NamedTuple):
    """A part of a key or of data: ``size`` in bytes, and how nft writes it."""

    size: int
    text: Callable[[bytes], str]


FIELDS: dict[str, Field] = {
    "ifname": Field(IFNAME_BYTES, lambda value: f'"{value.rstrip(bytes(1)).decode()}"'),
    "fib saddr oifname": Field(IFNAME_BYTES, lambda value: f'"{value.rstrip(bytes(1)).decode()}"'),
    "ether_addr": Field(6, text_mac),
    "ipv4_addr": Field(4, text_ip),
    "ipv6_addr": Field(16, text_ip),
    "inet_proto": Field(1, lambda value: _PROTOCOL_NAMES[value[0]]),
    "inet_service": Field(2, lambda value: str(int.from_bytes(value, "big"))),
    "@th,96,24": Field(3, lambda value: f"0x{value.hex()}"),  # of a UDP packet of VXLAN: its VNI
    "@th,64,128": Field(16, lambda value: f"0x{value.hex()}"),  # of neighbour discovery: its target
    "@ll,48,64": Field(8, lambda value: f"0x{value.hex()}"),  # of a frame: its source MAC and its type
    "@nh,96,32": Field(4, lambda value: f"0x{value.hex()}"),  # of an IPv4 packet: its source
    "@nh,64,128": Field(16, lambda value: f"0x{value.hex()}"),  # of an IPv6 packet: its source
}


class SetSpec(NamedTuple):
    """A set, or with ``data`` a map. ``key`` and ``data`` name FIELDS."""

    family: str
    key: tuple[str, ...]
    data: tuple[str, ...] = ()


SETS: dict[str, SetSpec] = {
    "bridges": SetSpec("inet", ("ifname",)),
    "ways": SetSpec("inet", ("fib saddr oifname",)),
    "internal": SetSpec("inet", ("ifname",)),
    "same": SetSpec("inet", ("ifname", "ifname")),
    "apart": SetSpec("inet", ("ifname", "ifname")),
    "selves4": SetSpec("inet", ("ipv4_addr", "ipv4_addr")),
    "selves6": SetSpec("inet", ("ipv6_addr", "ipv6_addr")),
    "members4": SetSpec("inet", ("ipv4_addr",)),
    "members6": SetSpec("inet", ("ipv6_addr",)),
    "vnis": SetSpec("inet", ("@th,96,24",)),
    "publish4": SetSpec("inet", ("ipv4_addr", "inet_proto", "inet_service"), ("ipv4_addr", "inet_service")),
    "publish6": SetSpec("inet", ("ipv6_addr", "inet_proto", "inet_service"), ("ipv6_addr", "inet_service")),
    "everywhere4": SetSpec("inet", ("inet_proto", "inet_service"), ("ipv4_addr", "inet_service")),
    "everywhere6": SetSpec("inet", ("inet_proto", "inet_service"), ("ipv6_addr", "inet_service")),
    "ports": SetSpec("bridge", ("ifname",)),
    "own": SetSpec("bridge", ("ifname",)),
    "loops": SetSpec("bridge", ("ifname", "ifname")),
    "macs": SetSpec("bridge", ("ifname", "ether_addr")),
    "ips4": SetSpec("bridge", ("ifname", "@ll,48,64", "@nh,96,32")),
    "ips6": SetSpec("bridge", ("ifname", "@ll,48,64", "@nh,64,128")),
    "targets4": SetSpec("bridge", ("ifname", "ipv4_addr")),
    "targets6": SetSpec("bridge", ("ifname", "@th,64,128")),
    "vips4": SetSpec("bridge", ("ipv4_addr",)),
    "vips6": SetSpec("bridge", ("ipv6_addr",)),
}
"""Every set of ours. Rules use no others but anonymous ones, and not ``vips4`` and ``vips6``, which say of an address that
it is no endpoint's own (tracked.py)."""


def _padded(size: int) -> int:
    return -(-size // FIELD_BYTES) * FIELD_BYTES


def _pack(kinds: tuple[str, ...], values: tuple[bytes, ...]) -> bytes:
    sizes = [FIELDS[kind].size for kind in kinds]
    if len(kinds) == 1:
        return values[0].ljust(sizes[0], b"\0")
    return b"".join(value.ljust(_padded(size), b"\0") for value, size in zip(values, sizes, strict=True))


def element(name: str, *key: bytes) -> Element:
    """Make the element of a set: ``key`` field by field, in network order, a device's name without padding."""
    return Element(name, _pack(SETS[name].key, key))


def virtual(ip: bytes) -> Element:
    """Make the element that says of an address, packed, that it is virtual."""
    return element("vips4" if len(ip) == 4 else "vips6", ip)


def data(name: str, *values: bytes) -> bytes:
    """Pack what a map's element leads to, field by field."""
    return _pack(SETS[name].data, values)


def key_fields(of: Element) -> list[bytes]:
    """Return an element's key field by field, as ``element`` was given it (a device's name padded)."""
    return _unpack(SETS[of.set].key, of.key)


def value_fields(of: Element, value: bytes) -> list[bytes]:
    """Return what a map's element leads to field by field, as ``data`` was given it."""
    return _unpack(SETS[of.set].data, value)


def _unpack(kinds: tuple[str, ...], packed: bytes) -> list[bytes]:
    found, offset = [], 0
    for kind in kinds:
        size = FIELDS[kind].size
        found.append(packed[offset : offset + size])
        offset += _padded(size)
    return found


def device(of: Element) -> str:
    """Return the device that an element is about, or ""."""
    if "ifname" not in SETS[of.set].key[0]:
        return ""
    return of.key[:IFNAME_BYTES].rstrip(b"\0").decode(errors="replace")


def text(of: Element, value: bytes = b"") -> str:
    """Write an element as nft does between braces."""
    spec = SETS[of.set]
    said = _text(spec.key, of.key)
    return f"{said} : {_text(spec.data, value)}" if spec.data and value else said


def _text(kinds: tuple[str, ...], packed: bytes) -> str:
    fields = zip(kinds, _unpack(kinds, packed), strict=True)
    return " . ".join(FIELDS[kind].text(value) for kind, value in fields)


def declarations(family: str) -> Iterable[str]:
    """Yield the empty sets and maps of a family's table as text."""
    for name, spec in SETS.items():
        if spec.family != family:
            continue
        sort = "map" if spec.data else "set"
        unnamed = any(
            kind[0] == "@" or " " in kind for kind in spec.key
        )  # nft knows no name for these types, only their like
        like = ("iifname" if kind == "ifname" else kind for kind in spec.key)
        kind = f"typeof {_join(like)}" if unnamed else f"type {_join(spec.key)}"
        leads = f" : {_join(spec.data)}" if spec.data else ""
        yield f"\t{sort} {name} {{\n\t\t{kind}{leads}\n\t}}\n"


def _join(kinds: Iterable[str]) -> str:
    return " . ".join(kinds)


def commands(elements: Mapping[Element, bytes], table: str) -> str:
    """Write the nft commands that add elements to the sets of ``table``, a line a set, in a settled order."""
    by_set: dict[str, list[str]] = {}
    for of in sorted(elements):
        by_set.setdefault(of.set, []).append(text(of, elements[of]))
    return "".join(
        f"add element {SETS[name].family} {table} {name} {{ {', '.join(listed)} }}\n"
        for name, listed in by_set.items()
    )
