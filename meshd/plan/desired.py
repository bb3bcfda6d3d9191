"""What this host's kernel should hold, as a pure function of a View. Must not know what the kernel holds, nor
when or in what order anything is written.

An overlay is programmed only where it has a local endpoint, a ``bridge`` network always. Rows of a failed host
stay until its endpoint's record is released or names another host, or until they are aged: see view.py. An internal network's bridge
carries no gateway address: with one, its endpoints would reach this host and, by the weak host model, every
address of it; without one there is nothing to route to, and the firewall drops what is sent anyway.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import msgspec

from meshd import config
from meshd.model import HOST_NETNS, Endpoint, EndpointId, HostId, Network, NetworkId
from meshd.plan import firewall, kernels, names
from meshd.plan.bridges import lan_link
from meshd.plan.elements import Elements
from meshd.plan.objects import (
    GATE_ACCEPTS,
    GUEST_KINDS,
    Addr,
    FdbKey,
    FdbTarget,
    Finding,
    Gate,
    GateState,
    Kernel,
    Link,
    LinkKind,
    Port,
    Route,
    Vxlan,
    guest,
)
from meshd.plan.part import Part, add_local, add_remotes, remove_remote
from meshd.plan.view import View
from meshd.state import vips
from meshd.state.lan import mode_of

BRIDGED_DRIVERS = ("overlay", "bridge")
"""Drivers that have a bridge of ours; the others have only their endpoints' devices."""

VXLAN_PORT = Port(
    learning=False, flood=False, mcast_flood=False, bcast_flood=False, neigh_suppress=True, locked=True
)
"""Nothing unknown leaves the host, and ARP and ND are answered from the rows: zero ARP on the wire. Nothing unknown
comes in either: a frame from a MAC that no record places on another host, a local one's among them, is dropped."""

VXLAN_PORT_FOR_ALL = Port(learning=False, flood=False, neigh_suppress=True, locked=True)
"""The same where broadcast and multicast frames are to go to all: still nothing unknown, still no ARP for whom the
rows know."""

VXLAN_PORT_WITH_VIPS = Port(learning=False, flood=False, neigh_suppress=False, locked=True)
"""The same where endpoints pass addresses on to each other: the kernel keeps gratuitous ARP from a port that suppresses
(br_do_proxy_suppress_arp), and it is what every container's neighbour table has to see."""

LINK_LOCAL_PREFIX = 64
"""Bits (RFC 4291) of the address that a device of ours has where packets are forwarded to it over IPv6: without one the
kernel solicits nobody for what it forwards (net/ipv6/ndisc.c, ndisc_send_ns)."""

WHY_NETWORK_UNKNOWN = "network unknown yet: its record has not arrived; what is there stays"
WHY_ME_UNKNOWN = "this host's own VXLAN address is not known yet; what is there stays"


def desired(view: View) -> Kernel:
    """Return all that should be ours in this host's kernel."""
    return merged(view, desired_parts(view))


def desired_parts(view: View) -> dict[NetworkId, Part]:
    """Return every network's share; networks that only endpoints name included."""
    ids = names.nexthop_ids(view.hosts, view.vxlan_port)
    members: dict[NetworkId, list[EndpointId]] = {network: [] for network in view.networks}
    for id_, endpoint in view.endpoints.items():
        members.setdefault(endpoint.network, []).append(id_)
    members.update((bridge, []) for bridge in view.bridges)
    return {network: network_part(view, network, ids, of) for network, of in members.items()}


def desired_network(view: View, network_id: NetworkId) -> Kernel:
    """Return what should be there for one network, the nexthops that its rows use included."""
    return network_part(
        view, network_id, names.nexthop_ids(view.hosts, view.vxlan_port), members_of(view, network_id)
    ).kernel


def members_of(view: View, network_id: NetworkId) -> list[EndpointId]:
    """List a network's endpoints, all hosts'."""
    return members_of_each(view, {network_id})[network_id]


def members_of_each(view: View, networks: Iterable[NetworkId]) -> dict[NetworkId, list[EndpointId]]:
    """List networks' endpoints, all hosts', in one pass over what there is."""
    members: dict[NetworkId, list[EndpointId]] = {network: [] for network in networks}
    for id_, endpoint in view.endpoints.items():
        found = members.get(endpoint.network)
        if found is not None:
            found.append(id_)
    return members


