"""Arithmetic on Kernel values: union, overlap, what one op does. Decides nothing about what is wanted."""

from collections.abc import Mapping, Set

import msgspec

from meshd.model import NetworkId
from meshd.plan import elements, names
from meshd.plan.objects import GATE_ACCEPTS, GateState, Kernel
from meshd.plan.ops import (
    DelAddr,
    DelElement,
    DelFdb,
    DelLink,
    DelNeigh,
    DelNexthop,
    DelRoute,
    LeaveGate,
    Op,
    OpenGate,
    PutAddr,
    PutElement,
    PutFdb,
    PutLink,
    PutNeigh,
    PutNexthop,
    PutRoute,
    RemakeLink,
    RenameLink,
    SetFirewall,
)


def join(into: Kernel, more: Kernel) -> None:
    """Add ``more`` to ``into``, which is changed; the firewall is left as it is."""
    into.links.update(more.links)
    into.addrs.update(more.addrs)
    into.routes.update(more.routes)
    into.nexthops.update(more.nexthops)
    into.fdb.update(more.fdb)
    into.neigh.update(more.neigh)
    into.elements.update(more.elements)
    into.gates.update(more.gates)


def overlap(kernel: Kernel, chosen: Kernel) -> Kernel:
    """Return what of ``kernel`` has a key in ``chosen``, firewall included."""
    return Kernel(
        links={key: kernel.links[key] for key in chosen.links if key in kernel.links},
        addrs=kernel.addrs & chosen.addrs,
        routes=kernel.routes & chosen.routes,
        nexthops={key: kernel.nexthops[key] for key in chosen.nexthops if key in kernel.nexthops},
        fdb={key: kernel.fdb[key] for key in chosen.fdb if key in kernel.fdb},
        neigh={key: kernel.neigh[key] for key in chosen.neigh if key in kernel.neigh},
        elements={key: kernel.elements[key] for key in chosen.elements if key in kernel.elements},
        gates={key: kernel.gates[key] for key in chosen.gates if key in kernel.gates},
        firewall=kernel.firewall if chosen.firewall else "",
    )


def subtract(from_: Kernel, keys: Kernel) -> None:
    """Take everything that has a key in ``keys`` out of ``from_``, which is changed."""
    for name in from_.links.keys() & keys.links.keys():
        del from_.links[name]
    from_.addrs -= keys.addrs
    from_.routes -= keys.routes
    for id_ in from_.nexthops.keys() & keys.nexthops.keys():
        del from_.nexthops[id_]
    for row in from_.fdb.keys() & keys.fdb.keys():
        del from_.fdb[row]
    for key in from_.neigh.keys() & keys.neigh.keys():
        del from_.neigh[key]
    for element in from_.elements.keys() & keys.elements.keys():
        del from_.elements[element]
    for gate in from_.gates.keys() & keys.gates.keys():
        del from_.gates[gate]


def beyond(kernel: Kernel, wanted: Kernel) -> Kernel:
    """Return what ``kernel`` has and ``wanted`` has not."""
    return Kernel(
        links={key: value for key, value in kernel.links.items() if key not in wanted.links},
        addrs=kernel.addrs - wanted.addrs,
        routes=kernel.routes - wanted.routes,
        nexthops={key: value for key, value in kernel.nexthops.items() if key not in wanted.nexthops},
        fdb={key: value for key, value in kernel.fdb.items() if key not in wanted.fdb},
        neigh={key: value for key, value in kernel.neigh.items() if key not in wanted.neigh},
        firewall="" if wanted.firewall else kernel.firewall,
        elements={key: value for key, value in kernel.elements.items() if key not in wanted.elements},
        gates={
            gate: state
            for gate, state in kernel.gates.items()
            if state.accepts and gate in wanted.gates and not wanted.gates[gate].accepts
        },
    )


def size(kernel: Kernel) -> int:
    """Count objects."""
    kinds = (
        kernel.links,
        kernel.addrs,
        kernel.routes,
        kernel.nexthops,
        kernel.fdb,
        kernel.neigh,
        kernel.elements,
    )
    opened = sum(state.accepts > 0 for state in kernel.gates.values())
    return sum(map(len, kinds)) + bool(kernel.firewall) + opened


def of_network(kernel: Kernel, mark: str, network_id: NetworkId) -> Kernel:
    """Return the devices whose alias names the network, all that is on them, and the nexthops their rows use."""
    links = {
        name: link
        for name, link in kernel.links.items()
        if names.alias_network(link.alias, mark) == network_id
    }
    fdb = {key: target for key, target in kernel.fdb.items() if key.dev in links}
    groups = {target.nhid for target in fdb.values()}
    members = {
        member for id_, nexthop in kernel.nexthops.items() if id_ in groups for member in nexthop.group
    }
    return Kernel(
        links=links,
        addrs={addr for addr in kernel.addrs if addr.dev in links},
        routes={route for route in kernel.routes if route.dev in links},
        nexthops={id_: value for id_, value in kernel.nexthops.items() if id_ in groups or id_ in members},
        fdb=fdb,
        neigh={key: mac for key, mac in kernel.neigh.items() if key.dev in links},
        elements={key: data for key, data in kernel.elements.items() if elements.device(key) in links},
    )


