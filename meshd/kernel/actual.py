"""What is ours in the kernel, as plan/objects.py says it, and what is on our devices without being ours. It
decides ownership; what should be there is plan/desired.py's.

Ours is: a device whose alias has our mark; on those devices the rows that rows.py's table lists, and the
addresses with our protocol; nexthops with our protocol and an id of this cluster's; the firewall's tables, and our accepts in others' chains. What the kernel itself puts on
a device (its own MAC, multicast, neighbours it learns) is nobody's and left out.
"""

from collections.abc import Mapping

import msgspec

from meshd.config import ROUTE_PROTOCOL, VXLAN_PORT
from meshd.kernel import addresses, hostroutes, linkdump, netlink, nexthops, rows
from meshd.kernel.gates import Gates
from meshd.kernel.guests import Guests
from meshd.kernel.links import marked
from meshd.kernel.nft import Firewall
from meshd.model import text_ip, text_mac
from meshd.plan import names
from meshd.plan.objects import BROADCAST, Addr, Dump, FdbKey, FdbTarget, Finding, Kernel, NeighKey, Route

_FAMILIES = (2, 10)  # AF_INET, AF_INET6
_PROTOCOL_KERNEL = 2  # linux/rtnetlink.h, RTPROT_KERNEL: the way to a device's own prefix


def dump(
    link: netlink.Netlink,
    firewall: Firewall,
    gates: Gates,
    mark: str,
    text: str = "",
    guests: Guests | None = None,
    vxlan_port: int = VXLAN_PORT,
    ahead: list[bytes] | None = None,
) -> Dump:
    """Read everything. ``mark``: names.cluster_mark; ``text``: the firewall that should be there, which lets
    a restarted daemon recognise its own (nft.py); ``ahead``: FDB rows as ahead.py has read them. Raises KernelError."""
    found = Dump(ours=Kernel())
    devices = {
        index: seen
        for index, seen in _links(link, mark, found).items()
        if not names.is_lan_bridge(seen.alias)  # what is on it is the host's own
    }
    if guests is not None:
        # After our own namespace: what is being moved meanwhile is then seen in one of the two.
        for seen in guests.look(lambda seen: guest_name(seen, mark)):
            value = linkdump.to_guest(seen, mark)
            if value is not None:
                found.ours.links[value.name] = value
    _addresses(link, devices, found)
    _routes(link, devices, found)
    _nexthops(link, names.nexthops_of(vxlan_port), found)
    chunks = link.dump(rows.dump_request(rows.AF_BRIDGE)) if ahead is None else ahead
    _fdb(chunks, devices, found)
    _neighbours(link, devices, found)
    found.ours.firewall, found.ours.elements = firewall.current(text)
    found.ours.gates = gates.read()
    return found


def guest_name(seen: linkdump.Seen, mark: str) -> str | None:
    """Return what plans call a guest, None for what is none of this cluster's."""
    value = linkdump.to_guest(seen, mark)
    return None if value is None else value.name


def _foreign(found: Dump, kind: str, what: str, why: str) -> None:
    found.foreign.append(Finding(kind, what, why))


def _links(link: netlink.Netlink, mark: str, found: Dump) -> dict[int, linkdump.Seen]:
    """Read the devices; return those that are ours by ifindex."""
    everything = linkdump.parse_all(link.dump(linkdump.dump_request()))
    by_index = found.devices = {seen.ifindex: seen.name for seen in everything}
    ours: dict[int, linkdump.Seen] = {}
    for seen in everything:
        if names.alias_network(seen.alias, mark) is None:
            continue
        value = linkdump.to_guest(seen, mark) or linkdump.to_link(
            seen, by_index.get(seen.master), by_index.get(seen.peer)
        )
        if value is not None and value.name != seen.name:  # one not moved yet is to be found and deleted here
            value = msgspec.structs.replace(value, name=seen.name)
        if seen.kind == "vlan":
            ours[seen.ifindex] = seen  # made by attach and deleted with its last user: shell/lan.py
        elif value is not None:
            ours[seen.ifindex] = seen
            found.ours.links[seen.name] = value
    for seen in everything:
        if seen.ifindex in ours or not (names.is_ours(seen.name) or marked(seen)):
            continue
        if seen.peer in ours and not seen.elsewhere and not seen.alias:
            continue  # the other end of a pair of ours, on its way into a namespace
        why = f"carries the mark {seen.alias}" if marked(seen) else "is named like ours, without our mark"
        _foreign(found, "link", seen.name, why)
    return ours


def _addresses(link: netlink.Netlink, devices: Mapping[int, linkdump.Seen], found: Dump) -> None:
    everything = addresses.parse(link.dump(addresses.dump_request()))
    told = any(address.protocol is not None for address in everything)
    for address in everything:
        device = devices.get(address.ifindex)
        if device is None or (address.scope == addresses.SCOPE_LINK and address.protocol != ROUTE_PROTOCOL):
            continue
        has_ours = device.kind == "bridge" or device.name.startswith((names.HOST, names.SHIM))
        if has_ours and (not told or address.protocol == ROUTE_PROTOCOL):
            found.ours.addrs.add(Addr(device.name, address.ip, address.prefix))
        else:
            what = f"{text_ip(address.ip)}/{address.prefix} dev {device.name}"
            _foreign(found, "address", what, "was not put there by meshd")


