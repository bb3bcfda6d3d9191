"""What must be done so that the kernel holds what is desired, and in which order.

Decides the order (the firewall before the devices that it guards; a row never before what it points to; neighbours
last, so that ARP is answered only once the frame has somewhere to go; deletions in reverse, after everything else, so
that a port is guarded for as long as it is there), which device can be adjusted and which
must be made anew, and what the kernel throws away by itself with a device. Must not know why something is
desired, nor carry anything out.
"""

from collections.abc import Iterator, Mapping

import msgspec

from meshd.model import text_ip, text_mac
from meshd.plan import elements, kernels, names, wording
from meshd.plan.objects import GUEST_KINDS, Dump, FdbKey, Finding, Kernel, Link, made_by_attach
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
from meshd.plan.wording import Named

LINK_ORDER = {"bridge": 0, "vxlan": 1, "veth": 2, "macvlan": 3, "ipvlan": 3}
"""A bridge before what is put on it."""

COMPARED_FIELDS = (
    "kind", "vxlan", "parent", "mode", "alias", "mtu", "mac", "master", "port", "narrow", "localnet", "up",
)  # fmt: skip

MAC_BYTES = 6

WHY_ABSENT = "not in the kernel"
WHY_NO_VETH = "gone: its namespace ended or somebody deleted it; released unless it comes back"
WHY_STALE = "no record explains it"
WHY_SHUT = "that chain drops what is forwarded for our networks"
WHY_GATE_NOT_NEEDED = "nothing is dropped there for want of them, or open_forward is off"


def link_differences(want: Link, have: Link) -> dict[str, str]:
    """Say field by field how a device differs; empty when it does not. None in ``want`` is not compared."""
    differences = {}
    for field in COMPARED_FIELDS:
        desired, found = getattr(want, field), getattr(have, field)
        optional = (field in ("mac", "port") and desired is None) or (
            field in ("narrow", "mtu") and not desired
        )
        if desired != found and not optional:
            differences[field] = _difference(field, found, desired)
    return differences


def must_remake(want: Link, have: Link) -> bool:
    """Tell whether a device differs in what the kernel cannot change on one that exists: its kind; of a vxlan
    device its VNI, port and the family of its own address; of the host's own macvlan what it is on, and how. All else
    is adjusted in place, its address too."""
    if want.parent and (want.kind, want.parent, want.mode) != (have.kind, have.parent, have.mode):
        return True
    if want.kind != have.kind or (want.vxlan is None) is not (have.vxlan is None):
        return True
    if want.vxlan is None or have.vxlan is None:
        return False
    fixed = [(vxlan.vni, vxlan.port, len(vxlan.local)) for vxlan in (want.vxlan, have.vxlan)]
    return fixed[0] != fixed[1]


def diff(desired: Kernel, actual: Kernel, *, deletions: bool, gone: Kernel | None = None) -> list[Op]:
    """Return what makes ``actual`` into ``desired``. Equal kernels give nothing.

    ``deletions`` False: what is not desired stays, but for what is in ``gone`` (compared by key): what a record
    of this host's own explained until it was removed. A wanted veth that is not there is not made, and its rows
    wait for it: see objects.Link.
    """
    renamed = renames(desired, actual)
    if renamed:
        actual = msgspec.structs.replace(actual)
        kernels.rename(actual, renamed)
    loss = _Loss(desired, actual)
    ops: list[Op] = [*_firewall(desired, actual)]
    ops += [RenameLink(old, new) for old, new in renamed.items()]
    ops += [*_links(desired, actual), *_additions(desired, actual, loss)]
    if deletions:
        ops += _deletions(desired, actual, _without_lan_bridges(actual, gone), loss)
    elif gone is not None:
        ops += _deletions(desired, actual, kernels.overlap(actual, gone), loss)
    return ops


def _without_lan_bridges(actual: Kernel, gone: Kernel | None) -> Kernel:
    """Leave an operator's bridge out of what is deleted for want of a record: the host's own addresses may be on it.
    Only its removal here (``gone``) deletes one."""
    kept = {
        name
        for name, link in actual.links.items()
        if names.is_lan_bridge(link.alias) and (gone is None or name not in gone.links)
    }
    if not kept:
        return actual
    links = {name: link for name, link in actual.links.items() if name not in kept}
    return msgspec.structs.replace(actual, links=links)


