"""What ``--publish [IP:]HOSTPORT:PORT[/PROTO]`` says, ranges included. Decides the syntax, the one way in which a
publication is written down, and which two exclude each other. Must not know any host's addresses or sockets.

0.0.0.0 and [::] stand for every address of one family; no address for every one of both.
"""

import ipaddress
import re
from collections.abc import Iterator

import msgspec

from meshd.config import PUBLISHED_PORTS_MAX
from meshd.errors import BadRequest
from meshd.plan.elements import PROTOCOLS

_PORTS = r"(\d{1,5})(?:-(\d{1,5}))?"
_SYNTAX = re.compile(rf"(?:(\[[0-9a-fA-F:.]+\]|[0-9.]+):)?{_PORTS}:{_PORTS}(?:/([a-z]+))?", re.ASCII)
_HINT = "[IP:]HOSTPORT:PORT[/tcp|udp|sctp], e.g. 8080:80 or 192.0.2.1:8000-8009:80-89/udp"
_NAMES = {number: name for name, number in PROTOCOLS.items()}


class Publication(msgspec.Struct, frozen=True):
    """``family``: 4, 6 or 0 for both; ``address``: packed, None for every one of the family. ``first`` and ``inner``:
    the lowest port on the host and in the container, of ``count`` each. ``protocol``: IP's number."""

    family: int
    address: bytes | None
    first: int
    inner: int
    count: int
    protocol: int

    @classmethod
    def parse(cls, text: str) -> "Publication":
        """Read it. Raises BadRequest, one line."""
        match = _SYNTAX.fullmatch(text)
        if match is None:
            raise BadRequest(f"published: {text[:80]!r} is not of the form {_HINT}")
        address, first, last, inner, inner_last, protocol = match.groups()
        if protocol is not None and protocol not in PROTOCOLS:
            raise BadRequest(f"published: {text[:80]!r}: protocol {protocol} is not one of tcp, udp, sctp")
        count = _count(text, int(first), int(last or first))
        if count != _count(text, int(inner), int(inner_last or inner)):
            raise BadRequest(f"published: {text[:80]!r}: the two ranges differ in length")
        if count > PUBLISHED_PORTS_MAX:
            raise BadRequest(
                f"published: {text[:80]!r}: {count} ports are more than {PUBLISHED_PORTS_MAX}",
                "an address of the underlay on the endpoint serves all ports",
            )
        family, packed = _address(text, address)
        return cls(family, packed, int(first), int(inner), count, PROTOCOLS[protocol or "tcp"])

    def __str__(self) -> str:
        """Write it as it is kept and shown: protocol named, ranges only where there is more than one port."""
        if self.address is not None:
            ip = ipaddress.ip_address(self.address)
            where = f"[{ip}]:" if ip.version == 6 else f"{ip}:"
        else:
            where = {0: "", 4: "0.0.0.0:", 6: "[::]:"}[self.family]
        return f"{where}{self._range(self.first)}:{self._range(self.inner)}/{_NAMES[self.protocol]}"

    def _range(self, first: int) -> str:
        return str(first) if self.count == 1 else f"{first}-{first + self.count - 1}"

    def ports(self) -> Iterator[tuple[int, int]]:
        """Yield (port on the host, port in the container)."""
        yield from zip(
            range(self.first, self.first + self.count),
            range(self.inner, self.inner + self.count),
            strict=True,
        )

    def families(self) -> tuple[int, ...]:
        """Return 4, 6 or both."""
        return (self.family,) if self.family else (4, 6)

    def clash(self, other: "Publication") -> int | None:
        """Return a port of the host that both want, or None."""
        if self.protocol != other.protocol or not set(self.families()) & set(other.families()):
            return None
        if self.address is not None and other.address is not None and self.address != other.address:
            return None
        low = max(self.first, other.first)
        return low if low < min(self.first + self.count, other.first + other.count) else None


def _count(text: str, first: int, last: int) -> int:
    if not 1 <= first <= last <= 65535:
        raise BadRequest(f"published: {text[:80]!r}: ports go from 1 to 65535, the lower one first")
    return last - first + 1


def _address(text: str, said: str | None) -> tuple[int, bytes | None]:
    if said is None:
        return 0, None
    try:
        ip = ipaddress.ip_address(said.strip("[]"))
    except ValueError:
        raise BadRequest(f"published: {text[:80]!r}: {said} is not an address") from None
    if (ip.version == 6) is not said.startswith("["):
        raise BadRequest(f"published: {text[:80]!r}: write a v6 address in [ ], a v4 one without")
    if ip.is_multicast:
        raise BadRequest(f"published: {text[:80]!r}: {ip} is not a host's address")
    if ip.version == 6 and ip.is_loopback:
        raise BadRequest(
            f"published: {text[:80]!r}: the kernel does not route ::1 to a container",
            "publish on 127.0.0.1 instead",
        )
    return ip.version, None if ip.is_unspecified else ip.packed


def parse_all(texts: tuple[str, ...]) -> tuple[Publication, ...]:
    """Read several, each once. Raises BadRequest, also where two clash or all together are too many."""
    found = tuple(dict.fromkeys(map(Publication.parse, texts)))
    for index, one in enumerate(found):
        for other in found[:index]:
            port = one.clash(other)
            if port is not None:
                raise BadRequest(f"published: {other} and {one} both want port {port}")
    total = sum(publication.count for publication in found)
    if total > PUBLISHED_PORTS_MAX:
        raise BadRequest(f"published: {total} ports of one endpoint are more than {PUBLISHED_PORTS_MAX}")
    return found
