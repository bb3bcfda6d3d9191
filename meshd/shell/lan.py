"""The part of attach and detach that macvlan and ipvlan endpoints have of their own: look at the parent, make the
VLAN sub-interface it may need, ask the LAN for the address, make the device; and delete the sub-interface with its
last user. What a parent must be is plan/parents.py's rule.

An endpoint's device leaves this namespace with the container and is found there by its mark (kernel/guests.py), so
for the reconciler it is there as long as the container's namespace is.
"""

import ipaddress
from collections.abc import AsyncIterator, Container, Sequence
from contextlib import asynccontextmanager

import msgspec
import structlog
import trio

from meshd.config import LAN_PROBE_POLL_S, LAN_PROBE_WAIT_S, LAN_PROBES, LAN_STRANGERS_MAX
from meshd.errors import BadRequest, Conflict, MeshdError
from meshd.kernel.lan import Guest
from meshd.model import ID_BYTES, EndpointId, Item, Network, text_ip, text_mac
from meshd.plan import names, parents
from meshd.plan.parents import Asked, Other, Parent
from meshd.shell import networks, space
from meshd.shell.usecase import ClusterLike
from meshd.state.lan import LAN_DRIVERS, OWN_MAC_MODES, mode_of, parent_of, vlan_of
from meshd.state.layout import Layout

log = structlog.get_logger("meshd.lan")


class Place(msgspec.Struct, frozen=True):
    """Where an endpoint's device is to be: its parent as found, and the MAC it will have, if not one of its own."""

    parent: Parent
    mac: bytes | None
    warnings: tuple[str, ...] = ()


@asynccontextmanager
async def place(cluster: ClusterLike, network: Item, wanted_mac: str | None) -> AsyncIterator[Place]:
    """Find and check the parent, and keep it while an endpoint is made there.

    Raises BadRequest, Conflict, Unavailable or KernelError; a VLAN sub-interface that nobody uses goes again.
    """
    facts = networks.facts(network)
    own = mode_of(facts) in OWN_MAC_MODES
    if wanted_mac is not None and not own:
        raise BadRequest(
            f"mac: endpoints of a {facts.driver} network in mode {mode_of(facts)} have their parent's",
            "leave --mac out",
        )
    async with cluster.desk.lan:
        parent = await _parent(cluster, network)
        cluster.desk.parents[parent.name] += 1
    told = tuple(parents.warnings(parent, facts.driver))
    for line in told:
        log.warning("parent", network=facts.name, warning=line)
    apart = (
        () if facts.host_access else (f"{facts.name}: this host and the endpoint do not reach each other",)
    )
    try:
        yield Place(parent, None if own else parent.mac, (*told, *apart))
    finally:
        with trio.CancelScope(shield=True):
            cluster.desk.parents[parent.name] -= 1
            await sweep(cluster)


async def _parent(cluster: ClusterLike, network: Item) -> Parent:
    """Read and check the parent; make it first where it is a VLAN sub-interface that is missing."""
    facts = networks.facts(network)
    named = parent_of(facts)
    parent = await _read(cluster, named)
    made = None
    if parent.missing and (vlan := vlan_of(parent.name)) is not None:
        base, number = vlan
        carrier = await _read(cluster, base)
        parents.check_carrier(carrier, facts.name, parent.name)
        alias = names.alias(cluster.mark, network.id)
        kernel = cluster.reconciler.in_kernel_thread
        await kernel(cluster.kernel.lan.make_vlan, parent.name, carrier.index, number, alias)
        made = parent.name
        parent = await _read(cluster, named)
    try:
        using = await _users(cluster, parent.name, but=cluster.reconciler.orphans())
        others = [Other(o.name, o.driver, mode_of(o)) for user, o in using.items() if user != network.id]
        parents.check(Asked(facts, parent, others, network.id in using))
    except BaseException:
        if made is not None:
            with trio.CancelScope(shield=True):
                await _delete(cluster, made)
        raise
    return parent


async def _read(cluster: ClusterLike, name: str | None) -> Parent:
    return await cluster.reconciler.in_kernel_thread(cluster.kernel.lan.parent, name)


async def users(cluster: ClusterLike, parent: str) -> list[str]:
    """Name the networks that have endpoints of this host on a parent. Raises KernelError."""
    return sorted(network.name for network in (await _users(cluster, parent)).values())


async def _users(cluster: ClusterLike, parent: str, but: Container[EndpointId] = ()) -> dict[bytes, Network]:
    """Return the networks that have endpoints of this host on a parent, ``but`` for some."""
    using: dict[tuple[bytes, str], Network] = {}
    for network_id in cluster.endpoints.networks_of(cluster.me):
        other = cluster.networks.get(network_id)
        if other is not None and other.driver in LAN_DRIVERS:
            for id_ in cluster.endpoints.at(network_id, cluster.me):
                attachment = cluster.attachments.get(id_)
                if attachment is not None and id_ not in but:
                    using[network_id, attachment.parent] = other
    found: dict[bytes, Network] = {}
    default: str | None = None
    for (network_id, noted), other in using.items():
        name = noted or parent_of(other)  # an earlier version did not note it
        if name is None:
            if default is None:
                try:
                    default = (await _read(cluster, None)).name
                except MeshdError:
                    default = ""
            name = default
        if name == parent:
            found[network_id] = other
    return found


