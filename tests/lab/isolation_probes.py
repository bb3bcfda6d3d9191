"""What is sent in each square of the isolation matrix: datagrams and frames made by hand, each with a token of its own.
Must not know what becomes of them, nor how the lab is built.
"""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from isolation import BRIDGED, BY_SOCKET, PLACES, SERVICES, V4_ONLY, Cell, expected

from meshctl import labnet
from meshctl.labcluster import Lab
from tests.kernel import handmade as frames

PROBE_PORT = 7000  # prober.PORT
GOSSIP, VXLAN = 7947, 4789
EVERYBODY = bytes.fromhex("ffffffffffff")
ALL_NODES = ipaddress.ip_address("ff02::1").packed
ALL_NODES_MAC = bytes.fromhex("333300000001")


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


@dataclass(frozen=True)
class Party:
    """Somebody in a namespace: a network's endpoint, a host, the machine outside. ``name``: source or where it is."""

    name: str
    network: str
    ips: dict[int, str]
    mac: bytes
    dev: str
    run: tuple[str, ...]
    sniff: tuple[str, ...]
    host: bool = False
    jobs: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class World:
    """Who there is: the sources by network, and whom they try to reach by network and place."""

    lab: Lab
    sources: dict[str, Party]
    targets: dict[tuple[str, str], Party]
    gateways: dict[str, bytes]
    bridges: dict[str, dict[int, str]]
    vni: int
    probes: dict[int, tuple[Cell, str, int]] = field(default_factory=dict)
    """Id -> the square, what of it (a family, an address), and IP version."""

    @property
    def parties(self) -> list[Party]:
        return list(
            {party.name: party for party in (*self.sources.values(), *self.targets.values())}.values()
        )

    def probe(self, cell: Cell, what: str, version: int) -> tuple[int, bytes]:
        number = len(self.probes)
        self.probes[number] = (cell, what, version)
        return number, b"meshprobe:%06d" % number


def datagram(source: bytes, target: bytes, token: bytes, port: int = PROBE_PORT) -> bytes:
    return frames.checked(source, target, 17, frames.udp(4444, port, token))


def kind(version: int) -> int:
    return frames.IP if version == 4 else frames.IP6


def by_gateway(world: World, source: Party, target: Party, version: int, token: bytes) -> Iterator[bytes]:
    packet = datagram(packed(source.ips[version]), packed(target.ips[version]), token)
    yield frames.ether(world.gateways[source.network], source.mac, kind(version), packet)


def by_frame(_: World, source: Party, target: Party, version: int, token: bytes) -> Iterator[bytes]:
    packet = datagram(packed(source.ips[version]), packed(target.ips[version]), token)
    yield frames.ether(target.mac, source.mac, kind(version), packet)


def by_claim(world: World, source: Party, target: Party, version: int, token: bytes) -> Iterator[bytes]:
    """The token is in the frame's padding."""
    mine, claimed = packed(source.ips[version]), packed(target.ips[version])
    to = [EVERYBODY if version == 4 else ALL_NODES_MAC, world.gateways[source.network]]
    if version == 4:
        said = [frames.arp(operation, source.mac, claimed, EVERYBODY, claimed) for operation in (1, 2)]
        said.append(frames.arp(2, target.mac, claimed, EVERYBODY, claimed))
        yield from (frames.ether(mac, source.mac, frames.ARP, arp + token) for mac in to for arp in said)
        return
    address = b"\2\1" + source.mac  # target link-layer address, RFC 4861 4.6.1
    advertised = frames.neighbour(136, claimed, address)
    packets = [frames.ip6(ip, ALL_NODES, advertised, 58) for ip in (mine, claimed)]
    packets.append(frames.ip6(bytes(16), ALL_NODES, frames.neighbour(135, claimed), 58))  # DAD: "I take it"
    yield from (frames.ether(mac, source.mac, frames.IP6, packet + token) for mac in to for packet in packets)


def by_lan(world: World, source: Party, target: Party, version: int, token: bytes) -> Iterator[bytes]:
    host = host_of(world, target)
    packet = datagram(packed(target.ips[version]), packed(host.ips[version]), token)
    yield frames.ether(host.mac, source.mac, kind(version), packet)