def renames(desired: Kernel, actual: Kernel) -> dict[str, str]:
    """Return devices that are there under another name (-> the right one), known by their mark and kind. Making them
    anew would lose what is on them, and of a veth the endpoint."""
    absent = {
        (link.alias, link.kind): name for name, link in desired.links.items() if name not in actual.links
    }
    found: dict[str, str] = {}
    for name in sorted(actual.links.keys() - desired.links.keys()) if absent else ():
        link = actual.links[name]
        right = absent.pop((link.alias, link.kind), None)
        if right is not None:
            found[name] = right
    return found


class _Loss:
    """Which rows the kernel drops by itself when the links are put right, and which cannot be written."""

    def __init__(self, desired: Kernel, actual: Kernel) -> None:
        self.remade: set[str] = set()
        self.moved: set[str] = set()  # leaves its bridge, and its rows there
        self.renumbered: set[str] = set()  # a new MAC flushes the device's neighbours (neigh_changeaddr)
        self.absent: set[str] = set()
        for name, want in desired.links.items():
            have = actual.links.get(name)
            if made_by_attach(want) and (have is None or have.kind != want.kind):
                self.absent.add(name)
            elif have is not None:
                differences = link_differences(want, have)
                if must_remake(want, have):
                    self.remade.add(name)
                if "mac" in differences:
                    self.renumbered.add(name)
                if "master" in differences:
                    self.moved.add(name)
        for name, have in actual.links.items():
            if have.master in self.remade:
                self.moved.add(name)

    def fdb(self, key: FdbKey) -> bool:
        return key.dev in self.remade or (key.where == "master" and key.dev in self.moved)

    def neigh(self, dev: str) -> bool:
        return dev in self.remade or dev in self.renumbered


def _links(desired: Kernel, actual: Kernel) -> Iterator[Op]:
    remade: set[str] = set()
    for want in sorted(desired.links.values(), key=lambda link: (LINK_ORDER[link.kind], link.name)):
        have = actual.links.get(want.name)
        if have is None:
            if not made_by_attach(want):
                yield PutLink(want)
            continue
        differences = link_differences(want, have)
        fixed = must_remake(want, have)
        if (want.kind in GUEST_KINDS and not want.parent) or (fixed and want.kind == "veth"):
            continue  # only its endpoint's attach can make one
        if fixed:
            remade.add(want.name)
            why = [
                differences[field] for field in ("kind", "vxlan", "parent", "mode") if field in differences
            ]
            yield RemakeLink(want, "; ".join(why))
        elif differences or have.master in remade:
            yield PutLink(want)


def _additions(desired: Kernel, actual: Kernel, loss: _Loss) -> Iterator[Op]:
    for addr in sorted(desired.addrs):
        if addr not in actual.addrs or addr.dev in loss.remade:
            yield PutAddr(addr)
    for route in sorted(desired.routes):
        if route not in actual.routes or route.dev in loss.remade:
            yield PutRoute(route)
    for grouped in (False, True):
        for id_, nexthop in desired.nexthops.items():
            if bool(nexthop.group) is grouped and actual.nexthops.get(id_) != nexthop:
                yield PutNexthop(nexthop)
    found, lost = actual.fdb.get, loss.fdb
    if not (loss.remade or loss.moved):
        wrong = [key for key, target in desired.fdb.items() if found(key) != target]
    else:
        wrong = [key for key, target in desired.fdb.items() if found(key) != target or lost(key)]
    for where in ("self", "master"):
        for key in wrong:
            if key.where != where or key.dev in loss.absent:
                continue
            target = desired.fdb[key]
            have = None if lost(key) else found(key)
            if have is not None and (have.nhid is None) is not (target.nhid is None):
                yield DelFdb(key)  # vxlan_fdb_update_existing refuses to turn one sort into the other
            yield PutFdb(key, target)
    neighbour = actual.neigh.get
    for row in [row for row, mac in desired.neigh.items() if neighbour(row) != mac or loss.neigh(row.dev)]:
        yield PutNeigh(row, desired.neigh[row])


