"""What network managers' files say of a device, and what an operator is told to put into them."""

import subprocess

import pytest

from meshd.plan import managers
from meshd.plan.bridges import Card
from meshd.plan.managers import IFUPDOWN, NETPLAN, NETWORK_MANAGER, NETWORKD, Owner
from meshd.shell import managers as files

CONFIGURED = (
    "# This is private data. Do not parse.\nADMIN_STATE=configured\nOPER_STATE=routable\nNETWORK_FILE={}\n"
)
MAC = "02:00:00:00:00:01"


@pytest.mark.parametrize(
    "text, owner",
    [
        (
            CONFIGURED.format("/etc/systemd/network/10-a.network"),
            Owner(NETWORKD, "/etc/systemd/network/10-a.network"),
        ),
        (
            CONFIGURED.format("/run/systemd/network/10-netplan-eth0.network"),
            Owner(NETPLAN, "/run/systemd/network/10-netplan-eth0.network"),
        ),
        ("ADMIN_STATE=unmanaged\nOPER_STATE=carrier\n", None),
        ("ADMIN_STATE=unmanaged\nNETWORK_FILE=/usr/lib/systemd/network/00-meshd.network\n", None),
        ("", None),
    ],
)
def test_networkd(text, owner):
    assert managers.networkd(text) == owner


@pytest.mark.parametrize(
    "text, owner",
    [
        ("[device]\nmanaged=true\nconnection-uuid=af3c\nnm-owned=false\n", Owner(NETWORK_MANAGER, "af3c")),
        ("[device]\nmanaged=true\n", None),
        ("[device]\nmanaged=false\n", None),
        ("", None),
    ],
)
def test_network_manager(text, owner):
    assert managers.network_manager(text) == owner


INTERFACES = """
auto lo eth0
iface lo inet loopback
# iface eth9 inet dhcp
iface eth0 inet dhcp
  iface eth0 inet6 auto
iface br7 inet static
    address 192.0.2.1/24
    bridge_ports eth1 eth2
source /etc/network/interfaces.d/*
source-directory more.d
"""


def test_ifupdown():
    assert managers.ifupdown(INTERFACES, "F", "eth0") == Owner(IFUPDOWN, "F", dhcp=True)
    assert managers.ifupdown(INTERFACES, "F", "br7") == Owner(IFUPDOWN, "F")
    for other in ("eth", "eth1", "eth9"):
        assert managers.ifupdown(INTERFACES, "F", other) is None
    assert managers.ifupdown_ports(INTERFACES, "br7")
    assert not managers.ifupdown_ports(INTERFACES, "eth0")


def test_what_an_interfaces_file_takes_in():
    present = ["/etc/network/interfaces.d/a", "/etc/network/more.d/b", "/etc/network/if-up.d/c"]
    assert managers.sources(INTERFACES, "/etc/network", present) == present[:2]


def test_files_are_found_by_ifindex_and_by_name(tmp_path):
    def put(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    card = Card("eth0", index=2)
    assert (files.owner(card, tmp_path), files.maker("br0", tmp_path)) == (None, None)
    put("etc/network/interfaces", "source interfaces.d/*\n")
    put("etc/network/interfaces.d/x", "iface eth0 inet dhcp\niface br7 inet manual\n  bridge_ports none\n")
    assert files.owner(card, tmp_path) == Owner(IFUPDOWN, "/etc/network/interfaces.d/x", dhcp=True)
    assert files.maker("br7", tmp_path) == Owner(IFUPDOWN, "/etc/network/interfaces.d/x")
    put("run/systemd/netif/links/2", CONFIGURED.format("/etc/systemd/network/a.network"))
    assert files.owner(card, tmp_path).program == NETWORKD
    assert files.owner(Card("eth0", index=3), tmp_path).program == IFUPDOWN
    put("run/NetworkManager/devices/2", "[device]\nmanaged=true\nconnection-uuid=u\n")
    assert files.owner(card, tmp_path) == Owner(NETWORK_MANAGER, "u")
    put("etc/systemd/network/5-br0.netdev", "[NetDev]\nName = br0\nKind=bridge\n")
    put("etc/systemd/network/6-br1.netdev", "[NetDev]\nName=br1\nKind=vlan\n")
    assert files.maker("br0", tmp_path) == Owner(NETWORKD, "/etc/systemd/network/5-br0.netdev")
    assert files.maker("br1", tmp_path) is None
    (tmp_path / "run/NetworkManager/devices/2").write_bytes(b"\xff\xfe[device]\n")
    assert files.owner(card, tmp_path).program == NETWORKD, "what cannot be read says nothing"


OWNERS = [Owner(program, "/etc/x") for program in (NETWORKD, NETWORK_MANAGER, NETPLAN, IFUPDOWN)]


@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.program)
def test_every_manager_has_its_own_lines_and_they_are_shell(owner):
    told = [*managers.add_port_there(owner, "br0", "eth0"), *managers.keep_off(owner, "br0")]
    if owner.program != IFUPDOWN:
        told += managers.have_it_make(owner, "br0", "eth0", MAC)
    assert all("\n" not in line for line in told)
    commands = [line for line in told if line.startswith(("printf", "{", "nmcli", "netplan", "networkctl"))]
    assert commands
    for line in commands:
        assert subprocess.run(["sh", "-n", "-c", line], check=False).returncode == 0, line


def test_a_bridge_of_nobodys_gets_a_port_by_hand():
    assert managers.add_port_there(None, "virbr0", "eth0")[0].startswith("ip link set eth0 master virbr0")
