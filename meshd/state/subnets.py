"""Decides the subnets, gateways, ranges and exclusions of a new network: checks what the caller gave and fills in
the rest. Knows prefixes and what is taken in words; must not know where requests come from or who owns a pool.
"""

import ipaddress
import itertools
from collections.abc import Mapping, Sequence

import msgspec

from meshd.config import EXCLUDE_MAX, POOL_MAX_BITS, SUBNETS_MAX
from meshd.errors import BadRequest, Conflict
from meshd.model import Network, Subnet
from meshd.state import vips
from meshd.state.layout import QUOTED_MAX_CHARS, Ip, Layout, Placed, Prefix, parse_address, room
from meshd.state.pools import Taken, overlaps

FORBIDDEN = tuple(
    (ipaddress.ip_network(prefix), what)
    for prefix, what in (
        ("0.0.0.0/8", "this-network addresses (RFC 1122)"),
        ("127.0.0.0/8", "loopback addresses"),
        ("169.254.0.0/16", "link-local addresses"),
        ("224.0.0.0/4", "multicast addresses"),
        ("240.0.0.0/4", "reserved addresses (RFC 1112)"),
        ("::/8", "loopback and IPv4-mapped addresses (RFC 4291)"),
        ("fe80::/10", "link-local addresses"),
        ("ff00::/8", "multicast addresses"),
    )
)
"""What no endpoint can have as its address."""

OTHER_GATEWAY = "choose an address between the first and the last of the subnet, or leave --gateway out"


class Wanted(msgspec.Struct, frozen=True):
    """What the caller said about addresses, as text."""

    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    ip_range: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


def parse_prefix(text: str, what: str) -> Prefix:
    """Read strict CIDR text. Raises BadRequest showing the right form; ``what`` names the field."""
    quoted, form = f"{what} {text[:QUOTED_MAX_CHARS]!r}", "write it like 10.1.0.0/24"
    address, slash, length = text.partition("/")
    if not slash:
        raise BadRequest(f"{quoted} has no prefix length", form)
    try:
        loose = ipaddress.ip_network(text, strict=False)
    except ValueError:
        loose = None
    if loose is None or "%" in address or not (length.isascii() and length.isdigit()):
        raise BadRequest(f"{quoted} is not an address with a prefix length", form)
    given = ipaddress.ip_address(address)
    if given != loose.network_address:
        raise BadRequest(f"{what} {given}/{loose.prefixlen} has host bits set", f"the prefix is {loose}")
    return loose


def parse_subnets(texts: Sequence[str], what: str = "subnet") -> list[Prefix]:
    """Read ``--subnet``: v4 first, each family in the order given, neither too many, too large, too small nor
    unusable, no two that overlap. ``what`` names the flag."""
    if len(texts) > SUBNETS_MAX:
        raise BadRequest(
            f"{len(texts)} subnets; a network has at most {SUBNETS_MAX}", "make a second network"
        )
    prefixes = sorted((_subnet(text, what) for text in texts), key=lambda prefix: prefix.version)
    for first, second in itertools.combinations(prefixes, 2):
        if first.version == second.version and first.overlaps(second):
            raise BadRequest(f"{what} {first} overlaps {what} {second}", "give subnets that share no address")
    return prefixes


def _subnet(text: str, what: str) -> Prefix:
    prefix = parse_prefix(text, what)
    bits = prefix.max_prefixlen - prefix.prefixlen
    if bits < 2:
        raise BadRequest(
            f"subnet {prefix} has no room for a gateway and an endpoint",
            f"use a /{prefix.max_prefixlen - 2} or a larger one",
        )
    if prefix.version == 4 and bits > POOL_MAX_BITS:
        raise BadRequest(f"subnet {prefix} is too large: at most a /{32 - POOL_MAX_BITS}", "use a part of it")
    for forbidden, what in FORBIDDEN:
        if forbidden.version == prefix.version and forbidden.overlaps(prefix):
            raise BadRequest(
                f"subnet {prefix} cannot be used: {forbidden} is {what}",
                "choose another, or leave --subnet out",
            )
    return prefix


def check_free(prefixes: Sequence[Prefix], taken: Sequence[Taken], flag: str = "subnet") -> None:
    """Refuse a subnet that shares addresses with a network or a route. Raises Conflict naming it."""
    hint = "choose another, or leave --subnet out" if flag == "subnet" else "choose another"
    for prefix in prefixes:
        found = overlaps(prefix, taken)
        if found is not None:
            raise Conflict(f"subnet {prefix} overlaps {found.what}", hint)


def lay_out(network_id: bytes, network: Network, prefixes: Sequence[Prefix], wanted: Wanted) -> Network:
    """Give ``network`` its subnets, gateways, ranges and exclusions. Raises BadRequest."""
    placed = _place(prefixes)
    excluded = _excluded(prefixes, wanted.exclude)
    gateways = choose_gateways(prefixes, wanted.gateways, excluded)
    planned = msgspec.structs.replace(
        network,
        subnets=tuple(Subnet(str(of.prefix), str(gateways[of.prefix]), of.start) for of in placed),
        ip_range=_ranges(prefixes, wanted.ip_range),
        exclude=tuple(str(address) for address in excluded),
    )
    _check_vips(planned, gateways)
    layout = Layout.build(network_id, planned)
    if not any(space.usable(*space.auto) for space in layout.spaces):
        raise BadRequest(
            f"no address is left to give out in {', '.join(planned.ip_range) or layout.text}",
            "exclude less or use a larger range",
        )
    return planned


