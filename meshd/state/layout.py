"""Decides which addresses an index of a network stands for. A network has one or more *spaces*, ranges of indices that
do not meet; in each, one index serves both families, so that one allocation and one deed cover both addresses.

Each subnet has its own fixed rule, address = base + (index - start), and the subnets of a network do not overlap: so an
address is never that of two indices, whatever subnets were added by whom, and who owns the index owns the address.
Knows subnets, gateways and exclusions; must not know who owns an index or which are in use.
"""

import ipaddress
import itertools
from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from meshd.config import V6_INDEX_BITS
from meshd.errors import BadRequest
from meshd.model import Item, Network, Subnet
from meshd.state.vips import vips_of

Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network
Ip = ipaddress.IPv4Address | ipaddress.IPv6Address

QUOTED_MAX_CHARS = 80
"""As much of a caller's text as an error line repeats."""


NETWORKS_KEPT = 4096
"""Networks whose layout is kept beside the record that it was made of: an attach asks for it five times."""

_built: dict[bytes, tuple[Network, "Layout"]] = {}

EXCLUDED = "excluded"
"""Why an address of ``--exclude`` is never handed out."""


class Placed(msgspec.Struct, frozen=True):
    """A subnet, and the index that its own address stands for."""

    prefix: Prefix
    start: int

    @property
    def end(self) -> int:
        """The first index that the subnet has no address for."""
        return self.start + self.prefix.num_addresses

    def address(self, index: int) -> Ip:
        """Give the address of an index in ``[start, end)``."""
        return self.prefix.network_address + (index - self.start)

    def index(self, address: Ip) -> int | None:
        """Give the index of an address; None for one outside."""
        if address.version != self.prefix.version or address not in self.prefix:
            return None
        return self.start + int(address) - int(self.prefix.network_address)


class IndexSpace(msgspec.Struct, frozen=True):
    """The indices ``[start, end)`` of one network.

    ``subnets``: at most one per family, v4 first; each covers all of the space. ``reserved``: sorted indices that are
    never handed out, with the reason at the same place in ``reasons``. ``auto``: half-open index range of automatic
    choice (``--ip-range``); empty, or an aligned power of two as ``size`` is.
    """

    network: bytes
    name: str
    subnets: tuple[Placed, ...]
    start: int
    size: int
    reserved: tuple[int, ...]
    reasons: tuple[str, ...]
    auto: tuple[int, int]

    @property
    def end(self) -> int:
        """The first index after the space."""
        return self.start + self.size

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """The subnets without their place."""
        return tuple(subnet.prefix for subnet in self.subnets)

    def _addresses(self, index: int) -> tuple[Ip, ...]:
        return tuple(subnet.address(index) for subnet in self.subnets)

    def ips(self, index: int) -> tuple[bytes, ...]:
        """Give the packed addresses of an index, v4 before v6."""
        return tuple(address.packed for address in self._addresses(index))

    def texts(self, index: int) -> tuple[str, ...]:
        """Give the addresses of an index with prefix length, v4 before v6: ``10.1.0.2/20``."""
        return tuple(f"{subnet.address(index)}/{subnet.prefix.prefixlen}" for subnet in self.subnets)

    def text(self, index: int) -> str:
        """Name an index for people by its first address."""
        return str(self._addresses(index)[0])

    def block_text(self, start: int, size: int) -> str:
        """Name an aligned block (``size`` a power of two) by its prefix in the first family."""
        first = self.subnets[0]
        return f"{first.address(start)}/{first.prefix.max_prefixlen - (size.bit_length() - 1)}"

    def why_reserved(self, index: int) -> str | None:
        """Say why an index is never handed out; None where it may be."""
        at = bisect_left(self.reserved, index)
        return self.reasons[at] if at < len(self.reserved) and self.reserved[at] == index else None

    def usable(self, start: int, end: int) -> int:
        """Count the indices in ``[start, end)``, start <= end, that may be handed out."""
        return end - start - (bisect_left(self.reserved, end) - bisect_left(self.reserved, start))

    def part(self, start: int, end: int) -> tuple[int, int]:
        """Cut ``[start, end)`` to the space; empty (equal ends) where they do not meet."""
        low = max(start, self.start)
        return low, max(low, min(end, self.end))

    def auto_part(self, start: int, end: int) -> tuple[int, int]:
        """Cut ``[start, end)`` to the range of automatic choice; empty (equal ends) where they do not meet."""
        low = max(start, self.auto[0])
        return low, max(low, min(end, self.auto[1]))