def device(op: Op) -> str:
    """Return the device that an op is about, or ""."""
    match op:
        case PutLink() | RemakeLink():
            return op.link.name
        case RenameLink():
            return op.new
        case DelLink():
            return op.name
        case PutAddr() | DelAddr():
            return op.addr.dev
        case PutRoute() | DelRoute():
            return op.route.dev
        case PutFdb() | DelFdb() | PutNeigh() | DelNeigh():
            return op.key.dev
        case PutElement() | DelElement():
            return elements.device(op.element)
        case PutNexthop() | DelNexthop() | SetFirewall() | OpenGate() | LeaveGate():
            return ""


def carry_out(kernel: Kernel, op: Op) -> None:
    """Do to ``kernel`` what the op does to the real one."""
    match op:  # rows first: there may be 300,000
        case PutFdb():
            kernel.fdb[op.key] = op.target
        case DelFdb():
            kernel.fdb.pop(op.key, None)
        case PutNeigh():
            kernel.neigh[op.key] = op.mac
        case DelNeigh():
            kernel.neigh.pop(op.key, None)
        case PutLink():
            kernel.links[op.link.name] = op.link
        case RenameLink():
            rename(kernel, {op.old: op.new})
        case RemakeLink():
            drop_devices(kernel, {op.link.name})
            kernel.links[op.link.name] = op.link
        case DelLink():
            drop_devices(kernel, {op.name})
        case PutAddr():
            kernel.addrs.add(op.addr)
        case DelAddr():
            kernel.addrs.discard(op.addr)
        case PutRoute():
            kernel.routes.add(op.route)
        case DelRoute():
            kernel.routes.discard(op.route)
        case PutNexthop():
            kernel.nexthops[op.nexthop.id] = op.nexthop
        case DelNexthop():
            kernel.nexthops.pop(op.id, None)
        case SetFirewall():
            kernel.firewall, kernel.elements = op.text, dict(op.elements)
        case PutElement():
            kernel.elements[op.element] = op.data
        case DelElement():
            kernel.elements.pop(op.element, None)
        case OpenGate():
            kernel.gates[op.gate] = GateState(shut=True, accepts=GATE_ACCEPTS)
        case LeaveGate():
            kernel.gates[op.gate] = GateState(
                kernel.gates[op.gate].shut if op.gate in kernel.gates else False, 0
            )


def rename(kernel: Kernel, devices: Mapping[str, str]) -> None:
    """Call devices otherwise (old name -> new), with all that is on them; ``kernel`` is changed."""
    new = msgspec.structs.replace
    kernel.links = {
        devices.get(name, name): new(
            link, name=devices.get(name, name), master=devices.get(link.master or "", link.master)
        )
        for name, link in kernel.links.items()
    }
    kernel.addrs = {new(addr, dev=devices.get(addr.dev, addr.dev)) for addr in kernel.addrs}
    kernel.routes = {new(route, dev=devices.get(route.dev, route.dev)) for route in kernel.routes}
    kernel.fdb = {new(key, dev=devices.get(key.dev, key.dev)): target for key, target in kernel.fdb.items()}
    kernel.neigh = {new(key, dev=devices.get(key.dev, key.dev)): mac for key, mac in kernel.neigh.items()}


def let_go(kernel: Kernel) -> None:
    """Empty what is not needed any more, row by row: freeing 300,000 rows at once is one step for all threads, of
    0.1 s."""
    for rows in (kernel.fdb, kernel.neigh):
        while rows:
            rows.popitem()


def drop_devices(kernel: Kernel, gone: Set[str]) -> None:
    """A device takes all that is on it along; a bridge also the rows of its ports. Costs a walk over all rows."""
    ports = {port for port, link in kernel.links.items() if link.master in gone}
    for name in gone:
        kernel.links.pop(name, None)
    kernel.addrs -= {addr for addr in kernel.addrs if addr.dev in gone}
    kernel.routes -= {route for route in kernel.routes if route.dev in gone}
    kernel.fdb = {
        key: target
        for key, target in kernel.fdb.items()
        if key.dev not in gone and not (key.where == "master" and key.dev in ports)
    }
    kernel.neigh = {key: mac for key, mac in kernel.neigh.items() if key.dev not in gone}
