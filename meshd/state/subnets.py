"""Decides the subnets, gateways, ranges and exclusions of a new network: checks what the caller gave and fills in
the rest. Knows prefixes and what is taken in words; must not know where requests come from or who owns a pool.
"""

import ipaddress
import itertools
from collections.abc import Sequence

import msgspec

from meshd.config import EXCLUDE_MAX, POOL_MAX_BITS
from meshd.errors import BadRequest, Conflict
from meshd.model import Network, Subnet
from meshd.state.layout import QUOTED_MAX_CHARS, IndexSpace, Ip, Prefix, parse_address
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


def parse_subnets(texts: Sequence[str]) -> list[Prefix]:
    """Read ``--subnet``: at most one per family, v4 first, neither too large nor too small nor unusable."""
    prefixes = sorted((_subnet(text) for text in texts), key=lambda prefix: prefix.version)
    for first, second in itertools.pairwise(prefixes):
        if first.version == second.version:
            raise BadRequest(
                f"two IPv{first.version} subnets ({first}, {second}); one per family is supported",
                "make a second network",
            )
    return prefixes


def _subnet(text: str) -> Prefix:
    prefix = parse_prefix(text, "subnet")
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


def check_free(prefixes: Sequence[Prefix], taken: Sequence[Taken]) -> None:
    """Refuse a subnet that shares addresses with a network or a route. Raises Conflict naming it."""
    for prefix in prefixes:
        found = overlaps(prefix, taken)
        if found is not None:
            raise Conflict(f"subnet {prefix} overlaps {found.what}", "choose another, or leave --subnet out")


def lay_out(network_id: bytes, network: Network, prefixes: Sequence[Prefix], wanted: Wanted) -> Network:
    """Give ``network`` its subnets, gateways, ranges and exclusions. Raises BadRequest."""
    _check_fit(prefixes)
    excluded = _excluded(prefixes, wanted.exclude)
    gateways = _gateways(prefixes, wanted.gateways, excluded)
    planned = msgspec.structs.replace(
        network,
        subnets=tuple(Subnet(str(prefix), str(gateways[prefix])) for prefix in prefixes),
        ip_range=_ranges(prefixes, wanted.ip_range),
        exclude=tuple(str(address) for address in excluded),
    )
    space = IndexSpace.build(network_id, planned)
    if not space.usable(*space.auto):
        raise BadRequest(
            f"no address is left to give out in {', '.join(planned.ip_range) or space.subnets}",
            "exclude less or use a larger range",
        )
    return planned


def _check_fit(prefixes: Sequence[Prefix]) -> None:
    """An endpoint has the same number in both families, so the v6 subnet must hold as many as the v4 one."""
    bits = [prefix.max_prefixlen - prefix.prefixlen for prefix in prefixes]
    if len(prefixes) == 2 and bits[1] < bits[0]:
        raise BadRequest(
            f"subnet {prefixes[1]} holds fewer addresses than {prefixes[0]}",
            f"use a /{128 - bits[0]} or a larger one, such as a /64",
        )


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


def _gateways(prefixes: Sequence[Prefix], texts: Sequence[str], excluded: Sequence[Ip]) -> dict[Prefix, Ip]:
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
    """Read ``--ip-range``: at most one per family, each inside its subnet."""
    seen: dict[int, Prefix] = {}
    for text in texts:
        inner = parse_prefix(text, "ip-range")
        subnet = next((prefix for prefix in prefixes if prefix.version == inner.version), None)
        low, high = int(inner.network_address), int(inner.broadcast_address)
        if subnet is None or low < int(subnet.network_address) or high > int(subnet.broadcast_address):
            raise BadRequest(
                f"ip-range {inner} is outside the subnets ({', '.join(map(str, prefixes))})",
                "it must lie in one of them; --subnet sets them",
            )
        if inner.version in seen:
            raise BadRequest(
                f"two IPv{inner.version} ip-ranges ({seen[inner.version]}, {inner}); one is supported",
                "give one for each family, and --exclude for single addresses",
            )
        seen[inner.version] = inner
    return tuple(str(inner) for inner in seen.values())
