"""Overlays that were asked to do more: reach the hosts themselves, carry what is for all."""

import json
import subprocess
import sys

import pytest
from labtools import Attach, Attached, NewNetwork, no_ping_is_lost, switch

from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for
from tests.ethtool import ETHTOOL_STXCSUM

ALL_NODES = "239.7.7.7"


def own(host: Host, network: str) -> dict[str, str]:
    """The host's own endpoint on a network, which it has as long as it has another."""
    found = [e for e in host.json("endpoint", "ls", "--network", network, "--host", host.name)
             if e["ifname"].startswith("mox")]  # fmt: skip
    assert len(found) <= 1
    return dict(found[0]) if found else {}


def ip_of(endpoint: dict[str, str], family: int) -> str:
    return next(ip.partition("/")[0] for ip in endpoint["ips"] if (":" in ip) == (family == 6))


def test_a_host_with_access_is_an_endpoint_and_never_speaks_as_the_gateway(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    first, second, third = lab3.hosts
    network = new_network("--ipv6", "--host-access")
    gateways = first.json("network", "inspect", network)["gateways"]
    assert [own(host, network) for host in lab3.hosts] == [{}, {}, {}]
    here, there = attach(first, network), attach(second, network)
    mine, theirs = own(first, network), own(second, network)
    assert (mine["name"], theirs["name"], own(third, network)) == ("host1", "host2", {})
    assert len({mine["mac"], theirs["mac"], here.mac, there.mac}) == 4
    macs = [here.mac, there.mac, mine["mac"], theirs["mac"]]
    first.wait_rows(*macs[1:])
    second.wait_rows(*macs[:1], *macs[2:])

    for family in (4, 6):
        to = [ip_of(one, family) for one in (there.endpoint, here.endpoint, theirs)]
        for address in to:
            (route,) = json.loads(first.run("ip", "-j", "route", "get", address).stdout)
            assert (route["dev"], route["prefsrc"]) == (mine["ifname"], ip_of(mine, family))
            assert route["prefsrc"] not in gateways
            pinged = first.run("ping", "-n", "-c3", "-i0.05", "-W2", address)
            assert ", 0% packet loss" in pinged.stdout, pinged.stdout
        for container in (here, there):
            for target in (mine, theirs):
                pinged = inside(container, "ping", "-n", "-c3", "-i0.05", "-W2", ip_of(target, family))
                assert ", 0% packet loss" in pinged.stdout, pinged.stdout
    no_ping_is_lost([(here, there), (there, here)])
    for gateway in gateways:  # which still answers, each host's own
        assert ", 0% packet loss" in inside(here, "ping", "-n", "-c3", "-i0.05", "-W2", gateway).stdout
    lan = "192.0.2.254"
    assert ", 0% packet loss" in inside(here, "ping", "-n", "-c3", "-i0.05", "-W2", lan).stdout
    neighbours = json.loads(inside(here, "ip", "-j", "neigh", "show", ip_of(mine, 4)).stdout)
    assert [row["lladdr"] for row in neighbours] == [mine["mac"]]


def test_what_is_source_and_mac_on_the_far_side_is_the_hosts_own(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    first, second, _ = lab3.hosts
    network = new_network("--host-access")
    attach(first, network)
    there = attach(second, network)
    mine = own(first, network)
    first.wait_rows(there.mac)
    second.wait_rows(mine["mac"])
    with subprocess.Popen(
        argv(there, "timeout", "20", "tcpdump", "--immediate-mode", "-Z", "root", "-lnne", "-c1", "-i", "eth0", "icmp"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as capture:  # fmt: skip
        assert capture.stdout
        assert capture.stderr
        while "listening" not in capture.stderr.readline():
            pass
        first.run("ping", "-n", "-c1", "-W2", there.v4)
        seen = capture.stdout.readline()
    assert f"{mine['mac']} > {there.mac}" in seen
    assert f"{ip_of(mine, 4)} > {there.v4}" in seen


def test_the_hosts_own_endpoint_goes_with_the_last_other_one_and_not_before(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    first, second, _ = lab3.hosts
    network = new_network("--host-access")
    one, two, other = attach(first, network), attach(first, network), attach(second, network)
    mine = own(first, network)
    refused = first.meshctl("detach", network, "--endpoint", mine["id"])
    assert refused.returncode == 1
    assert "this host itself" in refused.stderr
    first.json("detach", network, "--netns", one.path)
    first.wait_in_sync()
    assert own(first, network) == mine
    first.run("ip", "link", "del", mine["ifname"])  # somebody's mistake
    wait_for("it is made again", 10, lambda: mine["ifname"] in first.run("ip", "-br", "link").stdout)
    first.wait_in_sync()
    second.wait_rows(mine["mac"])
    first.kill()
    first.start()
    assert own(first, network) == mine
    assert ", 0% packet loss" in first.run("ping", "-n", "-c1", "-W2", other.v4).stdout
    first.json("detach", network, "--netns", two.path)
    wait_for("it has gone", 10, lambda: own(first, network) == {})
    wait_for("its device too", 10, lambda: "mox" not in first.run("ip", "-br", "link").stdout)
    second.wait_rows(mine["mac"], there=False)


def test_a_card_that_spoils_checksums_within_the_tunnel_is_told_with_what_to_switch_off(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    first, second, _ = lab3.hosts
    network = new_network("--host-access")
    here, there = attach(first, network), attach(second, network)

    def checksums() -> tuple[str, str]:
        (device,) = first.status()["offload"]
        assert (device["device"], device["driver"]) == ("eth0", "veth")
        return device["result"], device["detail"]

    wait_for("it is tried", 30, lambda: checksums() == ("right", "right at host2"))
    switch(first.ns, "eth0", ETHTOOL_STXCSUM, 0)  # else a veth computes none, and its receiver looks at none
    lan = ["ip", "netns", "exec", lab3.lan, "nft"]
    try:
        subprocess.run([*lan, SPOILS], check=True)
        wait_for("it is wrong", 60, lambda: checksums() == ("wrong", "wrong at host2"))
        (line,) = first.status()["health"]
        assert "that leave by eth0 (veth) arrive wrong at host2" in line
        no_ping_is_lost([(here, there)])  # which is what makes it hard to find
        (device,) = second.status()["offload"]
        assert (device["result"], device["computes"]) == ("right", "card")
    finally:
        subprocess.run([*lan, "delete", "table", "bridge", "broken"], check=True)
        switch(first.ns, "eth0", ETHTOOL_STXCSUM, 1)
    wait_for("it is right again", 60, lambda: checksums() == ("right", "right at host2"))
    assert first.status()["health"] == []


SPOILS = """
table bridge broken {
  chain card {
    type filter hook forward priority 0;
    iifname "p1" udp dport 4789 @th,416,16 9 @th,448,16 != 0 @th,448,16 set 57005
  }
}
"""
"""What leaves host1 within a VXLAN frame (8 + 8 bytes, Ethernet's 14, IPv4's 20) as UDP to port 9 gets another checksum,
unless it has none."""


@pytest.mark.parametrize("flags, why", [
    (["--internal", "--host-access"], "internal"),
    (["-d", "bridge", "--host-access"], "host access"),
    (["-d", "bridge", "--broadcast"], "broadcast"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(lab3: Lab, flags: list[str], why: str) -> None:
    refused = lab3.hosts[0].meshctl("network", "create", "senseless", *flags)
    assert refused.returncode == 1
    assert why in refused.stderr


def inside(one: Attached, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv(one, *command), capture_output=True, text=True, check=False)


def argv(one: Attached, *command: str) -> list[str]:
    return ["ip", "netns", "exec", one.ns, *command]


LISTEN = """
import socket, sys
group, own = sys.argv[1:]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("", 9999))
s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + socket.inet_aton(own))
print("ready", flush=True)
while (data := s.recv(100)) != b"end":
    print(data.decode(), flush=True)
"""
SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[1]))
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
for to in sys.argv[2:]:
    for n in range(3):
        s.sendto(f"{to} {n}".encode(), (to, 9999))
"""
END = (
    "import socket, sys; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'end', (sys.argv[1], 9999))"
)


def heard(sender: Attached, listeners: list[Attached]) -> list[list[str]]:
    """Send three datagrams each to the subnet's broadcast address, to all, and to a group; what each listener got."""
    running = [
        subprocess.Popen(
            argv(one, "timeout", "30", sys.executable, "-c", LISTEN, ALL_NODES, one.v4),
            stdout=subprocess.PIPE,
            text=True,
        )
        for one in listeners
    ]
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        subprocess.run(
            argv(sender, sys.executable, "-c", SEND, sender.v4, "255.255.255.255", ALL_NODES), check=True
        )
        # On one path nothing overtakes: what was sent before this "end" has arrived, or never will.
        for one in listeners:
            subprocess.run(argv(sender, sys.executable, "-c", END, one.v4), check=True)
        return [process.communicate(timeout=10)[0].splitlines() for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()


EVERYTHING = [f"{to} {n}" for to in ("255.255.255.255", ALL_NODES) for n in range(3)]


def test_what_is_for_all_reaches_all_endpoints_once_and_no_other_network(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    first, second, third = lab3.hosts
    network, other = new_network("--broadcast"), new_network("--broadcast")
    sender = attach(first, network)
    listeners = [attach(host, network) for host in (first, second, third, third)]
    apart = attach(third, other), attach(first, other)
    for host in lab3.hosts:
        host.wait_rows(*(one.mac for one in [sender, *listeners]))
    assert heard(sender, listeners) == [EVERYTHING] * 4
    assert replicas(first, sender) == {"192.0.2.2", "192.0.2.3"}
    assert replicas(first, apart[1]) == {"192.0.2.3"}, "only where that network has endpoints"
    for one in listeners[2:]:
        third.json("detach", network, "--netns", one.path)
    wait_for("no copy to a host without endpoints", 10, lambda: replicas(first, sender) == {"192.0.2.2"})
    assert heard(sender, listeners[:2]) == [EVERYTHING] * 2


def test_what_is_for_all_stays_on_its_host_where_nobody_asked(
    lab3: Lab, overlay: str, attach: Attach
) -> None:
    first, second, _ = lab3.hosts
    sender, near, far = attach(first, overlay), attach(first, overlay), attach(second, overlay)
    first.wait_rows(far.mac)
    second.wait_rows(sender.mac)
    assert heard(sender, [near, far]) == [EVERYTHING, []]
    assert replicas(first, sender) == set()


def replicas(host: Host, one: Attached) -> set[str]:
    rows = json.loads(host.run("bridge", "-j", "fdb", "show", "dev", f"mv{one.devices}").stdout)
    return {row["dst"] for row in rows if row["mac"] == "00:00:00:00:00:00"}


def test_a_copys_row_that_somebody_deletes_is_put_back(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    first, second, _ = lab3.hosts
    network = new_network("--broadcast")
    sender, far = attach(first, network), attach(second, network)
    first.wait_rows(far.mac)
    first.run("bridge", "fdb", "del", "00:00:00:00:00:00", "dev", f"mv{sender.devices}", "dst", "192.0.2.2")
    wait_for("the copy's row is back", 10, lambda: replicas(first, sender) == {"192.0.2.2"})
    assert heard(sender, [far]) == [EVERYTHING]


def test_a_vni_or_port_that_a_stranger_has_is_stepped_over_or_refused_by_name(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    first, second, _ = lab3.hosts

    def stranger(*kind: str) -> None:
        second.run("ip", "link", "add", "vx-other", "type", "vxlan", *kind)
        second.run("ip", "link", "set", "vx-other", "up")

    network = new_network("--vni", "7777")
    attach(first, network)
    stranger("id", "7777", "dstport", "4789", "local", second.address)
    try:
        taken = second.meshctl("network", "create", "other", "--vni", "7777")
        assert taken.returncode == 1
        ns = lab3.container("in-the-way")
        for _ in range(2):  # the second time the kernel is asked anew
            refused = second.meshctl("attach", network, "--netns", f"/run/netns/{ns}")
            assert refused.returncode == 1
            assert "vni 7777" in refused.stderr
            assert "device vx-other" in refused.stderr
            assert "--vni" in refused.stderr
        second.wait_in_sync()
        clash = second.meshctl("network", "create", "other", "--vni", "7778")
        assert clash.returncode == 0
        second.json("network", "rm", "other")
    finally:
        second.run("ip", "link", "del", "vx-other")
    there = attach(second, network)  # and now it works
    first.wait_rows(there.mac)
    second.json("detach", network, "--netns", there.path)
    second.wait_in_sync()

    stranger("external", "dstport", "4789")
    try:
        refused = second.meshctl("attach", network, "--netns", f"/run/netns/{ns}")
        assert refused.returncode == 1
        assert "UDP port 4789" in refused.stderr
        assert "device vx-other" in refused.stderr
    finally:
        second.run("ip", "link", "del", "vx-other")
