"""One overlay network with an endpoint on each host, as ops. Run as a program it programs the namespace that
it is run in, and prints what failed and whether a dump then shows what was asked for.
"""

import ipaddress
import json
import sys

from meshd.kernel.links import Birth
from meshd.kernel.namespace import Namespace
from meshd.plan import names
from meshd.plan.firewall import member_elements, render
from meshd.plan.objects import (
    Addr,
    FdbKey,
    FdbTarget,
    Kernel,
    Link,
    NeighKey,
    Nexthop,
    Port,
    Vxlan,
)
from meshd.plan.ops import PutAddr, PutFdb, PutLink, PutNeigh, PutNexthop, SetFirewall

NETWORK = bytes(range(16))
MARK = "0badcafe"
ALIAS = names.alias(MARK, NETWORK)
BRIDGE, VXLAN = names.overlay_bridge(NETWORK), names.vxlan(NETWORK)
HOSTS = [bytes([0xA0 + n]) * 16 for n in range(2)]
ENDPOINTS = [bytes([0xE0 + n]) * 16 for n in range(2)]
MTU = 1430
FIREWALL = render(gossip_port=7947, vxlan_port=4789)


def ip(text):
    return ipaddress.ip_address(text).packed


VTEPS = {4: [ip("192.0.2.1"), ip("192.0.2.2")], 6: [ip("2001:db8::1"), ip("2001:db8::2")]}


def mac(n):
    return names.endpoint_mac(ENDPOINTS[n])


def addresses(n):
    return [ip(f"10.77.0.{2 + n}"), ip(f"fd77::{2 + n}")]


def nexthop_id(n):
    return names.nexthop_ids(HOSTS)[HOSTS[n]]


def group_id(n):
    return nexthop_id(n) + names.GROUP_OFFSET


def host_end(n):
    return Link(names.veth(ENDPOINTS[n]), "veth", ALIAS, MTU, master=BRIDGE, port=Port())


def kernel(n, family=4):
    """What host ``n`` should have, its own veth included."""
    other = 1 - n
    quiet = Port(mcast_flood=False, bcast_flood=False, neigh_suppress=True, locked=True)
    desired = Kernel(firewall=FIREWALL, elements=member_elements(VTEPS[family]))
    local = VTEPS[family][n]
    for link in (
        Link(BRIDGE, "bridge", ALIAS, MTU, mac=names.gateway_mac(NETWORK)),
        Link(
            VXLAN,
            "vxlan",
            ALIAS,
            MTU,
            mac=names.vtep_mac(NETWORK, HOSTS[n]),
            master=BRIDGE,
            port=quiet,
            vxlan=Vxlan(4097, local, 4789),
        ),
        host_end(n),
    ):
        desired.links[link.name] = link
    desired.addrs = {Addr(BRIDGE, ip("10.77.0.1"), 24), Addr(BRIDGE, ip("fd77::1"), 64)}
    desired.nexthops = {
        nexthop_id(other): Nexthop(nexthop_id(other), via=VTEPS[family][other]),
        group_id(other): Nexthop(group_id(other), group=(nexthop_id(other),)),
    }
    desired.fdb = {
        FdbKey(host_end(n).name, mac(n), "master"): FdbTarget(local=True),
        FdbKey(VXLAN, mac(other), "self"): FdbTarget(nhid=group_id(other)),
        FdbKey(VXLAN, mac(other), "master"): FdbTarget(),
    }
    desired.neigh = {NeighKey(BRIDGE, address): mac(other) for address in addresses(other)}
    return desired


def make_pair(namespace, link, peer, peer_mac, peer_mtu, pid=0):
    """Make an endpoint's veth pair as attach does; raise what the kernel says."""
    for _, error in namespace.apply([PutLink(link)], {link.name: Birth(peer, peer_mac, peer_mtu, pid)}):
        raise error


def put_all(desired, *, veth=False):
    """Everything as puts, in the order of design.md, section 7."""
    links = [link for link in desired.links.values() if veth or link.kind != "veth"]
    return [
        *(PutLink(link) for link in links),
        *(PutAddr(addr) for addr in sorted(desired.addrs)),
        *(PutNexthop(n) for n in sorted(desired.nexthops.values(), key=lambda n: len(n.group))),
        *(PutFdb(k, t) for k, t in sorted(desired.fdb.items(), key=lambda row: row[0].where != "self")),
        *(PutNeigh(k, m) for k, m in desired.neigh.items()),
        SetFirewall(desired.firewall, tuple(desired.elements.items())),
    ]


def differences(actual, desired):
    """What differs, in plain comparison; MACs that are not asked for do not count."""
    found = [
        f"{field}: {getattr(actual, field)} != {getattr(desired, field)}"
        for field in ("addrs", "nexthops", "fdb", "neigh", "firewall", "elements")
        if getattr(actual, field) != getattr(desired, field)
    ]
    for name in actual.links.keys() | desired.links.keys():
        have, want = actual.links.get(name), desired.links.get(name)
        if have and want and want.mac is None:
            have = Link(**{f: getattr(have, f) for f in have.__struct_fields__} | {"mac": None})
        if have != want:
            found.append(f"{name}: {have} != {want}")
    return found


def program(n, family=4):
    """Bring up host ``n`` in the current namespace; return complaints."""
    desired = kernel(n, family)
    with Namespace() as namespace:
        failed = namespace.apply([op for op in put_all(desired) if isinstance(op, PutLink)])
        make_pair(namespace, host_end(n), names.peer(ENDPOINTS[n]), mac(n), MTU)
        failed += namespace.apply(put_all(desired, veth=True))
        dump = namespace.dump(MARK)
    return (
        [error.what for _, error in failed] + differences(dump.ours, desired) + [str(f) for f in dump.foreign]
    )


if __name__ == "__main__":
    print(json.dumps(program(int(sys.argv[1]), int(sys.argv[2]))))
