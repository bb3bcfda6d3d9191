"""Who reaches whom: what is allowed, stated here and nowhere derived, and how the matrix is printed. Must not know how
anything is probed.

Every source is on host1. Of each target network one endpoint is on the same host (``here``) and one on another
(``there``); networks of driver bridge are each host's own, so the one there is another network of the same name.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

NETWORKS = {
    "bridge": "the default bridge (IPv4 alone)",
    "red": "a bridge network", "blue": "another",
    "den": "an internal bridge network",
    "sea": "an overlay", "sky": "another",
    "well": "an internal overlay",
    "yard": "macvlan: the LAN itself",
}  # fmt: skip
"""The networks that have endpoints. Beside them there are ``none``, ``host`` and ``outside``, a machine of the LAN that
is no host of ours, has forwarding on, and knows by which host each endpoint could be reached."""

V4_ONLY = ("bridge",)
BRIDGED = tuple(name for name in NETWORKS if name != "yard")
PLACES = ("here", "there")

PASS, SILENT, LAN, NOTHING = "pass", "-", "LAN", ""
"""What becomes of a probe: it arrives (and where it is a datagram, so does the answer); nothing is seen of it by
anybody; it is seen on the LAN by those who are on it; there is nothing to try."""

WAYS = {
    "ip": "a datagram to its address; an answer comes back",
    "gateway": "a frame to the gateway's MAC with its address",
    "frame": "a frame to its MAC",
    "claim": "ARP and neighbour discovery that claim its address for the sender",
    "lan": "a machine of the LAN sends to its host with its address as source",
    "forged": "frames with its MAC, its address or both as source, to everybody, the gateway and the neighbours",
}
BY_SOCKET = ("none", "host", "outside")
"""Sources of which only ``ip`` is tried, and ``lan`` of ``outside``: without an interface there is nothing else to try, and who is root on a host
or on the LAN's router may send what he wants."""

BY_IP = """
            host  bridge  red  blue  den  sea  sky  well  yard  outside
none         --     --    --    --   --   --   --    --    --     .-
host         ++     +-    +-    +-   --   +-   +-    --    -+     .+
bridge       ++     +-    --    --   --   --   --    --    -+     .+
red          ++     --    +-    --   --   --   --    --    -+     .+
blue         ++     --    --    +-   --   --   --    --    -+     .+
den          --     --    --    --   +-   --   --    --    --     .-
sea          ++     --    --    --   --   ++   --    --    -+     .+
sky          ++     --    --    --   --   --   ++    --    -+     .+
well         --     --    --    --   --   --   --    ++    --     .-
yard         -+     --    --    --   --   --   --    --    ++     .+
outside      ++     --    --    --   --   --   --    --    ++     ..
"""
"""Here and there. A network reaches itself, the host it is on, other hosts and the LAN, unless it is internal: then
itself alone. Nobody reaches into another network, the LAN neither, but for what is published. The host reaches its own
endpoints; on an overlay those of other hosts only with --host-access. A macvlan endpoint and its own host are kept
apart by the kernel; to all others it is a machine of the LAN."""

BY_GATEWAY = """
            host  bridge  red  blue  den  sea  sky  well  yard  outside
bridge       ++     +-    --    --   --   --   --    --    -+     .+
red          ++     --    +-    --   --   --   --    --    -+     .+
blue         ++     --    --    +-   --   --   --    --    -+     .+
den          --     --    --    --   --   --   --    --    --     .-
sea          ++     --    --    --   --   +-   --    --    -+     .+
sky          ++     --    --    --   --   --   +-    --    -+     .+
well         --     --    --    --   --   --   --    --    --     .-
yard         ++     --    --    --   --   --   --    --    +-     .+
"""
"""An internal network has no gateway. On an overlay the gateway leads no further than its own host: its MAC is every
host's, so no tunnel takes it. For ``yard`` the gateway is another host, which routes for the LAN as any machine with
forwarding on does: not to its own macvlan endpoint, and not into a network."""

BY_FRAME = """
            host  bridge  red  blue  den  sea  sky  well  yard  outside
bridge       --     +-    --    --   --   --   --    --    --     .-
red          --     --    +-    --   --   --   --    --    --     .-
blue         --     --    --    +-   --   --   --    --    --     .-
den          --     --    --    --   +-   --   --    --    --     .-
sea          --     --    --    --   --   ++   --    --    --     .-
sky          --     --    --    --   --   --   ++    --    --     .-
well         --     --    --    --   --   --   --    ++    --     .-
yard         -+     --    --    --   --   --   --    --    ++     .+
"""
"""Its own network's, and no other's. (``host``: the MAC of its network card, which is on no network of ours.)"""

