"""Endpoints of one overlay on three hosts, over real kernels."""

import itertools
import signal
import struct
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from labtools import Attach, Attached, NewNetwork, no_ping_is_lost

from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for
from meshctl.ping import ping

ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
NEIGHBOUR_DISCOVERY = range(133, 138)  # ICMPv6 types of RFC 4861
VXLAN_PORT = 4789


def test_every_endpoint_reaches_every_other_over_both_families_from_the_first_ping_on(
    trio_of_endpoints: list[Attached],
) -> None:
    no_ping_is_lost(list(itertools.permutations(trio_of_endpoints, 2)))


def test_no_arp_and_no_neighbour_discovery_crosses_the_wire(
    lab3: Lab, trio_of_endpoints: list[Attached], tmp_path: Path
) -> None:
    here, there, _ = trio_of_endpoints
    with Capture(lab3.lan, "p1", f"udp port {VXLAN_PORT}", tmp_path / "wire") as capture:
        no_ping_is_lost([(here, there), (there, here)])
    inner = Counter(kind for frame in capture.frames() for kind in [inner_kind(frame)])
    assert inner[IPV4] > 0
    assert inner[IPV6] > 0
    assert set(inner) == {IPV4, IPV6}


def test_frames_between_two_endpoints_do_not_reach_a_third_on_the_same_host(
    lab3: Lab, overlay: str, attach: Attach, tmp_path: Path
) -> None:
    first, second, _ = lab3.hosts
    here, listener, there = attach(first, overlay), attach(first, overlay), attach(second, overlay)
    first.wait_rows(there.mac)
    second.wait_rows(here.mac)
    with Capture(listener.ns, "eth0", "", tmp_path / "third") as capture:
        no_ping_is_lost([(here, there), (there, here)])
    to_one = [frame for frame in capture.frames() if not frame[0] & 1]  # what is for all may reach all
    assert [frame for frame in to_one if mac(frame[6:12]) in (here.mac, there.mac)] == []


def test_a_detached_endpoints_rows_go_everywhere(
    lab3: Lab, trio_of_endpoints: list[Attached], overlay: str
) -> None:
    gone = trio_of_endpoints[2]
    gone.host.json("detach", overlay, "--netns", gone.path)
    for host in lab3.hosts:
        host.wait_rows(gone.mac, there=False)
    names = {e["name"] for e in lab3.hosts[0].json("endpoint", "ls", "--network", overlay)}
    assert names == {e.name for e in trio_of_endpoints[:2]}


def test_detaching_what_is_gone_succeeds(lab3: Lab, overlay: str, attach: Attach) -> None:
    one = attach(lab3.hosts[0], overlay)
    for _ in range(2):
        assert lab3.hosts[0].meshctl("detach", overlay, "--netns", one.path).returncode == 0


def test_attaching_twice_is_attaching_once(lab3: Lab, overlay: str, attach: Attach) -> None:
    host = lab3.hosts[0]
    one = attach(host, overlay)
    again = host.json("attach", overlay, "--netns", one.path, "--name", one.name)
    assert again == one.endpoint
    assert len(host.json("endpoint", "ls", "--network", overlay)) == 1


def test_attaching_again_with_another_name_is_refused_and_named(
    lab3: Lab, overlay: str, attach: Attach
) -> None:
    host = lab3.hosts[0]
    one = attach(host, overlay)
    again = host.meshctl("attach", overlay, "--netns", one.path, "--name", "other")
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert "name" in again.stderr
    assert host.json("endpoint", "ls", "--network", overlay)[0]["name"] == one.name


