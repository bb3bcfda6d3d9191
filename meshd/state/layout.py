"""Decides which addresses an index of a network stands for. One index serves both families: v4 = base + index,
v6 = base + index, so one allocation and one deed cover both. Knows subnets, gateways and exclusions; must not
know who owns an index or which are in use.
"""

import ipaddress
from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from meshd.config import V6_INDEX_BITS
from meshd.errors import BadRequest
from meshd.model import Item, Network

Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network
Ip = ipaddress.IPv4Address | ipaddress.IPv6Address

QUOTED_MAX_CHARS = 80
"""As much of a caller's text as an error line repeats."""


class IndexSpace(msgspec.Struct, frozen=True):
    """The indices ``[0, size)`` of one network.

    ``prefixes``: at most one per family, v4 first. ``reserved``: sorted indices that are never handed out, with
    the reason at the same place in ``reasons``. ``auto``: half-open index range of automatic choice
    (``--ip-range``); an aligned power of two, and so is ``size``.
    """

    network: bytes
    name: str
    prefixes: tuple[Prefix, ...]
    size: int
    reserved: tuple[int, ...]
    reasons: tuple[str, ...]
    auto: tuple[int, int]

    @classmethod
    def of(cls, item: Item) -> "IndexSpace":
        """Lay out a live NETWORK or LOCAL_NETWORK item. Raises BadRequest where its subnets cannot be laid out."""
        if not isinstance(item.body, Network):
            raise BadRequest(f"network {item.id.hex()[:8]} is removed")
        return cls.build(item.id, item.body)

    @classmethod
    def build(cls, network_id: bytes, network: Network) -> "IndexSpace":
        """Lay out a network. Raises BadRequest: no subnet, more than one of a family, not CIDR, empty range."""
        prefixes = tuple(sorted((_prefix(s.cidr) for s in network.subnets), key=lambda p: p.version))
        for version in (4, 6):
            if sum(p.version == version for p in prefixes) > 1:
                raise BadRequest(
                    f"network {network.name} has more than one IPv{version} subnet; one is supported"
                )
        if not prefixes:
            raise BadRequest(f"network {network.name} has no subnet")
        size = min(_room(prefix, alone=len(prefixes) == 1) for prefix in prefixes)
        why = _reservations(network, prefixes, size)
        reserved = tuple(sorted(why))
        return cls(
            network_id,
            network.name,
            prefixes,
            size,
            reserved,
            tuple(why[index] for index in reserved),
            _auto(network, prefixes, size),
        )

    def index_of(self, ip: str | bytes) -> int:
        """Give the index of an address, text or packed. Raises BadRequest naming the subnets."""
        address = parse_address(ip)
        for prefix in self.prefixes:
            if address.version == prefix.version and address in prefix:
                index = int(address) - int(prefix.network_address)
                if index < self.size:
                    return index
                last = prefix.network_address + (self.size - 1)
                raise BadRequest(
                    f"{address} is beyond what network {self.name} hands out of {prefix}: "
                    f"{prefix.network_address + 1} to {last}"
                )
        raise BadRequest(
            f"{address} is in no subnet of network {self.name} ({self.subnets})",
            "choose one inside, or leave --ip out",
        )

    def index_of_all(self, ips: Sequence[str | bytes]) -> int | None:
        """Give the one index that all of ``ips`` stand for; None where there are none. Raises BadRequest."""
        indices = {self.index_of(ip): ip for ip in ips}
        if len(indices) > 1:
            told = " and ".join(_text(ip) for ip in indices.values())
            index = next(iter(indices))
            raise BadRequest(
                f"{told} do not go together: an endpoint has the same number in every subnet of network {self.name}",
                f"with {_text(indices[index])} goes {', '.join(str(a) for a in self._addresses(index))}",
            )
        return next(iter(indices), None)

    @property
    def subnets(self) -> str:
        """The subnets as text for people."""
        return ", ".join(str(prefix) for prefix in self.prefixes)

    def _addresses(self, index: int) -> tuple[Ip, ...]:
        return tuple(prefix.network_address + index for prefix in self.prefixes)

    def ips(self, index: int) -> tuple[bytes, ...]:
        """Give the packed addresses of an index, v4 before v6."""
        return tuple(address.packed for address in self._addresses(index))

    def texts(self, index: int) -> tuple[str, ...]:
        """Give the addresses of an index with prefix length, v4 before v6: ``10.1.0.2/20``."""
        pairs = zip(self._addresses(index), self.prefixes, strict=True)
        return tuple(f"{address}/{prefix.prefixlen}" for address, prefix in pairs)

    def text(self, index: int) -> str:
        """Name an index for people by its first address."""
        return str(self._addresses(index)[0])

    def block_text(self, start: int, size: int) -> str:
        """Name an aligned block (``size`` a power of two) by its prefix in the first family."""
        prefix = self.prefixes[0]
        return f"{prefix.network_address + start}/{prefix.max_prefixlen - (size.bit_length() - 1)}"

    def why_reserved(self, index: int) -> str | None:
        """Say why an index is never handed out; None where it may be."""
        at = bisect_left(self.reserved, index)
        return self.reasons[at] if at < len(self.reserved) and self.reserved[at] == index else None

    def usable(self, start: int, end: int) -> int:
        """Count the indices in ``[start, end)``, start <= end, that may be handed out."""
        return end - start - (bisect_left(self.reserved, end) - bisect_left(self.reserved, start))

    def auto_part(self, start: int, end: int) -> tuple[int, int]:
        """Cut ``[start, end)`` to the range of automatic choice; empty (equal ends) where they do not meet."""
        low = max(start, self.auto[0])
        return low, max(low, min(end, self.auto[1]))


