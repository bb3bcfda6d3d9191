"""One network's share of the desired kernel, and the rows of its remote endpoints, which come and go one by one.

Decides which rows a remote endpoint has (overlay.md 2.7): the VXLAN device's MAC -> host, the bridge's MAC ->
device (neigh_suppress answers only for a MAC that the bridge knows), and for each address the neighbour that
answers. An endpoint that cannot be reached by VXLAN from here gets no row and a finding, rather than a row that
leads astray. Must not know devices' settings nor what the kernel holds.
"""

from collections.abc import Iterable, Mapping

import msgspec

from meshd.model import Endpoint, EndpointId, HostId, NetworkId, text_ip
from meshd.plan import names
from meshd.plan.objects import BROADCAST, FdbKey, FdbTarget, Finding, Kernel, NeighKey, Nexthop
from meshd.plan.view import View

WHY_HOST_UNKNOWN = "host unknown yet: its record has not arrived, so its VXLAN address is not known"
WHY_FAMILY = "its host's VXLAN address is of the other family than this host's, which one device cannot serve"
WHY_TAKEN = "its address or MAC is another endpoint's of this network too, which keeps the rows"


_ON_BRIDGE = FdbTarget()
_OWN = FdbTarget()
_AGED = FdbTarget()


class Part(msgspec.Struct):
    """The share of network ``id``.

    ``omitted``: who should be reachable and has no rows, by endpoint id (or the network's), and why; ``disputed``:
    those of them whose address or MAC is another's.
    ``devices``: of ``kernel`` what is the network's own; ``ends``: what is each local endpoint's.
    ``unknown``: a local endpoint is there but not what it takes to say what belongs to it: what the kernel holds
    for the network is to be left alone. ``claims``: MACs and packed addresses (their lengths differ), and whose
    they are. ``local``: this host's endpoints. ``remote``: those that have rows; ``users``: how many of those
    each host has. ``broadcast``: frames for all go to each of those hosts too, at ``vteps``.
    """

    id: NetworkId
    kernel: Kernel = msgspec.field(default_factory=Kernel)
    omitted: dict[bytes, Finding] = {}
    disputed: set[EndpointId] = set()
    unknown: bool = False
    claims: dict[bytes, EndpointId] = {}
    devices: Kernel = msgspec.field(default_factory=Kernel)
    ends: dict[EndpointId, Kernel] = {}
    local: dict[EndpointId, Endpoint] = {}
    remote: dict[EndpointId, Endpoint] = {}
    users: dict[HostId, int] = {}
    broadcast: bool = False
    vteps: dict[HostId, bytes] = {}
    device: str = ""
    bridge: str = ""

    def __post_init__(self) -> None:
        self.device, self.bridge = names.vxlan(self.id), names.overlay_bridge(self.id)


def add_local(part: Part, id_: EndpointId, endpoint: Endpoint) -> None:
    """Record what a local endpoint claims: it wins over any remote one, since links are not taken down."""
    part.local[id_] = endpoint
    for claim in (endpoint.mac, *endpoint.ips):
        part.claims.setdefault(claim, id_)


def remove_local(part: Part, id_: EndpointId) -> None:
    """Take back what a local endpoint claims."""
    endpoint = part.local.pop(id_)
    for claim in (endpoint.mac, *endpoint.ips):
        if part.claims.get(claim) == id_:
            del part.claims[claim]


def add_remotes(
    part: Part, view: View, endpoints: Iterable[tuple[EndpointId, Endpoint]], ids: Mapping[HostId, int]
) -> None:
    """Add remote endpoints' rows, or for each the finding that says why it has none. ``ids``: names.nexthop_ids."""
    targets: dict[HostId, FdbTarget | str] = {}
    kernel, claims, device, bridge = part.kernel, part.claims, part.device, part.bridge
    for id_, endpoint in endpoints:
        host = endpoint.host
        target = targets.get(host)
        if target is None:
            target = targets[host] = _target(view, host, ids)
        if target is _OWN or target is _AGED:
            continue
        if isinstance(target, str):
            _omit(part, id_, endpoint, target)
            continue
        mac, ips = endpoint.mac, endpoint.ips
        if claims.get(mac, id_) != id_ or any(claims.get(ip, id_) != id_ for ip in ips):
            _omit(part, id_, endpoint, WHY_TAKEN)
            part.disputed.add(id_)
            continue
        claims[mac] = id_
        kernel.fdb[FdbKey(device, mac, "self")] = target
        kernel.fdb[FdbKey(device, mac, "master")] = _ON_BRIDGE
        for ip in ips:
            claims[ip] = id_
            kernel.neigh[NeighKey(bridge, ip)] = mac
        part.remote[id_] = endpoint
        part.users[host] = part.users.get(host, 0) + 1
        if part.broadcast:
            vtep = view.hosts[host].vtep
            part.vteps[host] = vtep
            kernel.fdb[_for_all(part, vtep)] = FdbTarget(dst=vtep)
        if target.nhid is not None and target.nhid not in kernel.nexthops:
            nexthop = ids[host]
            kernel.nexthops[nexthop] = Nexthop(nexthop, via=view.hosts[host].vtep)
            kernel.nexthops[target.nhid] = Nexthop(target.nhid, group=(nexthop,))