async def claim(
    cluster: ClusterLike,
    network: Item,
    layout: Layout,
    endpoint: EndpointId,
    want: int | None,
    parent: Parent,
) -> int:
    """Reserve an index whose addresses nobody on the LAN has; see space.reserve.

    An address that a stranger has is passed over and rests, unless it was asked for. Raises Conflict naming the
    stranger's MAC.
    """
    passed_over: list[EndpointId] = []
    try:
        for _ in range(LAN_STRANGERS_MAX):
            index = await space.reserve(cluster, network, layout, endpoint, want)
            taken = await _strangers(cluster, parent, layout.ips(index))
            if not taken:
                return index
            cluster.usage.unreserve(endpoint)
            told = ", ".join(f"{text_ip(ip)} by {text_mac(mac)}" for ip, mac in taken.items())
            log.warning("address in use on the LAN", network=networks.facts(network).name, by=told)
            cluster.events.publish(
                "conflict", network=networks.facts(network).name, text=f"in use on the LAN: {told}"
            )
            if want is not None:
                raise Conflict(
                    f"address in use on the LAN of {parent.name}: {told}; nothing was changed",
                    "choose another --ip, or give whoever has it another",
                )
            keeper = cluster.entropy(ID_BYTES)
            passed_over.append(keeper)
            cluster.usage.reserve(network.id, index, keeper)
            cluster.usage.rest(network.id, index, cluster.now())
    finally:
        for keeper in passed_over:
            cluster.usage.unreserve(keeper)
    raise Conflict(
        f"{LAN_STRANGERS_MAX} addresses in a row are in use on the LAN of {parent.name}, lastly {told}; nothing was "
        "changed",
        "give this network a part of the LAN that nobody else gives out: --ip-range or --exclude",
    )


async def _strangers(cluster: ClusterLike, parent: Parent, ips: Sequence[bytes]) -> dict[bytes, bytes]:
    """Ask the LAN, LAN_PROBES times. This host's own addresses it would not answer for."""
    mine = {ipaddress.ip_interface(text).ip.packed for text in parent.addresses}
    taken = {ip: parent.mac for ip in ips if ip in mine}
    if taken:
        return taken
    kernel, lan = cluster.reconciler.in_kernel_thread, cluster.kernel.lan
    try:
        for _ in range(LAN_PROBES):
            taken = await kernel(lan.ask, parent.index, ips)
            until = trio.current_time() + LAN_PROBE_WAIT_S
            while not taken and trio.current_time() < until:
                await trio.sleep(min(LAN_PROBE_POLL_S, until - trio.current_time()))
                taken = await kernel(lan.answers, parent.index, ips)
            if taken:
                return taken
        return {}
    finally:
        with trio.CancelScope(shield=True):
            await kernel(lan.forget, parent.index, ips)


async def make(
    cluster: ClusterLike, network: Item, endpoint: EndpointId, mac: bytes, where: Place, name: str
) -> None:
    """Make the endpoint's device. Raises Unavailable, KernelError with nothing left behind."""
    facts = networks.facts(network)
    guest = Guest(
        name=name,
        kind=facts.driver,
        mode=mode_of(facts),
        alias=names.guest_alias(cluster.mark, network.id, endpoint),
        parent=where.parent.index,
        mtu=facts.mtu,
        mac=mac if where.mac is None else None,
    )
    async with cluster.desk.lan:
        await cluster.reconciler.in_kernel_thread(cluster.kernel.lan.make_guest, guest)


async def tend(cluster: ClusterLike) -> None:
    """Make the VLAN sub-interfaces again that endpoints of this host are on and that went with their parent, now that
    it is back. What cannot be made is tried again next time."""
    for network_id in cluster.endpoints.networks_of(cluster.me):
        facts = cluster.networks.get(network_id)
        parent = parent_of(facts) if facts is not None and facts.driver in LAN_DRIVERS else None
        vlan = vlan_of(parent) if parent is not None else None
        if parent is None or vlan is None or not cluster.endpoints.at(network_id, cluster.me):
            continue
        async with cluster.desk.lan:
            try:
                if not (await _read(cluster, parent)).missing:
                    continue
                carrier = await _read(cluster, vlan[0])
                if carrier.missing or not carrier.up:
                    continue
                alias = names.alias(cluster.mark, network_id)
                await cluster.reconciler.in_kernel_thread(
                    cluster.kernel.lan.make_vlan, parent, carrier.index, vlan[1], alias
                )
                log.info("VLAN sub-interface made again", link=parent)
            except MeshdError as error:
                log.warning("VLAN sub-interface not made again", link=parent, error=error.what)


async def sweep(cluster: ClusterLike) -> None:
    """Delete the VLAN sub-interfaces of ours that no endpoint of this host uses; one that an operator made has no
    mark and stays. What the kernel refuses is tried again next time."""
    async with cluster.desk.lan:
        try:
            found = await cluster.reconciler.in_kernel_thread(cluster.kernel.lan.vlans, cluster.mark)
            for name in found:
                if not cluster.desk.parents[name] and not await _users(cluster, name):
                    await _delete(cluster, name)
        except MeshdError as error:
            log.warning("VLAN sub-interfaces not looked at", error=error.what)


async def _delete(cluster: ClusterLike, name: str) -> None:
    try:
        await cluster.reconciler.in_kernel_thread(cluster.kernel.delete_link, name)
    except MeshdError as error:
        log.warning("VLAN sub-interface stays for now", link=name, error=error.what)
