"""Requests for macvlan, ipvlan and VLAN devices byte for byte as pyroute2 encodes them: the proof of the path where
the kernel has no such devices."""

import struct

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from meshd.kernel import conflict, lanlinks

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