def _target(view: View, host: HostId, ids: Mapping[HostId, int]) -> FdbTarget | str:
    """Return where rows of a host's endpoints point, _OWN for this machine, _AGED for a host failed for so long that
    it is no loss not to reach it, or why nowhere."""
    facts, own_vtep = view.hosts.get(host), view.hosts[view.me].vtep
    if facts is None:
        return WHY_HOST_UNKNOWN
    if host in view.aged:
        return _AGED
    if facts.vtep == own_vtep:
        return _OWN  # an earlier identity of this machine, or a clone's: frames would come back to us
    if len(facts.vtep) != len(own_vtep):
        return WHY_FAMILY
    number = ids.get(host) if view.nhid else None
    return FdbTarget(dst=facts.vtep) if number is None else FdbTarget(nhid=number + names.GROUP_OFFSET)


def remove_remote(part: Part, id_: EndpointId) -> Kernel:
    """Take a remote endpoint's rows out, and its host's nexthop with the last of them; return what went."""
    part.omitted.pop(id_, None)
    part.disputed.discard(id_)
    endpoint = part.remote.pop(id_, None)
    went = Kernel()
    if endpoint is None:
        return went
    for claim in (endpoint.mac, *endpoint.ips):
        part.claims.pop(claim, None)
    for row in _fdb_keys(part, endpoint):
        went.fdb[row] = part.kernel.fdb.pop(row)
    for key in _neigh_keys(part, endpoint):
        went.neigh[key] = part.kernel.neigh.pop(key)
    part.users[endpoint.host] -= 1
    if not part.users[endpoint.host]:
        del part.users[endpoint.host]
        vtep = part.vteps.pop(endpoint.host, None)
        if vtep is not None and vtep not in part.vteps.values():
            for_all = _for_all(part, vtep)
            went.fdb[for_all] = part.kernel.fdb.pop(for_all)
        group = went.fdb[_fdb_keys(part, endpoint)[0]].nhid
        if group is not None:
            for number in (group, group - names.GROUP_OFFSET):
                nexthop = part.kernel.nexthops.pop(number, None)
                if nexthop is not None:
                    went.nexthops[number] = nexthop
    return went


def remote_rows(part: Part, id_: EndpointId) -> Kernel:
    """Return a remote endpoint's rows and the nexthops they use; empty if it has none."""
    rows = Kernel()
    endpoint = part.remote.get(id_)
    if endpoint is not None:
        rows.fdb = {key: part.kernel.fdb[key] for key in _fdb_keys(part, endpoint)}
        rows.neigh = {key: part.kernel.neigh[key] for key in _neigh_keys(part, endpoint)}
        vtep = part.vteps.get(endpoint.host)
        if vtep is not None:
            rows.fdb[_for_all(part, vtep)] = FdbTarget(dst=vtep)
        group = rows.fdb[_fdb_keys(part, endpoint)[0]].nhid
        if group is not None:
            ids = (group - names.GROUP_OFFSET, group)
            rows.nexthops = {number: part.kernel.nexthops[number] for number in ids}
    return rows


def has_rival(part: Part, id_: EndpointId, endpoint: Endpoint | None) -> bool:
    """Tell whether any claim in the network is disputed, or ``endpoint`` would dispute one: then who keeps the
    rows depends on all of them."""
    if part.disputed:
        return True
    if endpoint is None:
        return False
    return any(part.claims.get(claim, id_) != id_ for claim in (endpoint.mac, *endpoint.ips))


def _fdb_keys(part: Part, endpoint: Endpoint) -> tuple[FdbKey, FdbKey]:
    return FdbKey(part.device, endpoint.mac, "self"), FdbKey(part.device, endpoint.mac, "master")


def _for_all(part: Part, vtep: bytes) -> FdbKey:
    return FdbKey(part.device, BROADCAST, "self", vtep)


def _neigh_keys(part: Part, endpoint: Endpoint) -> list[NeighKey]:
    return [NeighKey(part.bridge, ip) for ip in endpoint.ips]


def _omit(part: Part, id_: EndpointId, endpoint: Endpoint, why: str) -> None:
    ips = ",".join(text_ip(ip) for ip in endpoint.ips)
    what = f"endpoint {endpoint.name} ({id_.hex()}) {ips} on host {endpoint.host.hex()}"
    part.omitted[id_] = Finding("endpoint", what, why)