def _firewall(desired: Kernel, actual: Kernel) -> Iterator[Op]:
    if desired.firewall and desired.firewall != actual.firewall:
        yield SetFirewall(desired.firewall, tuple(sorted(desired.elements.items())))
    else:
        for element, data in desired.elements.items():
            if actual.elements.get(element) != data:
                yield PutElement(element, data)
    for gate, state in desired.gates.items():
        if actual.gates.get(gate) != state:
            yield OpenGate(gate) if state.accepts else LeaveGate(gate)


def _deletions(desired: Kernel, actual: Kernel, doomed: Kernel, loss: _Loss) -> Iterator[Op]:
    """Delete what is in ``doomed`` and not desired. A device takes its rows with it: those are not named."""
    links = [link for name, link in doomed.links.items() if name not in desired.links]
    going = {link.name for link in links}
    leaving = going | {link.name for link in actual.links.values() if link.master in going}
    for row in [row for row in doomed.neigh if row not in desired.neigh]:
        if row.dev not in going and not loss.neigh(row.dev):
            yield DelNeigh(row)
    deleted = {key: None for key in doomed.fdb if key not in desired.fdb}
    for where in ("master", "self"):
        for key in deleted:
            kept = key.dev not in (leaving if where == "master" else going) and not loss.fdb(key)
            if key.where == where and kept:
                yield DelFdb(key)
    yield from _nexthop_deletions(desired, actual, doomed, deleted, going)
    for route in sorted(doomed.routes - desired.routes):
        if route.dev not in going and route.dev not in loss.remade:
            yield DelRoute(route)
    for addr in sorted(doomed.addrs - desired.addrs):
        if addr.dev not in going and addr.dev not in loss.remade:
            yield DelAddr(addr)
    for link in sorted(links, key=lambda link: (-LINK_ORDER[link.kind], link.name)):
        yield DelLink(link.name)
    if doomed.firewall and not desired.firewall:
        yield SetFirewall("")
    elif desired.firewall == actual.firewall:
        for element in doomed.elements:
            if element not in desired.elements:
                yield DelElement(element)


def _nexthop_deletions(
    desired: Kernel, actual: Kernel, doomed: Kernel, deleted: Mapping[FdbKey, None], going: set[str]
) -> Iterator[Op]:
    """Groups, then nexthops; none that a row which stays still uses, since the kernel would drop the row."""
    ids = [id_ for id_ in doomed.nexthops if id_ not in desired.nexthops]
    if not ids:
        return
    used = {target.nhid for target in desired.fdb.values()}
    for key, target in actual.fdb.items():
        if key not in desired.fdb and key not in deleted and key.dev not in going:
            used.add(target.nhid)
    for id_, nexthop in actual.nexthops.items():
        if id_ in used or id_ not in ids:
            used.update(desired.nexthops.get(id_, nexthop).group)
    for grouped in (True, False):
        for id_ in ids:
            if id_ not in used and bool(actual.nexthops[id_].group) is grouped:
                yield DelNexthop(id_)


def findings(
    desired: Kernel, dump: Dump, refused: Mapping[Named, str] | None = None
) -> dict[str, list[Finding]]:
    """Compare for people: ``missing`` (absent or different), ``stale`` (ours and not desired), ``foreign``.

    ``refused``: why what was tried has not come about, by wording.of(op).
    """
    actual, refused = msgspec.structs.replace(dump.ours), refused or {}
    renamed = renames(desired, actual)
    if renamed:
        kernels.rename(actual, renamed)
    misnamed = [(wording.link(new), f"is named {old}") for old, new in renamed.items()]
    missing, stale = (
        [Finding(*named, f"{why}; {refused[named]}" if named in refused else why) for named, why in found]
        for found in ([*misnamed, *_missing(desired, actual)], _stale(desired, actual))
    )
    return {"missing": missing, "stale": stale, "foreign": list(dump.foreign)}