def _check_vips(network: Network, gateways: Mapping[Prefix, Ip]) -> None:
    """Refuse virtual addresses that no endpoint could take. Raises BadRequest."""
    text = network.options.get(vips.OPTION)
    for ip in vips.parse(text) if text is not None else ():
        address, prefix = _address(str(ip), list(gateways), "virtual address")
        if address == gateways[prefix]:
            raise BadRequest(
                f"virtual address {address} is the gateway, which is every host's", "name another"
            )
        ends = {prefix.network_address: "own"}
        if prefix.version == 4:
            ends[prefix.broadcast_address] = "broadcast"
        if address in ends:
            raise BadRequest(
                f"virtual address {address} is the {ends[address]} address of subnet {prefix}", "name another"
            )


def _place(prefixes: Sequence[Prefix]) -> list[Placed]:
    """Say at which index each subnet of a new network starts: spaces follow each other, aligned to their size, and the
    n-th v6 subnet goes with the n-th v4 one. The last v6 subnet goes with all v4 ones that are left, which it must have
    room for. Raises BadRequest."""
    four, six = ([prefix for prefix in prefixes if prefix.version == version] for version in (4, 6))
    if four and len(six) > len(four):
        raise BadRequest(
            f"{len(six)} IPv6 subnets for {len(four)} IPv4 ones: an endpoint has an address of each family",
            "give as many IPv4 subnets, or fewer IPv6 ones",
        )
    placed: list[Placed] = []
    end = 0
    for number, first in enumerate(four or six):
        size = room(first, alone=not (four and six))
        start = -(-end // size) * size
        end = start + size
        placed.append(Placed(first, start))
        if four and number < len(six):
            placed.append(Placed(six[number], start))
        if four and six:
            last = next(of for of in reversed(placed) if of.prefix.version == 6)
            if last.end < end:
                bits = (end - last.start - 1).bit_length()
                raise BadRequest(
                    f"subnet {last.prefix} holds fewer addresses than {_told(four[len(six) - 1 :], number, first)}",
                    f"use a /{128 - bits} or a larger one, such as a /64",
                )
    return sorted(placed, key=lambda of: of.prefix.version)


def _told(shared: Sequence[Prefix], number: int, first: Prefix) -> str:
    """Name the v4 subnets that go with the last v6 one, or the one that goes with another."""
    return " and ".join(map(str, shared)) if first in shared and len(shared) > 1 else str(first)


def _address(text: str, prefixes: Sequence[Prefix], what: str) -> tuple[Ip, Prefix]:
    """Read an address and find the subnet it lies in. Raises BadRequest."""
    address = parse_address(text, f"{what} ")
    inside = next((p for p in prefixes if p.version == address.version and address in p), None)
    if inside is None:
        raise BadRequest(
            f"{what} {address} is outside the subnets ({', '.join(map(str, prefixes))})",
            "it must lie in one of them; --subnet sets them",
        )
    return address, inside


def _excluded(prefixes: Sequence[Prefix], texts: Sequence[str]) -> list[Ip]:
    if len(texts) > EXCLUDE_MAX:
        raise BadRequest(f"{len(texts)} excluded addresses; at most {EXCLUDE_MAX}", "give --ip-range instead")
    return list(dict.fromkeys(_address(text, prefixes, "excluded address")[0] for text in texts))


def choose_gateways(
    prefixes: Sequence[Prefix], texts: Sequence[str], excluded: Sequence[Ip] = ()
) -> dict[Prefix, Ip]:
    """Take the gateways given, and the first address that is not excluded for every other subnet."""
    chosen: dict[Prefix, Ip] = {}
    for text in texts:
        address, prefix = _address(text, prefixes, "gateway")
        if prefix in chosen:
            raise BadRequest(
                f"two gateways for subnet {prefix} ({chosen[prefix]}, {address})", "give one for each subnet"
            )
        if address == prefix.network_address:
            raise BadRequest(f"gateway {address} is the own address of subnet {prefix}", OTHER_GATEWAY)
        if prefix.version == 4 and address == prefix.broadcast_address:
            raise BadRequest(f"gateway {address} is the broadcast address of subnet {prefix}", OTHER_GATEWAY)
        if address in excluded:
            raise BadRequest(f"gateway {address} is also excluded", "the gateway is never given out anyway")
        chosen[prefix] = address
    barred = set(excluded)
    for prefix in prefixes:
        if prefix not in chosen:
            free = (prefix.network_address + n for n in range(1, min(prefix.num_addresses, EXCLUDE_MAX + 2)))
            end = prefix.broadcast_address if prefix.version == 4 else None
            gateway = next((address for address in free if address not in barred and address != end), None)
            if gateway is None:
                raise BadRequest(f"no address of subnet {prefix} is left for the gateway", "exclude less")
            chosen[prefix] = gateway
    return chosen


def _ranges(prefixes: Sequence[Prefix], texts: Sequence[str]) -> tuple[str, ...]:
    """Read ``--ip-range``: at most one per subnet, and inside it."""
    seen: dict[Prefix, Prefix] = {}
    for text in texts:
        inner = parse_prefix(text, "ip-range")
        subnet = next((p for p in prefixes if p.version == inner.version and _inside(inner, p)), None)
        if subnet is None:
            raise BadRequest(
                f"ip-range {inner} is outside the subnets ({', '.join(map(str, prefixes))})",
                "it must lie in one of them; --subnet sets them",
            )
        if subnet in seen:
            raise BadRequest(
                f"two ip-ranges in subnet {subnet} ({seen[subnet]}, {inner}); one is supported",
                "give one for each subnet, and --exclude for single addresses",
            )
        seen[subnet] = inner
    return tuple(str(inner) for inner in seen.values())


def _inside(inner: Prefix, outer: Prefix) -> bool:
    return inner.prefixlen >= outer.prefixlen and inner.network_address in outer