def merged(view: View, parts: Mapping[NetworkId, Part]) -> Kernel:
    """Join the networks' shares and add the firewall."""
    text = firewall_text(view, parts)
    whole = Kernel(firewall=text)
    if text:
        whole.elements.update(member_elements(view))
    by_size = sorted((part.kernel for part in parts.values()), key=lambda kernel: -len(kernel.fdb))
    for kernel in by_size[:1]:  # to copy 200,000 rows takes 5 ms, to add as many 40, and either is one step
        whole.fdb, whole.neigh = kernel.fdb.copy(), kernel.neigh.copy()
    for kernel in by_size:
        whole.links.update(kernel.links)
        whole.addrs.update(kernel.addrs)
        whole.routes.update(kernel.routes)
        whole.nexthops.update(kernel.nexthops)
        whole.elements.update(kernel.elements)
    for kernel in by_size[1:]:
        whole.fdb.update(kernel.fdb)
        whole.neigh.update(kernel.neigh)
    return whole


def firewall_text(view: View, parts: Mapping[NetworkId, Part]) -> str:
    """Render the tables' rules, "" where no network has a bridge here."""
    links = (link for part in parts.values() for link in part.kernel.links.values())
    if all(link.kind in GUEST_KINDS for link in links):
        return ""
    return firewall.render(gossip_port=view.gossip_port, vxlan_port=view.vxlan_port)


def member_elements(view: View) -> Elements:
    """Return the elements that say whose VXLAN frames are taken: of all hosts known, since a failed daemon is not a
    failed host."""
    return firewall.member_elements(facts.vtep for facts in view.hosts.values())


def gates(view: View, text: str, found: Mapping[Gate, GateState]) -> dict[Gate, GateState]:
    """Return what should be in others' chains that were found, with ``text`` as our own tables': our accepts where
    what is forwarded would be dropped, nothing of ours elsewhere."""
    opened = bool(text) and view.open_forward
    return {
        gate: GateState(state.shut, GATE_ACCEPTS if opened and state.shut else 0)
        for gate, state in found.items()
    }


def bridge_name(network_id: NetworkId, network: Network) -> str:
    """Name the network's bridge."""
    return names.overlay_bridge(network_id) if network.driver == "overlay" else names.bridge(network_id)


def outward(view: View, version: int) -> list[str]:
    """Name the networks here whose endpoints are to reach the outside over IP ``version`` 4 or 6."""
    own = (
        view.endpoints.get(id_) for id_ in view.attachments
    )  # all hosts' are 100,000, asked for by every status
    here = {endpoint.network for endpoint in own if endpoint is not None and endpoint.host == view.me}
    return [
        network.name
        for id_, network in view.networks.items()
        if id_ in here
        and network.driver in BRIDGED_DRIVERS
        and not network.internal
        and any((":" in subnet.cidr) == (version == 6) for subnet in network.subnets)  # asked by every status
    ]


def network_mtu(view: View, network: Network) -> int:
    """Return bytes for every device of the network: its own, or what the underlay leaves room for."""
    me = view.hosts.get(view.me)
    if network.mtu or network.driver != "overlay" or me is None or not me.underlay_mtu:
        return network.mtu or config.MTU_DEFAULT
    return me.underlay_mtu - (config.VXLAN_OVERHEAD_V4 if len(me.vtep) == 4 else config.VXLAN_OVERHEAD_V6)


