"""Requests about devices byte for byte as pyroute2 encodes them: the proof of what is packed by hand, and of the path
where the kernel has no such devices (ipvlan, VLAN)."""

import struct

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from meshd.kernel import conflict, lanlinks, linkdump, linkwrite
from meshd.plan.objects import Link, Port, Vxlan

MAC = bytes.fromhex("02aabbccddee")
NEW = 0x1 | 0x400 | 0x200  # request, create, excl


def encoded(attrs, *, kind=16, flags=NEW, index=0, up=None):
    message = ifinfmsg()
    message["header"]["type"], message["header"]["flags"] = kind, flags
    message["index"] = index
    if up is not None:
        message["flags"], message["change"] = int(up), 1
    message["attrs"] = attrs
    message.encode()
    return unnested(bytes(message.data))


def unnested(data):
    """pyroute2 marks some attributes as nested and some not; the kernel looks at none of these marks here."""
    fixed = bytearray(data)
    pending = [(16 + 16, len(fixed))]
    while pending:
        at, end = pending.pop()
        while at + 4 <= end:
            size, kind = struct.unpack_from("=HH", fixed, at)
            if size < 4:
                break
            struct.pack_into("=H", fixed, at + 2, kind & 0x3FFF)
            if kind & 0x8000:
                pending.append((at + 4, at + size))
            at += (size + 3) & ~3
    return bytes(fixed)


def info(kind, data):
    return ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": data})]})


@pytest.mark.parametrize(("mode", "number"), [("l2", 0), ("l3", 1), ("l3s", 2)])
def test_an_ipvlan_is_said_as_pyroute2_says_it(mode, number):
    ours = lanlinks.new_guest("mu01234567", "ipvlan", mode, 7, 1400, None)
    wanted = [("IFLA_IFNAME", "mu01234567"), ("IFLA_LINK", 7), ("IFLA_MTU", 1400)]
    assert ours == encoded([*wanted, info("ipvlan", [("IFLA_IPVLAN_MODE", number)])])


@pytest.mark.parametrize("mode", ["private", "vepa", "bridge", "passthru"])
def test_a_macvlan_is_said_as_pyroute2_says_it(mode):
    ours = lanlinks.new_guest("mu01234567", "macvlan", mode, 7, 1500, MAC)
    wanted = [
        ("IFLA_IFNAME", "mu01234567"), ("IFLA_LINK", 7), ("IFLA_MTU", 1500), ("IFLA_ADDRESS", MAC.hex(":")),
        info("macvlan", [("IFLA_MACVLAN_MODE", mode)]),
    ]  # fmt: skip
    assert ours == encoded(wanted)


@pytest.mark.parametrize("number", [1, 10, 4094])
def test_a_vlan_sub_interface_is_said_as_pyroute2_says_it(number):
    ours = lanlinks.new_vlan(f"eth0.{number}", 7, number)
    wanted = [("IFLA_IFNAME", f"eth0.{number}"), ("IFLA_LINK", 7), info("vlan", [("IFLA_VLAN_ID", number)])]
    assert ours == encoded(wanted)


def test_what_is_asked_of_another_namespace_names_it_as_pyroute2_does():
    target = [("IFLA_IF_NETNSID", 3)]  # its name before 5.0
    assert lanlinks.delete_there(9, 3) == encoded(target, kind=17, flags=1, index=9)
    assert lanlinks.dump_there(3) == encoded(target, kind=18, flags=1)


@pytest.mark.parametrize("text", ["192.0.2.9", "2001:db8::9"])
def test_asking_for_an_address_is_said_as_pyroute2_says_it(text):
    import ipaddress

    packed = ipaddress.ip_address(text).packed
    message = ndmsg()
    message["header"]["type"], message["header"]["flags"] = 28, 0x1 | 0x400
    message["family"] = 2 if len(packed) == 4 else 10
    message["ifindex"], message["flags"] = 7, 0x01  # NTF_USE
    message["attrs"] = [("NDA_DST", text)]
    message.encode()
    assert conflict.use(7, packed) == bytes(message.data)