BY_PRETENCE = """
            host  bridge  red  blue  den  sea  sky  well  yard  outside
bridge       --     --    --    --   --   --   --    --    --     .-
red          --     --    --    --   --   --   --    --    --     .-
blue         --     --    --    --   --   --   --    --    --     .-
den          --     --    --    --   --   --   --    --    --     .-
sea          --     --    --    --   --   --   --    --    --     .-
sky          --     --    --    --   --   --   --    --    --     .-
well         --     --    --    --   --   --   --    --    --     .-
yard         LL     LL    LL    LL   LL   LL   LL    LL    LL     .L
"""
"""Nobody on a network of ours can pretend to be another, in his network or elsewhere. A macvlan endpoint can on the
LAN, like every machine there: its frames do not pass this host's firewall. What it pretends is seen there alone; a host
that is made to forward it may tell whom it seems to come from so (an ICMP redirect), as any router does."""

FROM_THE_LAN = """
            host  bridge  red  blue  den  sea  sky  well  yard  outside
outside      ..     --     --   --    ++   --   --   ++    ..     ..
"""
"""A container's address is taken from no other device than its network's. An internal network is not routed to at all,
so its addresses are like any made-up ones, which a host takes from everybody. (``yard``'s are the LAN's own; a host's is
dropped by the kernel on IPv4 alone.)"""

SERVICES = ("gossip/udp", "gossip/tcp", "vxlan/udp", "other/udp", "other/tcp")
TO_THE_HOST = """
            gossip/udp  gossip/tcp  vxlan/udp  other/udp  other/tcp
none            --          --         --         --         --
bridge          --          --         --         ++         ++
red             --          --         --         ++         ++
blue            --          --         --         ++         ++
den             --          --         --         --         --
sea             --          --         --         ++         ++
sky             --          --         --         ++         ++
well            --          --         --         --         --
yard            -+          -+         --         -+         -+
outside         ++          ++         --         ++         ++
"""
"""A host's own ports, at all of its addresses. Gossip is the hosts' among themselves (LAN machines reach the port, and
without the cluster's key are not answered); VXLAN frames of our networks are taken from members alone. Everything else
that listens on a host is reached by design, as from the LAN: it is the host's own firewall that keeps it apart."""

TABLES = {
    "ip": BY_IP, "gateway": BY_GATEWAY, "frame": BY_FRAME, "claim": BY_PRETENCE, "lan": FROM_THE_LAN,
    "forged": BY_PRETENCE,
}  # fmt: skip
SIGNS = {"+": PASS, "-": SILENT, "L": LAN, ".": NOTHING}


class Cell(NamedTuple):
    """One square: ``column`` is a way or a service."""

    source: str
    target: str
    place: str
    column: str


def read(table: str, *, service: bool = False) -> dict[tuple[str, str, str], str]:
    """Return what a table states, by source, column's heading and place."""
    head, *rows = (line.split() for line in table.strip().splitlines())
    stated = {}
    for source, *squares in rows:
        for column, signs in zip(head, squares, strict=True):
            for place, sign in zip(PLACES, signs, strict=True):
                stated[source, column, place] = SIGNS[sign]
    assert service == (head == list(SERVICES))
    return stated


def expected() -> dict[Cell, str]:
    """Return what is stated for every square in which there is something to try."""
    stated = {
        Cell(source, target, place, way): what
        for way, table in TABLES.items()
        for (source, target, place), what in read(table).items()
    }
    stated |= {
        Cell(source, "host", place, service): what
        for (source, service, place), what in read(TO_THE_HOST, service=True).items()
    }
    return {cell: what for cell, what in stated.items() if what != NOTHING}


def report(stated: Mapping[Cell, str], found: Mapping[Cell, str]) -> list[str]:
    """Print both tables, a pair a row; what is not as stated shows both."""
    pairs = dict.fromkeys((cell.source, cell.target) for cell in stated if cell.column in WAYS)
    hosts = dict.fromkeys((cell.source, cell.target) for cell in stated if cell.column in SERVICES)
    return [
        *_legend(),
        *_table(stated, found, pairs, tuple(WAYS)),
        "",
        *_table(stated, found, hosts, SERVICES),
    ]


def _legend() -> Iterable[str]:
    names = {**NETWORKS, "outside": "a machine of the LAN that is no host of ours"}
    yield "networks (all sources are on one host, `here`):"
    yield from (f"  {name:8} {what}" for name, what in names.items())
    yield "ways, each over IPv4 and IPv6:"
    yield from (f"  {name:8} {what}" for name, what in WAYS.items())
    yield f"{PASS}: arrives; {SILENT}: nobody sees anything of it; {LAN}: seen on the LAN alone; empty: nothing to try"
    yield ""


def _table(
    stated: Mapping[Cell, str],
    found: Mapping[Cell, str],
    pairs: Iterable[tuple[str, str]],
    columns: tuple[str, ...],
) -> list[str]:
    head = ["from", "to", *(f"{place} {columns[0]}" if n == 0 else column for place in PLACES
                            for n, column in enumerate(columns))]  # fmt: skip
    rows = [head]
    for source, target in pairs:
        cells = [Cell(source, target, place, column) for place in PLACES for column in columns]
        rows.append(
            [source, target, *(_square(stated.get(cell, NOTHING), found.get(cell)) for cell in cells)]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _square(stated: str, found: str | None) -> str:
    if found is None or found == stated:
        return stated
    return f"{found.upper()}, not {stated}"
