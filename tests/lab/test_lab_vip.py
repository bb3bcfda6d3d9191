"""Virtual addresses: containers pass one to each other across hosts by gratuitous ARP and unsolicited neighbour
advertisement, as keepalived does, under a client's pings."""

import itertools
import re
import signal
import subprocess
import sys
import time

import pytest
from labtools import Attach, Attached, NewNetwork

from meshctl.labcluster import Lab
from meshctl.labhost import wait_for
from meshctl.ping import ping

VIP4, VIP6 = "10.81.0.240", "fd81::240"
FLAGS = ("--subnet", "10.81.0.0/24", "--subnet", "fd81::/64", "--opt", f"vip={VIP4},{VIP6}")
EVERY_S = 0.01
GRACE = 10  # pings: a shared machine stalls for some tens of milliseconds
CLAIM = """
import ipaddress, socket, struct, sys
mac, text = bytes.fromhex(sys.argv[1].replace(":", "")), sys.argv[2]
ip = ipaddress.ip_address(text).packed
if len(ip) == 4:
    frame = b"\\xff" * 6 + mac + b"\\x08\\x06" + struct.pack("!HHBBH", 1, 0x800, 6, 4, 2) + mac + ip + mac + ip
else:
    all_nodes = ipaddress.ip_address("ff02::1").packed
    told = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + ip + b"\\2\\1" + mac
    pseudo = ip + all_nodes + struct.pack("!II", len(told), 58) + told
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    told = told[:2] + struct.pack("!H", ~total & 0xFFFF) + told[4:]
    frame = b"\\x33\\x33\\0\\0\\0\\1" + mac + b"\\x86\\xdd" + struct.pack("!IHBB", 0x60000000, len(told), 58, 255)
    frame += ip + all_nodes + told
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("eth0", 0))
raw.send(frame)
"""
"""Says once that an address is here: a gratuitous ARP reply (RFC 5944, 4.6), or an unsolicited neighbour advertisement
with the override flag (RFC 4861, 7.2.6), as keepalived sends them."""


def ip(of: Attached, *words: str) -> None:
    subprocess.run(["ip", "-n", of.ns, *words], check=True, stdin=subprocess.DEVNULL)


def take(of: Attached, address: str) -> None:
    bits = "128" if ":" in address else "32"
    ip(of, "address", "add", f"{address}/{bits}", "dev", "eth0", *(["nodad"] if bits == "128" else []))
    command = ["ip", "netns", "exec", of.ns, sys.executable, "-c", CLAIM, of.mac, address]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def leave(of: Attached, address: str) -> None:
    ip(of, "address", "del", f"{address}/{'128' if ':' in address else '32'}", "dev", "eth0")


def known_at(of: Attached, address: str) -> str:
    """Return the MAC that an endpoint has for an address, or ""."""
    command = ["ip", "-n", of.ns, "neighbour", "show", "to", address, "dev", "eth0"]
    said = subprocess.run(
        command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    ).stdout
    found = re.search(r"lladdr (\S+)", said)
    return found.group(1) if found else ""


@pytest.mark.parametrize("address", [VIP4, VIP6])
def test_a_virtual_address_moves_between_containers_of_two_hosts_while_a_client_on_a_third_pings(
    lab3: Lab, new_network: NewNetwork, attach: Attach, address: str
) -> None:
    network = new_network(*FLAGS)
    one, other, client, neighbour = (
        attach(host, network) for host in (lab3.hosts[0], lab3.hosts[1], lab3.hosts[2], lab3.hosts[0])
    )
    for host in lab3.hosts:
        host.wait_rows(one.mac, other.mac, client.mac, neighbour.mac)
    take(one, address)
    for each in (client, neighbour, other):
        assert ping(each.ns, address, count=2).lost == 0
    watching = subprocess.Popen(
        ["ip", "netns", "exec", client.ns, "ping", "-n", "-i", str(EVERY_S), "-W", "1", address],
        stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    moving_s = 0.0
    for here, there in ((one, other), (other, one), (one, other)):
        time.sleep(0.3)
        assert known_at(client, address) == here.mac
        start = time.monotonic()
        leave(here, address)
        take(there, address)
        wait_for("the client knows", 10, lambda mac=there.mac: known_at(client, address) == mac)
        moving_s += time.monotonic() - start
    time.sleep(0.3)
    watching.send_signal(signal.SIGINT)
    said, _ = watching.communicate(timeout=30)
    seen = sorted({int(n) for n in re.findall(r"icmp_seq=(\d+) ", said)})
    lost = sum(b - a - 1 for a, b in itertools.pairwise(seen))
    assert seen
    assert lost <= moving_s / EVERY_S + GRACE, "more than what was sent while nobody had the address"
    for each in (neighbour, one):
        assert ping(each.ns, address, count=2).lost == 0
    for each in (other, client):
        assert ping(each.ns, one.v4, count=2).lost == 0, "who had it still has its own"


def test_only_addresses_that_were_opted_in_may_be_claimed_and_nobody_is_given_one(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    network = new_network(*FLAGS)
    one, client = attach(lab3.hosts[0], network), attach(lab3.hosts[1], network)
    for host in lab3.hosts[:2]:
        host.wait_rows(one.mac, client.mac)
    for address in ("10.81.0.77", "fd81::77"):
        take(one, address)
        refused = ping(client.ns, address, count=2)
        assert (refused.sent, refused.received) == (2, 0), address
    for host in lab3.hosts[:2]:
        ns = lab3.container(f"vip{host.number}")
        refused_ = host.meshctl("attach", network, "--netns", f"/run/netns/{ns}", "--ip", VIP4)
        assert refused_.returncode == 1
        assert "virtual address" in refused_.stderr
    shown = lab3.hosts[1].json("network", "inspect", network)
    assert (shown["options"], shown["broadcast"]) == ({"vip": f"{VIP4},{VIP6}"}, True)


def test_on_a_network_without_virtual_addresses_none_can_be_claimed(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    network = new_network("--subnet", "10.82.0.0/24", "--broadcast")
    one, client = attach(lab3.hosts[0], network), attach(lab3.hosts[1], network)
    for host in lab3.hosts[:2]:
        host.wait_rows(one.mac, client.mac)
    take(one, "10.82.0.240")
    refused = ping(client.ns, "10.82.0.240", count=2)
    assert (refused.sent, refused.received) == (2, 0)