# --- veth pairs, and what every device of ours is told --------------------------------------------------------------
PORT = Port(hairpin=True, isolated=True)
VETH = Link("mv01234567", "veth", "meshd:c1:n1:e1", 1400, master="mo01234567", port=PORT)
BRIDGE = Link("mo01234567", "bridge", "meshd:c1:n1", 1400, mac=MAC)
NAMED, SIZED, MARKED = ("IFLA_IFNAME", VETH.name), ("IFLA_MTU", 1400), ("IFLA_IFALIAS", VETH.alias)
NO_LINK_LOCAL = (
    "IFLA_AF_SPEC", {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]},
)  # fmt: skip
AS_PORT = (
    "IFLA_LINKINFO",
    {"attrs": [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", {"attrs": [
        ("IFLA_BRPORT_MODE", 1), ("IFLA_BRPORT_LEARNING", 0), ("IFLA_BRPORT_UNICAST_FLOOD", 0),
        ("IFLA_BRPORT_MCAST_FLOOD", 1), ("IFLA_BRPORT_BCAST_FLOOD", 1), ("IFLA_BRPORT_NEIGH_SUPPRESS", 0),
        ("IFLA_BRPORT_ISOLATED", 1), ("IFLA_BRPORT_LOCKED", 0),
    ]})]},
)  # fmt: skip


def seen(link, **differing):
    plain = linkdump.Seen(
        5, link.name, link.alias, link.kind, True, link.mtu, link.mac or b"", 0, 0, False, True, b"", {}, None
    )
    return plain._replace(**differing)


@pytest.mark.parametrize("pid", [0, 4711])
def test_a_veth_pair_is_said_as_pyroute2_says_it(pid):
    other = [("IFLA_IFNAME", "eth0"), ("IFLA_MTU", 1300), ("IFLA_ADDRESS", MAC.hex(":"))]
    if pid:
        other.insert(2, ("IFLA_NET_NS_PID", pid))
    pair = [NAMED, SIZED, info("veth", [("VETH_INFO_PEER", {"attrs": other})]), ("IFLA_MASTER", 7)]
    assert linkwrite.create_pair(VETH, 7, "eth0", MAC, 1300, inet6=True, pid=pid) == [
        encoded(pair),
        encoded([NAMED, SIZED, MARKED, NO_LINK_LOCAL, AS_PORT], flags=1),
        encoded([NAMED], flags=1, up=True),
    ]


def test_without_ipv6_nothing_is_said_of_it():
    bare = Link("mv01234567", "veth", VETH.alias, 1400, up=False)
    assert linkwrite.create_pair(bare, 0, "mp01234567", b"", 1400, inet6=False)[1:] == [
        encoded([NAMED, SIZED, MARKED], flags=1),
        encoded([NAMED], flags=1, up=False),
    ]


def test_a_bridge_is_settled_as_pyroute2_says_it():
    kind = info("bridge", [("IFLA_BR_STP_STATE", 0), ("IFLA_BR_MCAST_SNOOPING", 0)])
    attrs = [SIZED, ("IFLA_IFALIAS", BRIDGE.alias), NO_LINK_LOCAL, kind]
    assert linkwrite.adjust(BRIDGE, seen(BRIDGE, mac=b""), 0, inet6=True) == [
        encoded([("IFLA_ADDRESS", MAC.hex(":"))], flags=1, index=5),
        encoded(attrs, flags=1, index=5),
        encoded([], flags=1, index=5, up=True),
    ]


@pytest.mark.parametrize(
    ("local", "text", "name"),
    [
        (bytes((192, 0, 2, 1)), "192.0.2.1", "IFLA_VXLAN_LOCAL"),
        (bytes.fromhex("20010db8") + bytes(11) + b"\1", "2001:db8::1", "IFLA_VXLAN_LOCAL6"),
    ],
)
def test_a_vxlan_device_joins_its_bridge_and_gets_its_address_as_pyroute2_says_it(local, text, name):
    vxlan = Link(
        "mx01234567", "vxlan", "meshd:c1:n1", 1450, master="mo01234567", vxlan=Vxlan(5001, local, 4789)
    )
    first = linkwrite.adjust(vxlan, seen(vxlan), 7, inet6=True)[0]
    assert first == encoded([("IFLA_MASTER", 7), info("vxlan", [(name, text)])], flags=1, index=5)


def test_names_marks_and_deletions_are_said_as_pyroute2_says_them():
    assert linkwrite.mark("mp01234567", VETH.alias) == encoded(
        [("IFLA_IFNAME", "mp01234567"), MARKED], flags=1
    )
    assert linkwrite.rename(9, "mo01234567") == encoded([("IFLA_IFNAME", "mo01234567")], flags=1, index=9)
    assert linkwrite.rename_down(9, "mo01234567")[0] == encoded([], flags=1, index=9, up=False)
    group = ("IFLA_GROUP", 0x4D657368)
    assert linkwrite.doom(9, 0x4D657368) == encoded([group], flags=1, index=9)
    assert linkwrite.delete_doomed(0x4D657368) == encoded([group], kind=17, flags=1)
    assert linkwrite.delete(9) == encoded([], kind=17, flags=1, index=9)
    assert linkwrite.delete_named(VETH.name) == encoded([NAMED], kind=17, flags=1)