def network_part(
    view: View, network_id: NetworkId, ids: Mapping[HostId, int], members: Iterable[EndpointId]
) -> Part:
    """Work out one network's share, or an operator's bridge. ``ids``: names.nexthop_ids; ``members``: its endpoints'
    ids, all hosts'."""
    part = Part(network_id)
    if network_id in view.bridges:
        link = lan_link(view.cluster, network_id, view.bridges[network_id])
        part.kernel.links[link.name] = link
        return part
    network = view.networks.get(network_id)
    members = list(members)
    local = sorted(id_ for id_ in members if view.endpoints[id_].host == view.me)
    if network is None:
        return _unknown(network_id, WHY_NETWORK_UNKNOWN) if local else part
    overlay = network.driver == "overlay"
    if network.driver in GUEST_KINDS:
        _guests(part, view, local, network)
        return part
    if network.driver not in BRIDGED_DRIVERS or (overlay and not local):
        return part
    if overlay and view.me not in view.hosts:
        return _unknown(network_id, WHY_ME_UNKNOWN)
    part.broadcast = overlay and network.broadcast
    for id_ in local:
        add_local(part, id_, view.endpoints[id_])
        part.ends[id_] = host_end(view, id_, view.endpoints[id_], network)
    part.devices = devices(view, network_id, network, part.local)
    for share in (part.devices, *part.ends.values()):
        kernels.join(part.kernel, share)
    if part.devices.links[bridge_name(network_id, network)].localnet:
        _open_loopback(part.kernel, (names.host(network_id),))
    if overlay:
        away = [id_ for id_ in members if id_ not in part.local]
        add_remotes(part, view, ((id_, view.endpoints[id_]) for id_ in away), ids)
        if part.disputed:  # where two claim one address, the choice must not depend on arrival
            for id_ in away:
                remove_remote(part, id_)
            add_remotes(part, view, ((id_, view.endpoints[id_]) for id_ in sorted(away)), ids)
    return part


def _unknown(network_id: NetworkId, why: str) -> Part:
    finding = Finding("network", f"network {network_id.hex()}", why)
    return Part(network_id, omitted={network_id: finding}, unknown=True)


def _guests(part: Part, view: View, local: Iterable[EndpointId], network: Network) -> None:
    """A macvlan or ipvlan network is the LAN: nothing of it is here but its endpoints' own devices, and the host's."""
    for id_ in local:
        add_local(part, id_, view.endpoints[id_])
        attachment = view.attachments.get(id_)
        if attachment is not None and attachment.netns_cookie == HOST_NETNS:
            here = [view.endpoints[other] for other in local if other != id_]
            _shim(part, view, network, view.endpoints[id_], attachment.parent, here)
        elif attachment is not None:
            mark = names.guest_alias(view.cluster, part.id, id_)
            name = attachment.host_if
            part.kernel.links[name] = guest(name, cast("LinkKind", network.driver), mark)


def _shim(
    part: Part, view: View, network: Network, mine: Endpoint, parent: str, others: Iterable[Endpoint]
) -> None:
    """The host's own device on a macvlan network. The LAN stays reached by the parent; by this one go only the
    endpoints on this host, each by a route of its own, which the parent cannot reach."""
    name, kernel = names.shim(part.id), part.kernel
    kernel.links[name] = Link(
        name,
        cast("LinkKind", network.driver),
        names.alias(view.cluster, part.id),
        network_mtu(view, network),
        mac=mine.mac,
        narrow=True,
        parent=parent,
        mode=mode_of(network),
    )
    source = {len(ip): ip for ip in mine.ips}
    for ip in mine.ips:
        kernel.addrs.add(Addr(name, ip, 8 * len(ip)))
        if len(ip) == 16:
            kernel.addrs.add(Addr(name, firewall.link_local(mine.mac), LINK_LOCAL_PREFIX))
    kernel.routes.update(
        Route(name, ip, source[len(ip)]) for other in others for ip in other.ips if len(ip) in source
    )


def devices(
    view: View, network_id: NetworkId, network: Network, local: Mapping[EndpointId, Endpoint]
) -> Kernel:
    """Return bridge, its gateway addresses and, for an overlay, the VXLAN device. ``local``: its endpoints here.

    Where the host is an endpoint itself its device has the subnets' routes, so that the host speaks for
    itself; the gateway's addresses are just there, and are nobody's source (they are every host's, so that an answer
    would go to another one).
    """
    kernel, there = Kernel(), [id_ for id_ in local if id_ in view.attachments]
    host = any(view.attachments[id_].netns_cookie == HOST_NETNS for id_ in there)
    published = any(local[id_].published for id_ in there)
    alias, mtu = names.alias(view.cluster, network_id), network_mtu(view, network)
    bridge = bridge_name(network_id, network)
    mac = names.gateway_mac(network_id)
    kernel.links[bridge] = Link(bridge, "bridge", alias, mtu, mac=mac, narrow=host, localnet=published)
    also = (names.host(network_id),) if host else ()
    kernel.elements.update(firewall.network_elements(bridge, network, also))
    kernel.elements.update(firewall.vip_elements(vips.packed(network)))
    for subnet in network.subnets:
        if subnet.gateway and not network.internal:
            prefix = ipaddress.ip_network(subnet.cidr)
            bits = prefix.max_prefixlen if host else prefix.prefixlen
            gateway = ipaddress.ip_address(subnet.gateway).packed
            kernel.addrs.add(Addr(bridge, gateway, bits))
            if len(gateway) == 16:
                kernel.addrs.add(Addr(bridge, firewall.link_local(mac), LINK_LOCAL_PREFIX))
    if network.driver == "overlay":
        name = names.vxlan(network_id)
        kernel.links[name] = Link(
            name,
            "vxlan",
            alias,
            mtu,
            mac=names.vtep_mac(network_id, view.me),
            master=bridge,
            port=_tunnel_port(network),
            vxlan=Vxlan(network.vni, view.hosts[view.me].vtep, view.vxlan_port),
        )
    return kernel


