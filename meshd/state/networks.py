"""Decides whether a network may be made as asked, and every value that the caller left open. Knows the networks
and hosts known here; must not know how a network is stored, programmed or shown.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from meshd.config import (
    LABEL_KEY_MAX_CHARS,
    LABEL_VALUE_MAX_CHARS,
    LABELS_MAX,
    LABELS_MAX_BYTES,
    PoolSettings,
)
from meshd.errors import BadRequest, Conflict
from meshd.model import ID_BYTES, HostFacts, HostId, Item, Kind, Network, NetworkId
from meshd.state import vips
from meshd.state.encap import plan_mtu, plan_vni
from meshd.state.lan import LAN_DRIVERS, MODES, SHIM_MODES, article, plan_options
from meshd.state.layout import QUOTED_MAX_CHARS, Prefix
from meshd.state.pools import Taken, default_v4, default_v6, prefix_taken
from meshd.state.subnets import Wanted, check_free, lay_out, parse_subnets

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
ID = re.compile(f"[0-9a-f]{{{2 * ID_BYTES}}}")
BUILTIN_NAMES = ("none", "host", "bridge")
"""Always there; nobody makes or removes them."""

KIND_OF_DRIVER = {
    "overlay": Kind.NETWORK,
    "bridge": Kind.LOCAL_NETWORK,
    "macvlan": Kind.NETWORK,
    "ipvlan": Kind.NETWORK,
}
"""Where a network is filed: with the cluster, or with this host alone."""


class Option(NamedTuple):
    """What ``--opt KEY=`` may be (nothing named: anything), and for which drivers; none named: for all."""

    values: tuple[str, ...]
    drivers: tuple[str, ...] = ()


OPTIONS = {
    "default-route": Option(("yes", "no")),
    "check-subnet": Option(("yes", "no"), LAN_DRIVERS),
    "isolate-ports": Option(("yes", "no"), ("bridge",)),
    vips.OPTION: Option((), vips.DRIVERS),
}
"""``vip``: state/vips.py, which reads its value. ``default-route``: whether an endpoint gets one by way of this network. ``check-subnet``: whether a parent that
has addresses must have one in the network's subnet. ``isolate-ports``: whether its endpoints are kept from each other."""

WHY_NOT_ASKED = {
    "host access": (
        "its host reaches its endpoints anyway",
        "the kernel keeps a host and its own endpoints apart, but on macvlan in mode bridge or vepa",
    ),
    "broadcast": ("its frames for all reach all anyway", "the LAN carries what it carries"),
}
"""Of flags that only an overlay has: why a bridge needs none, why a network on the LAN cannot have one."""

ABSENT_OPTIONS = {"encrypted": "encryption of the data plane is not available in this version"}


class NetworkRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/networks. None: decide for me."""

    name: str
    driver: str = "overlay"
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    ip_range: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    ipv6: bool = False
    internal: bool = False
    mtu: int | None = None
    vni: int | None = None
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    host_access: bool = False
    broadcast: bool = False
    parent: str | None = None
    mode: str | None = None


def plan_network(
    request: NetworkRequest,
    network_id: NetworkId,
    *,
    creator: HostId,
    created_ms: int,
    networks: Iterable[Item],
    hosts: Mapping[HostId, HostFacts],
    pools: PoolSettings,
    secret: bytes,
    routes: Sequence[str] = (),
    builtin: bool = False,
    vnis: Mapping[int, str] | None = None,
) -> Network:
    """Plan the network that ``request`` asks for.

    ``networks``: all live NETWORK and LOCAL_NETWORK items. ``hosts``: what every known host says of itself.
    ``secret``: the cluster's, from which the default v6 pool follows. ``routes``: this host's own prefixes as of
    now. ``vnis``: VXLAN numbers in use for something else, in words. ``builtin``: the daemon itself makes a network of BUILTIN_NAMES.

    Subnets left out: a v4 one from the pools, and a v6 one too with ``ipv6``. A v6 subnet alone makes a v6-only
    network. Raises BadRequest, Conflict (name, subnet or vni in use) or Unavailable (pools exhausted).
    """
    existing = list(networks)
    _check_driver(request.driver)
    _check_name(request.name, existing, builtin=builtin)
    _check_options(request.options, request.driver)
    options = plan_options(
        request.driver, request.parent, request.mode, request.subnets, request.options, existing
    )
    check_labels(request.labels)
    if request.driver != "overlay" and request.vni is not None:
        raise BadRequest(f"a {request.driver} network has no vni", "leave --vni out, or use -d overlay")
    _check_flags(request)
    prefixes = _prefixes(request, network_id, creator, existing, hosts, pools, secret, routes)
    network = Network(
        name=request.name,
        driver=request.driver,
        subnets=(),
        vni=plan_vni(network_id, request.vni, existing, vnis) if request.driver == "overlay" else 0,
        mtu=plan_mtu(
            request.driver,
            request.mtu,
            ipv6=any(prefix.version == 6 for prefix in prefixes),
            creator=creator,
            hosts=hosts,
        ),
        internal=request.internal,
        creator=creator,
        created_ms=created_ms,
        options=options,
        labels=request.labels,
        host_access=request.host_access,
        broadcast=request.broadcast or (request.driver == "overlay" and vips.OPTION in options),
    )
    wanted = Wanted(request.subnets, request.gateways, request.ip_range, request.exclude)
    return lay_out(network_id, network, prefixes, wanted)


def taken_prefixes(
    networks: Iterable[Item], hosts: Iterable[HostFacts], routes: Sequence[str] = ()
) -> list[Taken]:
    """List every prefix that a new subnet must keep clear of, with words for whom it belongs to."""
    told = [
        prefix_taken(subnet.cidr, f"network {item.body.name} ({subnet.cidr})")
        for item in networks
        if isinstance(item.body, Network)
        for subnet in item.body.subnets
    ]
    told += [
        prefix_taken(route, f"route {route} of {facts.name}") for facts in hosts for route in facts.routes
    ]
    told += [prefix_taken(route, f"route {route} of this host") for route in routes]
    return [found for found in told if found is not None]


def _prefixes(
    request: NetworkRequest,
    network_id: NetworkId,
    creator: HostId,
    networks: Sequence[Item],
    hosts: Mapping[HostId, HostFacts],
    pools: PoolSettings,
    secret: bytes,
    routes: Sequence[str],
) -> list[Prefix]:
    """Check the subnets given and add those left out. Defaults keep clear of every host's routes, whatever the
    driver; a subnet given for a bridge need only be free on its own host."""
    prefixes = parse_subnets(request.subnets)
    on_the_lan = request.driver in LAN_DRIVERS
    concerned = _concerned(request.driver, creator, hosts)
    check_free(prefixes, taken_prefixes(networks, concerned, () if on_the_lan else routes))
    taken = taken_prefixes(networks, hosts.values(), routes)
    if not prefixes:
        prefixes = [default_v4(network_id, request.driver, pools.v4, taken)]
    if request.ipv6 and all(prefix.version == 4 for prefix in prefixes):
        prefixes.append(default_v6(network_id, pools.v6, secret, taken))
    return prefixes


def _concerned(driver: str, me: HostId, hosts: Mapping[HostId, HostFacts]) -> list[HostFacts]:
    """Return the hosts whose routes a subnet must not overlap: on the LAN it is meant to be one that they route."""
    if driver == "overlay":
        return list(hosts.values())
    return [hosts[me]] if driver == "bridge" and me in hosts else []


def check_addable(
    network: Network,
    prefixes: Sequence[Prefix],
    networks: Iterable[Item],
    hosts: Mapping[HostId, HostFacts],
    me: HostId,
) -> None:
    """Refuse to add what overlaps a network, this one included, or a host's route. Raises Conflict naming it."""
    taken = taken_prefixes(networks, _concerned(network.driver, me, hosts))
    check_free(prefixes, taken, "add-subnet")