def test_an_address_that_is_asked_for_is_given_and_only_once(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    network = new_network("--subnet", "10.77.0.0/24")
    first, second, _ = lab3.hosts
    one = attach(first, network, "--ip", "10.77.0.200")
    assert one.endpoint["ips"] == ["10.77.0.200/24"]
    ns = lab3.container("taken")
    again = second.meshctl("attach", network, "--netns", f"/run/netns/{ns}", "--ip", "10.77.0.200")
    assert again.returncode == 1
    assert "10.77.0.200" in again.stderr


def test_no_address_is_given_twice_when_all_hosts_attach_at_once(
    lab3: Lab, overlay: str, attach: Attach
) -> None:
    with ThreadPoolExecutor(6) as pool:
        attached = list(pool.map(lambda host: attach(host, overlay), lab3.hosts * 4))
    given = Counter(ip for one in attached for ip in one.ips)
    assert [ip for ip, times in given.items() if times > 1] == []
    assert len(given) == 2 * len(attached)


def test_a_process_joins_for_as_long_as_it_runs_and_its_status_is_passed_on(
    lab3: Lab, overlay: str, attach: Attach
) -> None:
    first, second, _ = lab3.hosts
    to = attach(first, overlay)
    second.wait_rows(to.mac, there=False)
    done = second.meshctl("run", overlay, "--", "ping", "-n", "-c", "1", "-W", "5", to.v4)
    assert (done.returncode, done.stderr) == (0, "")
    assert second.meshctl("run", overlay, "--", "sh", "-c", "exit 7").returncode == 7
    assert [e["name"] for e in second.json("endpoint", "ls", "--network", overlay)] == [to.name]


def test_a_process_that_is_killed_leaves_no_endpoint(lab3: Lab, overlay: str) -> None:
    host = lab3.hosts[0]
    running = subprocess.Popen(
        host.argv("meshctl", "run", overlay, "--", "sleep", "100"),
        env=host.environment(),
        stdin=subprocess.DEVNULL,
    )
    wait_for("the process has an endpoint", 10, lambda: len(endpoints(host, overlay)) == 1)
    running.send_signal(signal.SIGTERM)
    running.wait(timeout=10)
    wait_for("its endpoint is gone", 10, lambda: endpoints(host, overlay) == [])


def test_two_networks_do_not_reach_each_other(lab3: Lab, new_network: NewNetwork, attach: Attach) -> None:
    host = lab3.hosts[0]
    one, other = attach(host, new_network()), attach(host, new_network())
    refused = ping(one.ns, other.v4, count=2)
    assert (refused.sent, refused.received) == (2, 0)


def test_removing_a_network_with_endpoints_leaves_it_to_its_last_endpoint(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    first, second, _ = lab3.hosts
    network = new_network()
    attach(first, network)
    refused = second.meshctl("network", "rm", network)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ")
    assert second.meshctl("network", "inspect", network).returncode == 0


def test_a_removed_network_leaves_nothing_in_any_kernel(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    first, second, _ = lab3.hosts
    network = new_network()
    one = attach(first, network)
    devices = one.devices
    assert f"mv{devices}" in first.run("ip", "-br", "link").stdout
    first.json("detach", network, "--netns", one.path)
    first.json("network", "rm", network)
    wait_for("its devices are gone", 10, lambda: devices not in first.run("ip", "-br", "link").stdout)
    wait_for("others forget it", 10, lambda: second.meshctl("network", "inspect", network).returncode == 1)


def endpoints(host: Host, network: str) -> list[str]:
    return [str(e["name"]) for e in host.json("endpoint", "ls", "--network", network)]


def mac(raw: bytes) -> str:
    return raw.hex(":")


def inner_kind(frame: bytes) -> int | tuple[int, int]:
    """Return the Ethernet type of the frame inside a VXLAN packet, or (IPV6, type) for neighbour discovery."""
    (outer,) = struct.unpack_from("!H", frame, 12)
    header = 14 + ((frame[14] & 15) * 4 if outer == IPV4 else 40)
    inner = frame[header + 8 + 8 :]  # UDP, VXLAN
    (kind,) = struct.unpack_from("!H", inner, 12)
    if kind == IPV6 and inner[14 + 6] == 58 and inner[14 + 40] in NEIGHBOUR_DISCOVERY:
        return (IPV6, inner[14 + 40])
    return int(kind)


class Capture:
    """tcpdump on a device of a namespace, from entering to leaving; then the frames."""

    def __init__(self, namespace: str, device: str, what: str, base: Path) -> None:
        self.file = base.with_suffix(".pcap")
        command = [
            "ip",
            "netns",
            "exec",
            namespace,
            "tcpdump",
            "--immediate-mode",
            "-U",
            "-n",
            "-i",
            device,
            "-w",
            str(self.file),
            *([what] if what else []),
        ]
        self.said = base.with_suffix(".txt")
        with self.said.open("wb") as output:
            self.process = subprocess.Popen(
                [*command[:5], "-Z", "root", *command[5:]], stdin=subprocess.DEVNULL, stderr=output
            )

    def __enter__(self) -> "Capture":
        wait_for("tcpdump listens", 10, lambda: b"listening on" in self.said.read_bytes())
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.2)  # what was sent last is still on its way through tcpdump's buffer
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=10)

    def frames(self) -> list[bytes]:
        """Return the captured frames: pcap with a 24-byte header and 16 bytes before each frame."""
        raw = self.file.read_bytes()
        order = "<" if raw[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
        found, at = [], 24
        while at + 16 <= len(raw):
            (length,) = struct.unpack_from(f"{order}I", raw, at + 8)
            found.append(raw[at + 16 : at + 16 + length])
            at += 16 + length
        return found