class Layout(msgspec.Struct, frozen=True):
    """All of one network's space, in the order in which addresses are chosen from it."""

    network: bytes
    name: str
    subnets: tuple[Placed, ...]
    spaces: tuple[IndexSpace, ...]

    @classmethod
    def of(cls, item: Item) -> "Layout":
        """Lay out a live NETWORK or LOCAL_NETWORK item. Raises BadRequest where its subnets cannot be laid out."""
        if not isinstance(item.body, Network):
            raise BadRequest(f"network {item.id.hex()[:8]} is removed")
        known = _built.get(item.id)
        if known is not None and known[0] is item.body:
            return known[1]
        layout = cls.build(item.id, item.body)
        if len(_built) >= NETWORKS_KEPT:
            _built.clear()
        _built[item.id] = item.body, layout
        return layout

    @classmethod
    def build(cls, network_id: bytes, network: Network) -> "Layout":
        """Lay out a network. Raises BadRequest: no subnet, not CIDR, two that share indices, an empty range."""
        subnets = tuple(Placed(_prefix(subnet), subnet.start) for subnet in network.subnets)
        if not subnets:
            raise BadRequest(f"network {network.name} has no subnet")
        parts = [_space(network_id, network, subnets, of) for of in _spaces(network, subnets)]
        if all(part.auto[0] == part.auto[1] for part in parts):
            raise BadRequest(
                f"network {network.name}: no address lies in every ip-range ({', '.join(network.ip_range)})"
            )
        return cls(network_id, network.name, subnets, tuple(parts))

    @property
    def end(self) -> int:
        """The first index after all spaces."""
        return max(space.end for space in self.spaces)

    @property
    def text(self) -> str:
        """The subnets as text for people."""
        return ", ".join(str(subnet.prefix) for subnet in self.subnets)

    def space_at(self, index: int) -> IndexSpace | None:
        """Find the space that an index is in; None for one in no space."""
        return next((space for space in self.spaces if space.start <= index < space.end), None)

    def index_of(self, ip: str | bytes) -> int:
        """Give the index of an address, text or packed. Raises BadRequest naming the subnets."""
        address = parse_address(ip)
        for subnet in self.subnets:
            index = subnet.index(address)
            if index is None:
                continue
            if self.space_at(index) is not None:
                return index
            served = [space for space in self.spaces if subnet in space.subnets]
            told = " and ".join(
                f"{subnet.address(s.start + 1)} to {subnet.address(s.end - 1)}" for s in served
            )
            raise BadRequest(
                f"{address} is beyond what network {self.name} hands out of {subnet.prefix}: {told}"
            )
        raise BadRequest(
            f"{address} is in no subnet of network {self.name} ({self.text})",
            "choose one inside, or leave --ip out",
        )

    def index_of_all(self, ips: Sequence[str | bytes]) -> int | None:
        """Give the one index that all of ``ips`` stand for; None where there are none. Raises BadRequest."""
        indices = {self.index_of(ip): ip for ip in ips}
        if len(indices) > 1:
            told = " and ".join(_text(ip) for ip in indices.values())
            if len({parse_address(ip).version for ip in indices.values()}) < len(indices):
                raise BadRequest(
                    f"{told} are too many: an endpoint has one address of a family on network {self.name}",
                    "give one --ip, or one for IPv4 and one for IPv6",
                )
            index = next(iter(indices))
            goes = ", ".join(text.partition("/")[0] for text in self.texts(index))
            raise BadRequest(
                f"{told} do not go together: an endpoint has one number in the subnets of network {self.name}",
                f"with {_text(indices[index])} goes {goes}",
            )
        return next(iter(indices), None)

    def ips(self, index: int) -> tuple[bytes, ...]:
        """Give the packed addresses of an index, v4 before v6; none for one in no space."""
        space = self.space_at(index)
        return space.ips(index) if space is not None else ()

    def texts(self, index: int) -> tuple[str, ...]:
        """Give the addresses of an index with prefix length; none for one in no space."""
        space = self.space_at(index)
        return space.texts(index) if space is not None else ()

    def length_of(self, ip: bytes) -> int:
        """Return the prefix length of the subnet that a packed address lies in; of none, its own."""
        family = [s.prefix for s in self.subnets if s.prefix.max_prefixlen == len(ip) * 8]
        if len({prefix.prefixlen for prefix in family}) == 1:  # asked for 100,000 endpoints at a time
            return family[0].prefixlen
        address = ipaddress.ip_address(ip)
        return next((prefix.prefixlen for prefix in family if address in prefix), len(ip) * 8)


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