def _check_driver(driver: str) -> None:
    if driver not in KIND_OF_DRIVER:
        raise BadRequest(
            f"unknown driver {driver[:QUOTED_MAX_CHARS]!r}", f"one of {', '.join(KIND_OF_DRIVER)}"
        )


def _check_flags(request: NetworkRequest) -> None:
    shim = request.driver == "macvlan" and (request.mode or MODES["macvlan"][0]) in SHIM_MODES
    if request.driver != "overlay" and ((request.host_access and not shim) or request.broadcast):
        asked = "host access" if request.host_access and not shim else "broadcast"
        why = WHY_NOT_ASKED[asked][request.driver in LAN_DRIVERS]
        raise BadRequest(
            f"{asked} is nothing to ask of {article(request.driver)} network: {why}", "leave it out"
        )
    if request.internal and request.host_access:
        raise BadRequest(
            "an internal network keeps its endpoints away from every host, and host access lets them reach this one",
            "leave out --internal or --host-access",
        )


def _check_name(name: str, networks: Sequence[Item], *, builtin: bool) -> None:
    if not NAME.fullmatch(name):
        raise BadRequest(
            f"network name {name[:QUOTED_MAX_CHARS]!r} is not allowed",
            "1 to 63 of a-z, 0-9, '_', '.' and '-', starting with a letter or digit",
        )
    if name in BUILTIN_NAMES and not builtin:
        raise BadRequest(f"network name {name} is reserved: it always exists", "choose another name")
    if ID.fullmatch(name):  # it could be another network's, and whoever gives that id would get this one
        raise BadRequest(f"network name {name} has the form of an id", "choose another name")
    for item in networks:
        if isinstance(item.body, Network) and item.body.name == name:
            state = (
                ("is being removed", "wait for its last endpoint") if item.body.removing else ("exists", "")
            )
            hint = state[1] or f"choose another name, or use it: id {item.id.hex()}"
            raise Conflict(f"network {name} {state[0]}", hint)


def _check_options(options: Mapping[str, str], driver: str) -> None:
    """An option that is silently ignored would be a promise broken."""
    for key, value in options.items():
        known = OPTIONS.get(key)
        if known is not None and (not known.drivers or driver in known.drivers):
            if known.values and value not in known.values:
                raise BadRequest(
                    f"option {key} cannot be {value[:QUOTED_MAX_CHARS]!r}", f"{' or '.join(known.values)}"
                )
            continue
        if key in ABSENT_OPTIONS:
            raise BadRequest(
                f"option {key} is refused: {ABSENT_OPTIONS[key]}", "create the network without it"
            )
        raise BadRequest(
            f"unknown option {key[:QUOTED_MAX_CHARS]!r} of {article(driver)} network",
            f"known: {', '.join(key for key, of in OPTIONS.items() if not of.drivers or driver in of.drivers)}; "
            "--mtu, --vni, --internal, --parent and --mode are flags of their own",
        )


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuse labels that are too many, too long or no text. Raises BadRequest."""
    if len(labels) > LABELS_MAX:
        raise BadRequest(f"{len(labels)} labels; at most {LABELS_MAX}", "give fewer")
    for key, value in labels.items():
        if not key or len(key) > LABEL_KEY_MAX_CHARS or not key.isprintable():
            raise BadRequest(
                f"label {key[:QUOTED_MAX_CHARS]!r} is not allowed",
                f"a key has 1 to {LABEL_KEY_MAX_CHARS} printable characters",
            )
        if len(value) > LABEL_VALUE_MAX_CHARS:
            raise BadRequest(
                f"label {key[:QUOTED_MAX_CHARS]}: its value has {len(value)} characters",
                f"at most {LABEL_VALUE_MAX_CHARS}",
            )
    total = sum(len(key.encode()) + len(value.encode()) for key, value in labels.items())
    if total > LABELS_MAX_BYTES:
        raise BadRequest(f"labels take {total} bytes; at most {LABELS_MAX_BYTES} together", "give fewer")