def _missing(desired: Kernel, actual: Kernel) -> Iterator[tuple[Named, str]]:
    for name, want in desired.links.items():
        have = actual.links.get(name)
        if have is None:
            yield wording.link(name), WHY_NO_VETH if made_by_attach(want) else WHY_ABSENT
        elif differences := link_differences(want, have):
            yield wording.link(name), "; ".join(differences.values())
    for addr in sorted(desired.addrs - actual.addrs):
        yield wording.addr(addr), WHY_ABSENT
    for route in sorted(desired.routes - actual.routes):
        yield wording.route(route), WHY_ABSENT
    for id_, nexthop in desired.nexthops.items():
        found = actual.nexthops.get(id_)
        if found != nexthop:
            says = wording.nexthop_says
            yield wording.nexthop(id_), WHY_ABSENT if found is None else _is_not(says(found), says(nexthop))
    for key, target in desired.fdb.items():
        row = actual.fdb.get(key)
        if row != target:
            fdb = wording.fdb_says
            yield wording.fdb(key), WHY_ABSENT if row is None else _is_not(fdb(row), fdb(target))
    for neighbour, mac in desired.neigh.items():
        lladdr = actual.neigh.get(neighbour)
        if lladdr != mac:
            why = WHY_ABSENT if lladdr is None else _is_not(text_mac(lladdr), text_mac(mac))
            yield wording.neigh(neighbour), why
    if desired.firewall and desired.firewall != actual.firewall:
        yield wording.FIREWALL, "differs from what it should say" if actual.firewall else WHY_ABSENT
    else:
        for element, data in desired.elements.items():
            value = actual.elements.get(element)
            if value is None:
                yield wording.element(element), WHY_ABSENT
            elif value != data:
                yield (
                    wording.element(element),
                    _is_not(elements.text(element, value), elements.text(element, data)),
                )
    for gate, state in desired.gates.items():
        if state.accepts and actual.gates.get(gate) != state:
            yield wording.gate(gate), WHY_SHUT


def _stale(desired: Kernel, actual: Kernel) -> Iterator[tuple[Named, str]]:
    for name in actual.links.keys() - desired.links.keys():
        yield wording.link(name), WHY_STALE
    for addr in sorted(actual.addrs - desired.addrs):
        yield wording.addr(addr), WHY_STALE
    for route in sorted(actual.routes - desired.routes):
        yield wording.route(route), WHY_STALE
    for id_ in actual.nexthops.keys() - desired.nexthops.keys():
        yield wording.nexthop(id_), WHY_STALE
    for key in [key for key in actual.fdb if key not in desired.fdb]:  # a difference of sets is one long step
        yield wording.fdb(key), f"{WHY_STALE}: {wording.fdb_says(actual.fdb[key])}"
    for row in [row for row in actual.neigh if row not in desired.neigh]:
        yield wording.neigh(row), f"{WHY_STALE}: lladdr {text_mac(actual.neigh[row])}"
    if actual.firewall and not desired.firewall:
        yield wording.FIREWALL, WHY_STALE
    elif actual.firewall == desired.firewall:
        for element in actual.elements.keys() - desired.elements.keys():
            yield wording.element(element), WHY_STALE
    for gate, state in actual.gates.items():
        if state.accepts and gate in desired.gates and not desired.gates[gate].accepts:
            yield wording.gate(gate), WHY_GATE_NOT_NEEDED


def _is_not(found: str, desired: str) -> str:
    return f"is {found}, should be {desired}"


def _difference(field: str, found: object, desired: object) -> str:
    """Say how a field differs; of a struct only the fields within that do."""
    if isinstance(found, msgspec.Struct) and isinstance(desired, msgspec.Struct):
        inner = desired.__struct_fields__
        pairs = [(name, getattr(found, name), getattr(desired, name)) for name in inner]
        return "; ".join(_difference(*pair) for pair in pairs if pair[1] != pair[2])
    return f"{field} {_is_not(_show(found), _show(desired))}"


def _show(value: object) -> str:
    if isinstance(value, bytes):
        return text_mac(value) if len(value) == MAC_BYTES else text_ip(value)
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, msgspec.Struct):
        return "set"
    return "none" if value is None else str(value)