def room(prefix: Prefix, *, alone: bool) -> int:
    """Count the indices of a space that a subnet opens. A /64 is bounded only where no v4 subnet bounds it."""
    bits = prefix.max_prefixlen - prefix.prefixlen
    return 1 << (min(bits, V6_INDEX_BITS) if prefix.version == 6 and alone else bits)


def _text(ip: str | bytes) -> str:
    return str(ipaddress.ip_address(ip))


def _prefix(subnet: Subnet) -> Prefix:
    try:
        return ipaddress.ip_network(subnet.cidr)
    except ValueError as error:
        raise BadRequest(f"subnet {subnet.cidr!r}: {error}") from None


def _spaces(network: Network, subnets: Sequence[Placed]) -> list[tuple[Placed, ...]]:
    """Say which subnets make a space: each v4 subnet and, of the v6 ones that cover it, the one that starts with it or
    else the first; and each v6 subnet that starts where no v4 one does. Raises BadRequest where two spaces meet."""
    four = [subnet for subnet in subnets if subnet.prefix.version == 4]
    six = [subnet for subnet in subnets if subnet.prefix.version == 6]
    found: list[tuple[Placed, ...]] = []
    for subnet in subnets:
        if subnet in four:
            covering = [each for each in six if each.start <= subnet.start and subnet.end <= each.end]
            covering.sort(key=lambda each: each.start != subnet.start)
            found.append((subnet, *covering[:1]))
        elif all(each.start != subnet.start for each in four):
            found.append((subnet,))
    ranges = sorted((of[0].start, of[0].start + _size(of)) for of in found)
    if any(first[1] > second[0] for first, second in itertools.pairwise(ranges)):
        told = ", ".join(str(subnet.prefix) for subnet in subnets)
        raise BadRequest(f"network {network.name} has subnets that share indices ({told})")
    return found


def _size(of: Sequence[Placed]) -> int:
    return room(of[0].prefix, alone=len(of) == 1)


def _space(
    network_id: bytes, network: Network, subnets: Sequence[Placed], of: tuple[Placed, ...]
) -> IndexSpace:
    start, size = of[0].start, _size(of)
    why = _reservations(network, subnets, of[0], start, size)
    reserved = tuple(sorted(why))
    auto = _auto(network, of, start, size)
    return IndexSpace(
        network_id, network.name, of, start, size, reserved, tuple(why[index] for index in reserved), auto
    )


def _reservations(
    network: Network, subnets: Sequence[Placed], first: Placed, start: int, size: int
) -> dict[int, str]:
    """Collect what is never handed out; the first reason given for an index stays."""
    why = {start: "the subnet's own address"}
    if first.prefix.version == 4:
        why.setdefault(start + size - 1, "the broadcast address")
    told = [(subnet.gateway, "the gateway") for subnet in network.subnets]
    told += [(ip, EXCLUDED) for ip in network.exclude]
    told += [
        (str(ip), "a virtual address, which endpoints take by themselves") for ip in vips_of(network.options)
    ]
    for text, reason in told:
        address = parse_address(text, f"network {network.name}: ")
        for subnet in subnets:
            index = subnet.index(address)
            if index is not None and start <= index < start + size:
                why.setdefault(index, reason)
    return why


def _auto(network: Network, of: Sequence[Placed], start: int, size: int) -> tuple[int, int]:
    """Meet all ``--ip-range`` prefixes as index ranges. Prefixes nest or are disjoint, so the meeting is one."""
    low, high = start, start + size
    for text in network.ip_range:
        inner = _prefix(Subnet(text, ""))
        for subnet in of:
            at = subnet.index(inner.network_address)
            if at is not None:
                low, high = max(low, at), min(high, at + inner.num_addresses)
    return (low, high) if low < high else (start, start)
