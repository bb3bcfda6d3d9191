"""What ``docker network create -d meshd`` asks for: the request for a network that is made for it, or whether a network
that exists fits what Docker believes of it. Docker itself decides subnets and gateways before it asks; an option that
is silently ignored would be a promise broken. Must not know which networks there are.
"""

import hashlib
from collections.abc import Mapping

import msgspec

from meshd.errors import BadRequest, Conflict
from meshd.model import ID_BYTES, Network, Subnet
from meshd.state.lan import MODES, mode_of, parent_of
from meshd.state.networks import ABSENT_OPTIONS, NAME, OPTIONS, NetworkRequest

SHORT_ID = 12
"""As many digits of an id as Docker shows, and as name a network or an endpoint that has no other name."""

FLAGS = {"yes": True, "true": True, "no": False, "false": False}
MTU_KEYS = ("mtu", "com.docker.network.driver.mtu")
OWN_KEYS = ("driver", "parent", "mode", *MTU_KEYS, "vni", "host-access", "broadcast")
"""What ``docker network create -o`` may say of a network that is made for it, besides state/networks.py's OPTIONS."""


class Wanted(msgspec.Struct, frozen=True):
    """What ``docker network create`` said. ``subnets``: with Docker's gateways, "" where it has none. ``aux``: addresses
    of --aux-address. ``ours``: our IPAM driver gives the addresses, and not Docker's own."""

    docker_id: str
    options: Mapping[str, str]
    subnets: tuple[Subnet, ...]
    aux: tuple[str, ...] = ()
    internal: bool = False
    ipv6: bool = False
    ours: bool = True


LABEL = "com.docker.network.id"
"""Of a network that was made for Docker: the id that the engine which made it has for it."""


def filed_under(docker_id: str) -> bytes:
    """Return what a Docker network's record is filed under."""
    return hashlib.blake2b(docker_id.encode(), digest_size=ID_BYTES).digest()


def read(wanted: Wanted) -> NetworkRequest:
    """Read what a network that is made for Docker is to be. Raises BadRequest naming the option."""
    options = dict(wanted.options)
    unknown = sorted(options.keys() - {*OWN_KEYS, *OPTIONS, *ABSENT_OPTIONS})
    if unknown:
        raise BadRequest(
            f"option {unknown[0][:80]} means nothing to meshd",
            f"known: network, {', '.join(key for key in (*OWN_KEYS, *OPTIONS))}",
        )
    for key in sorted(options.keys() & ABSENT_OPTIONS.keys()):
        raise BadRequest(f"option {key} is refused: {ABSENT_OPTIONS[key]}", "create the network without it")
    driver = options.pop("driver", "overlay")
    parent, mode = options.pop("parent", None), options.pop("mode", None)
    mtu = next((options.pop(key) for key in MTU_KEYS if key in options), None)
    vni = options.pop("vni", None)
    flags = {key: _flag(key, options.pop(key, "no")) for key in ("host-access", "broadcast")}
    name = wanted.docker_id[:SHORT_ID].lower()
    if not NAME.fullmatch(name):
        name = filed_under(wanted.docker_id).hex()[:SHORT_ID]
    return NetworkRequest(
        name=name,
        driver=driver,
        subnets=tuple(subnet.cidr for subnet in wanted.subnets),
        gateways=tuple(subnet.gateway for subnet in wanted.subnets if subnet.gateway),
        exclude=wanted.aux,
        ipv6=wanted.ipv6,
        internal=wanted.internal,
        mtu=None if mtu is None else _number("mtu", mtu),
        vni=None if vni is None else _number("vni", vni),
        options=options,
        labels={LABEL: wanted.docker_id},
        host_access=flags["host-access"],
        broadcast=flags["broadcast"],
        parent=parent,
        mode=mode,
    )


def _flag(key: str, value: str) -> bool:
    if value not in FLAGS:
        raise BadRequest(f"option {key} cannot be {value[:80]!r}", "yes or no")
    return FLAGS[value]


def _number(key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise BadRequest(f"option {key} cannot be {value[:80]!r}", "a whole number")
    return int(value)


def check_fit(facts: Network, wanted: Wanted) -> None:
    """Refuse what Docker believes of a network and is not so: containers would have wrong addresses or routes.

    Raises Conflict."""
    if facts.removing:
        raise Conflict(f"network {facts.name} is being removed", "choose another network")
    there = {subnet.cidr: subnet.gateway for subnet in facts.subnets}
    for subnet in wanted.subnets:
        gateway = there.get(subnet.cidr)
        if gateway is None:
            raise Conflict(
                f"network {facts.name} has subnet {', '.join(there)}, and Docker would use {subnet.cidr}",
                f"meshctl docker create {facts.name} does it right; by hand: --ipam-driver meshd "
                f"--ipam-opt network={facts.name}",
            )
        if subnet.gateway and subnet.gateway != gateway:
            raise Conflict(
                f"the gateway of network {facts.name} is {gateway} on every host, not {subnet.gateway}",
                f"give --gateway {gateway}",
            )
    if wanted.internal and not facts.internal:
        raise Conflict(
            f"network {facts.name} is not internal, and Docker's would be",
            "leave --internal out, or meshctl network create --internal makes one that is",
        )
    if wanted.ipv6 and not any(":" in cidr for cidr in there):
        raise Conflict(
            f"network {facts.name} has no IPv6 subnet",
            "leave --ipv6 out, or meshctl network create --ipv6 makes one that has",
        )


def check_kind(facts: Network, asked: NetworkRequest) -> None:
    """Refuse a network that has the subnets, but is of another kind. Raises Conflict."""
    there: dict[str, object] = {"driver": facts.driver, "parent": parent_of(facts), **facts.options}
    want: dict[str, object] = {"driver": asked.driver, "parent": asked.parent, **asked.options}
    if facts.driver in MODES:
        there["mode"], want["mode"] = mode_of(facts), asked.mode or MODES[facts.driver][0]
    for key, was, said in (
        ("mtu", facts.mtu, asked.mtu),
        ("vni", facts.vni, asked.vni),
        ("host-access", facts.host_access, asked.host_access or None),
        ("broadcast", facts.broadcast, asked.broadcast or None),
    ):
        if said is not None:
            there[key], want[key] = was, said
    for key, value in want.items():
        if value != there.get(key):
            raise Conflict(
                f"network {facts.name} has subnet {facts.subnets[0].cidr} already; its {key} is "
                f"{_word(there.get(key))}, not {_word(value)}",
                "choose another --subnet, or the same options",
            )


def _word(value: object) -> str:
    return {None: "unset", True: "yes", False: "no"}.get(value, str(value))  # type: ignore[call-overload,no-any-return]