def _routes(link: netlink.Netlink, devices: Mapping[int, linkdump.Seen], found: Dump) -> None:
    """Read the routes by the host's own devices on networks; without such a device there are none, and a routing
    daemon's million is left unread."""
    own = (names.SHIM, names.HOST)
    shims = {index: seen.name for index, seen in devices.items() if seen.name.startswith(own)}
    for family in _FAMILIES if shims else ():
        for route in hostroutes.parse(link.dump(hostroutes.dump_request(family))):
            if route.ifindex not in shims:
                continue
            name = shims[route.ifindex]
            if route.protocol == ROUTE_PROTOCOL:
                prefix = 0 if route.prefix == 8 * len(route.ip) else route.prefix
                found.ours.routes.add(Route(name, route.ip, route.source, prefix))
            elif route.protocol != _PROTOCOL_KERNEL:
                what = f"{text_ip(route.ip)}/{route.prefix} dev {name}"
                _foreign(found, "route", what, "was not put there by meshd")


def _nexthops(link: netlink.Netlink, ours: names.NexthopIds, found: Dump) -> None:
    for nexthop, protocol, fdb in nexthops.read(link):
        if nexthop.id in ours and protocol == ROUTE_PROTOCOL and fdb:
            found.ours.nexthops[nexthop.id] = nexthop
        elif nexthop.id in ours:
            _foreign(found, "nexthop", f"id {nexthop.id}", "has an id of ours, without our protocol number")
        elif protocol == ROUTE_PROTOCOL and fdb:
            _foreign(
                found,
                "nexthop",
                f"id {nexthop.id}",
                "is another cluster's: it has our protocol, but no id of ours",
            )


def _fdb(chunks: list[bytes], devices: Mapping[int, linkdump.Seen], found: Dump) -> None:
    """Sort the rows; which mark makes one ours depends on the device (rows.py)."""
    fdb = found.ours.fdb
    own_macs = {device.mac for device in devices.values()}
    local, remote = FdbTarget(local=True), FdbTarget()
    targets: dict[tuple[int | None, bytes | None], FdbTarget] = {}
    for chunk in chunks:
        for row in rows.parse(chunk, devices):
            device = devices[row.ifindex]
            marked_row = row.flags & rows.NTF_EXT_LEARNED
            target = None
            if row.master and device.kind == "vxlan" and marked_row:
                target = remote
            elif row.master and device.kind == "veth" and (marked_row or row.state & rows.NUD_NOARP):
                target = local if row.state & rows.NUD_NOARP else remote
            elif not row.master and device.kind == "vxlan" and marked_row:
                pair = (row.nhid, row.dst)
                target = targets.get(pair)
                if target is None:
                    target = targets[pair] = FdbTarget(nhid=row.nhid, dst=row.dst)
            to = row.dst or b"" if target is not None and not row.master and row.mac == BROADCAST else b""
            key = FdbKey(device.name, row.mac, "master" if row.master else "self", to)
            if target is not None and key not in fdb:
                fdb[key] = target
            elif target is not None:
                _foreign(found, "fdb", _fdb_text(key, row), "is a second address for one MAC")
            elif not _fdb_is_the_kernels(row, own_macs):
                _foreign(found, "fdb", _fdb_text(key, row), "was not put there by meshd")


def _fdb_is_the_kernels(row: rows.Row, own_macs: set[bytes]) -> bool:
    """Tell a device's own MAC (a bridge's row) and its multicast filter (a device's row) from rows that
    somebody added."""
    if row.master:
        return bool(row.state & rows.NUD_PERMANENT) and row.mac in own_macs
    return row.dst is None and row.nhid is None and bool(row.mac[:1] and row.mac[0] & 1)


def _fdb_text(key: FdbKey, row: rows.Row) -> str:
    where = f"nhid {row.nhid} " if row.nhid is not None else f"dst {text_ip(row.dst)} " if row.dst else ""
    return f"{text_mac(row.mac)} dev {key.dev} {where}{key.where}"


def _neighbours(link: netlink.Netlink, devices: Mapping[int, linkdump.Seen], found: Dump) -> None:
    neigh = found.ours.neigh
    for family in _FAMILIES:
        for chunk in link.dump(rows.dump_request(family)):
            for row in rows.parse(chunk, devices):
                device = devices[row.ifindex]
                ip = row.dst or b""
                lasting = row.state & (rows.NUD_NOARP | rows.NUD_PERMANENT)
                if (
                    row.flags & rows.NTF_EXT_LEARNED
                    and row.state & rows.NUD_PERMANENT
                    and device.kind == "bridge"
                ):
                    neigh[NeighKey(device.name, ip)] = row.mac
                elif lasting and row.mac[:1] and not row.mac[0] & 1 and any(row.mac):
                    what = f"{text_ip(ip)} dev {device.name} lladdr {text_mac(row.mac)}"
                    _foreign(found, "neighbour", what, "was not put there by meshd")