def host_of(world: World, target: Party) -> Party:
    """Return the host that an endpoint is on."""
    place = next(place for (_, place), party in world.targets.items() if party is target)
    return world.targets["host", place]


def by_forgery(world: World, source: Party, target: Party, version: int, token: bytes) -> Iterator[bytes]:
    mine, theirs = packed(source.ips[version]), packed(target.ips[version])
    neighbours = [world.targets[source.network, place] for place in PLACES]
    to = [(EVERYBODY, theirs), (world.gateways[source.network], packed(labnet.address(3, version)))]
    to += [(one.mac, packed(one.ips[version])) for one in neighbours if one is not target]
    for mac, ip in ((target.mac, mine), (source.mac, theirs), (target.mac, theirs)):
        for to_mac, to_ip in to:
            yield frames.ether(to_mac, mac, kind(version), datagram(ip, to_ip, token))


BY_FRAMES = {"gateway": by_gateway, "frame": by_frame, "claim": by_claim, "lan": by_lan, "forged": by_forgery}


def plan(world: World) -> None:
    """Give every source its jobs, one for each probe. What a macvlan endpoint pretends comes last: the LAN believes it."""
    late: list[tuple[Party, dict[str, Any]]] = []
    for cell in expected():
        source, target = world.sources[cell.source], world.targets[cell.target, cell.place]
        if cell.column in SERVICES:
            to_a_host(world, cell, source, target)
            continue
        for version, ip in target.ips.items():
            if source.ips and version not in source.ips:
                continue
            number, token = world.probe(cell, f"v{version}", version)
            if cell.column == "ip":
                source.jobs.append({"id": number, "to": ip})
                continue
            assert cell.source not in BY_SOCKET or cell.column == "lan"
            jobs = [{"id": number, "dev": source.dev, "frame": frame.hex()}
                    for frame in BY_FRAMES[cell.column](world, source, target, version, token)]  # fmt: skip
            if cell.source == "yard" and cell.column in ("claim", "forged"):
                late += [(source, {**job, "late": True}) for job in jobs]
            else:
                source.jobs.extend(jobs)
    for source, job in late:
        source.jobs.append(job)


def to_a_host(world: World, cell: Cell, source: Party, target: Party) -> None:
    """A host's service at all of its addresses that the source can name."""
    addresses = list(target.ips.values())
    if cell.place == "here" and source.network in BRIDGED:
        addresses += [
            ip
            for network in dict.fromkeys((source.network, "red", "sea"))
            for ip in world.bridges[network].values()
        ]
        if source.network not in V4_ONLY:
            addresses.append(link_local(world.gateways[source.network]))
    for address in addresses:
        version = ipaddress.ip_address(address).version
        if source.ips and version not in source.ips:
            continue
        number, token = world.probe(cell, address, version)
        if not source.ips:
            source.jobs.append({"id": number, "to": address})
            continue
        mine = link_local(source.mac) if address.startswith("fe80") else source.ips[version]
        mac = world.gateways[source.network] if source.network in BRIDGED else target.mac
        packet = to_service(cell.column, world.vni, packed(mine), packed(address), token)
        source.jobs.append({"id": number, "dev": source.dev,
                            "frame": frames.ether(mac, source.mac, kind(version), packet).hex()})  # fmt: skip


def to_service(service: str, vni: int, source: bytes, target: bytes, token: bytes) -> bytes:
    where, _, protocol = service.partition("/")
    port = {"gossip": GOSSIP, "vxlan": VXLAN, "other": PROBE_PORT}[where]
    said = (
        frames.vxlan(vni, frames.ether(EVERYBODY, bytes(6), frames.IP, token)) if where == "vxlan" else token
    )
    segment = (frames.udp if protocol == "udp" else frames.syn)(4445, port, said)
    return frames.checked(source, target, 17 if protocol == "udp" else 6, segment)


def link_local(mac: bytes) -> str:
    """RFC 4291, appendix A."""
    return str(
        ipaddress.ip_address(
            bytes.fromhex("fe80000000000000") + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]
        )
    )