def _tunnel_port(network: Network) -> Port:
    if vips.packed(network):
        return VXLAN_PORT_WITH_VIPS
    return VXLAN_PORT_FOR_ALL if network.broadcast else VXLAN_PORT


def host_end(view: View, id_: EndpointId, endpoint: Endpoint, network: Network) -> Kernel:
    """Return the host end of the veth pair and its static row, without which a third container sees the frames."""
    kernel, attachment = Kernel(), view.attachments.get(id_)
    if attachment is None:
        return kernel  # attached by an earlier boot and about to be released: there is no link to speak of
    alias, mtu = names.alias(view.cluster, endpoint.network), network_mtu(view, network)
    is_host, far = attachment.netns_cookie == HOST_NETNS, names.host(endpoint.network)
    kernel.links[attachment.host_if] = Link(
        attachment.host_if,
        "veth",
        names.alias(view.cluster, endpoint.network, id_),
        mtu,
        master=bridge_name(endpoint.network, network),
        port=Port(isolated=firewall.isolates_ports(network), hairpin=bool(endpoint.published)),
        peer=far if is_host else None,
    )
    if is_host:
        kernel.links[far] = Link(
            far, "veth", alias, mtu, mac=endpoint.mac, peer=attachment.host_if, narrow=True
        )
        for ip in endpoint.ips:
            kernel.addrs.add(Addr(far, ip, _prefixlen(network, ip)))
            if len(ip) == 16:
                kernel.addrs.add(Addr(far, firewall.link_local(endpoint.mac), LINK_LOCAL_PREFIX))
        kernel.routes.update(_other_subnets(network, endpoint, far))
    kernel.fdb[FdbKey(attachment.host_if, endpoint.mac, "master")] = FdbTarget(local=True)
    kernel.elements.update(
        firewall.own_port_elements(attachment.host_if, endpoint)
        if is_host
        else firewall.port_elements(attachment.host_if, endpoint, vips.packed(network))
    )
    if endpoint.published:
        kernel.elements.update(firewall.published_elements(endpoint))
        kernel.elements.update(firewall.loop_elements(attachment.host_if, endpoint))
    return kernel


def _other_subnets(network: Network, mine: Endpoint, device: str) -> Iterator[Route]:
    """Yield the routes by the host's own device to the subnets that its addresses are not in: on the same wire, like
    those of a container."""
    source = {len(ip): ip for ip in mine.ips}
    for prefix in (ipaddress.ip_network(subnet.cidr) for subnet in network.subnets):
        ip = source.get(len(prefix.network_address.packed))
        if ip is not None and ipaddress.ip_address(ip) not in prefix:
            yield Route(device, prefix.network_address.packed, ip, prefix.prefixlen)


def _open_loopback(kernel: Kernel, devices: Iterable[str]) -> None:
    """Let packets from 127.0.0.0/8 be routed to those of the devices that there are: ports may be published on it."""
    for name in devices:
        if name in kernel.links:
            kernel.links[name] = msgspec.structs.replace(kernel.links[name], localnet=True)


def _prefixlen(network: Network, ip: bytes) -> int:
    """Return the length of the subnet that an address lies in; of none, its own."""
    address = ipaddress.ip_address(ip)
    for subnet in network.subnets:
        prefix = ipaddress.ip_network(subnet.cidr)
        if address in prefix:
            return prefix.prefixlen
    return address.max_prefixlen