def parse_address(ip: str | bytes, what: str = "") -> Ip:
    """Read an address, text or packed. Raises BadRequest, which calls it ``what``. A v6 scope (``%eth0``) is
    refused: it means nothing on another host."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        address = None
    if address is None or (isinstance(ip, str) and "%" in ip):
        raise BadRequest(f"{what}{ip[:QUOTED_MAX_CHARS]!r} is not an IPv4 or IPv6 address")
    return address


def _text(ip: str | bytes) -> str:
    return str(ipaddress.ip_address(ip))


def _prefix(cidr: str) -> Prefix:
    try:
        return ipaddress.ip_network(cidr)
    except ValueError as error:
        raise BadRequest(f"subnet {cidr!r}: {error}") from None


def _room(prefix: Prefix, *, alone: bool) -> int:
    """Count the indices a subnet has. A /64 is bounded only where no v4 subnet bounds it."""
    bits = prefix.max_prefixlen - prefix.prefixlen
    return 1 << (min(bits, V6_INDEX_BITS) if prefix.version == 6 and alone else bits)


def _reservations(network: Network, prefixes: Sequence[Prefix], size: int) -> dict[int, str]:
    """Collect what is never handed out; the first reason given for an index stays."""
    why = {0: "the subnet's own address"}
    for prefix in prefixes:
        if prefix.version == 4 and size == prefix.num_addresses:
            why.setdefault(size - 1, "the broadcast address")
    told = [(subnet.gateway, "the gateway") for subnet in network.subnets]
    told += [(ip, "excluded") for ip in network.exclude]
    for text, reason in told:
        address = parse_address(text, f"network {network.name}: ")
        for prefix in prefixes:
            if address.version == prefix.version and address in prefix:
                index = int(address) - int(prefix.network_address)
                if index < size:
                    why.setdefault(index, reason)
    return why


def _auto(network: Network, prefixes: Sequence[Prefix], size: int) -> tuple[int, int]:
    """Meet all ``--ip-range`` prefixes as index ranges. Prefixes nest or are disjoint, so the meeting is one."""
    low, high = 0, size
    for text in network.ip_range:
        inner = _prefix(text)
        for prefix in prefixes:
            if inner.version == prefix.version:
                start = int(inner.network_address) - int(prefix.network_address)
                low, high = max(low, start), min(high, start + inner.num_addresses)
    if low >= high:
        raise BadRequest(
            f"network {network.name}: no address lies in every ip-range ({', '.join(network.ip_range)})"
        )
    return low, high
