"""Which connections that the kernel remembers are no longer true once elements of ours came or went. A remembered
connection (conntrack) is not asked again where it leads: whoever goes on with the same source port goes on to an
endpoint that is gone, or past a publication that came later.

Decides which: those from or to an address that an endpoint here gave up, and those to a published port that lead
elsewhere. Must not know how they are found or deleted.
"""

from collections.abc import Container, Iterable, Mapping, Set
from typing import NamedTuple

from meshd.plan.elements import Element, key_fields, value_fields, virtual

NAMED, EVERYWHERE = ("publish4", "publish6"), ("everywhere4", "everywhere6")
PORT_ADDRESSES = ("targets4", "targets6")
IPV4_BYTES = 4
LOOPBACK_V4 = 127


class Tracked(NamedTuple):
    """A connection: ``src``, ``dst`` and ``dport`` as who began it says, ``from_`` and ``from_port`` where it is answered
    from: of a published port the endpoint's. Addresses packed, ``protocol`` IP's number."""

    protocol: int
    src: bytes
    dst: bytes
    dport: int
    from_: bytes
    from_port: int


class Published(NamedTuple):
    """A published port of the host; ``address`` None: of every address of the family. ``ip``, ``port``: where it leads."""

    address: bytes | None
    protocol: int
    dport: int
    ip: bytes
    port: int


class Doubt(NamedTuple):
    """What changed: ports that are published now, addresses that no endpoint here has any more."""

    published: tuple[Published, ...] = ()
    given_up: frozenset[bytes] = frozenset()


def doubt(puts: Mapping[Element, bytes], gone: Iterable[Element], have: Container[Element] = ()) -> Doubt:
    """Work out what elements that were put or deleted make doubtful; empty where that is nothing. ``have``: all that
    there are now. A virtual address is given up by no endpoint: it is anybody's on its network."""
    published = [
        Published(None if of.set in EVERYWHERE else key_fields(of)[0], *_ports(of), *_leads(of, value))
        for of, value in puts.items()
        if of.set in EVERYWHERE or of.set in NAMED
    ]
    given_up = {key_fields(of)[-1] for of in gone if of.set in PORT_ADDRESSES}
    vips = {ip for ip in given_up if virtual(ip) in have}
    return Doubt(tuple(published), frozenset(given_up - vips - _addresses(puts)))


def _addresses(elements: Mapping[Element, bytes]) -> Set[bytes]:
    return {key_fields(of)[-1] for of in elements if of.set in PORT_ADDRESSES}


def _ports(of: Element) -> tuple[int, int]:
    protocol, port = key_fields(of)[-2:]
    return protocol[0], int.from_bytes(port, "big")


def _leads(of: Element, value: bytes) -> tuple[bytes, int]:
    ip, port = value_fields(of, value)
    return ip, int.from_bytes(port, "big")


def is_stale(tracked: Tracked, changed: Doubt, local: Set[bytes]) -> bool:
    """Tell whether a connection has to be forgotten. ``local``: this host's addresses."""
    if tracked.src in changed.given_up or tracked.from_ in changed.given_up:
        return True
    return any(
        (tracked.protocol, tracked.dport) == (one.protocol, one.dport)
        and len(tracked.dst) == len(one.ip)
        and (_is_local(tracked.dst, local) if one.address is None else tracked.dst == one.address)
        and (tracked.from_, tracked.from_port) != (one.ip, one.port)
        for one in changed.published
    )


def _is_local(ip: bytes, local: Set[bytes]) -> bool:
    return ip in local or (len(ip) == IPV4_BYTES and ip[0] == LOOPBACK_V4)
