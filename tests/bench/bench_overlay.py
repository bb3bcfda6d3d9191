"""The data plane beside a hand-built one of the same shape: bridge, vxlan (nolearning, suppression), veth, in the
same two host namespaces, at the same time, taking turns. Ratios are per round: meshd over hand-built. Prints;
asserts nothing.
"""

import contextlib
import json
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from meshctl import labnet
from meshctl.labcluster import Lab
from meshctl.labhost import Host

ROUNDS = 5
SECONDS = 3
VNI, SUBNET = 42, "10.99.0"
SERVER_PORT = 5201


def build_by_hand(lab: Lab, hosts: list[Host]) -> list[str]:
    """Make the same thing with ip(8) and bridge(8); returns the containers' namespaces."""
    names = [lab.container(f"hand{number}") for number in range(2)]
    macs = [f"02:99:00:00:00:0{number + 1}" for number in range(2)]
    for number, (host, name) in enumerate(zip(hosts, names, strict=True)):
        other = 1 - number
        labnet.batch(
            host.ns,
            [
                "link add hb0 address 02:99:00:00:01:01 type bridge mcast_snooping 0",
                f"link add hv0 type vxlan id {VNI} local {host.address} dstport 4789 nolearning ttl 64",
                "link set hv0 master hb0 mtu 1450 up",
                "link set hb0 mtu 1450 up",
                f"link add hc0 mtu 1450 type veth peer name hp0 mtu 1450 address {macs[number]}",
                "link set hc0 master hb0 up",
                f"link set hp0 netns {name}",
                f"neigh add {SUBNET}.{other + 1} lladdr {macs[other]} dev hb0 nud permanent",
            ],
        )
        bridge(
            host.ns,
            "link set dev hv0 learning off flood off mcast_flood off bcast_flood off neigh_suppress on",
        )
        bridge(host.ns, "link set dev hc0 learning off flood off")
        bridge(host.ns, f"fdb add {macs[number]} dev hc0 master static")
        bridge(host.ns, f"fdb add {macs[other]} dev hv0 self dst {hosts[other].address} permanent")
        bridge(host.ns, f"fdb add {macs[other]} dev hv0 master static")
        labnet.batch(
            name, ["link set lo up", "link set hp0 up", f"addr add {SUBNET}.{number + 1}/24 dev hp0"]
        )
    return names


def bridge(namespace: str, command: str) -> None:
    """Run one bridge(8) command."""
    subprocess.run(["ip", "netns", "exec", namespace, "bridge", *command.split()], check=True)


class Pair:
    """Two containers: ``client`` sends to ``address``, where an iperf3 server runs."""

    def __init__(self, client: str, server: str, address: str) -> None:
        self.client = client
        self.address = address
        self.server = subprocess.Popen(
            ["ip", "netns", "exec", server, "iperf3", "-s", "-p", str(SERVER_PORT)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def close(self) -> None:
        """Stop the server."""
        self.server.terminate()
        self.server.wait()

    def _iperf(self, *flags: str) -> dict:
        command = [
            "ip",
            "netns",
            "exec",
            self.client,
            "iperf3",
            "-c",
            self.address,
            "-p",
            str(SERVER_PORT),
            "-J",
        ]
        for _ in range(20):
            done = subprocess.run(
                [*command, "-t", str(SECONDS), *flags], capture_output=True, text=True, check=False
            )
            result = json.loads(done.stdout)
            if "error" not in result:
                return result["end"]
            time.sleep(0.2)
        raise RuntimeError(result["error"])

    def tcp(self, streams: int) -> float:
        """Return received Gbit/s."""
        return self._iperf("-P", str(streams))["sum_received"]["bits_per_second"] / 1e9

    def udp(self) -> float:
        """Return received thousands of 64-byte packets a second."""
        end = self._iperf("-u", "-b", "0", "-l", "64")["sum"]
        return (end["packets"] - end["lost_packets"]) / end["seconds"] / 1e3

    def ping(self) -> float:
        """Return the mean round trip of 500 pings, in us."""
        command = ["ip", "netns", "exec", self.client, "ping", "-q", "-c", "500", "-i", "0.002", self.address]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return 1000 * float(re.search(r"= [\d.]+/([\d.]+)/", out)[1])


def main() -> None:
    """Take turns and print medians and ratios."""
    with tempfile.TemporaryDirectory(prefix="meshd-bench-") as folder, contextlib.ExitStack() as stack:
        lab = Lab.up(2, Path(folder) / "lab")
        stack.callback(lab.down)
        hosts = lab.hosts
        hosts[0].json("network", "create", "bench")
        hosts[1].wait_network("bench")
        ours = [lab.container(f"mesh{number}") for number in range(2)]
        ends = [
            host.json("attach", "bench", "--netns", f"/run/netns/{name}")
            for host, name in zip(hosts, ours, strict=True)
        ]
        for host, end in zip(hosts, reversed(ends), strict=True):
            host.wait_rows(end["mac"])
        meshd = Pair(ours[0], ours[1], ends[1]["ips"][0].partition("/")[0])
        stack.callback(meshd.close)
        by_hand_names = build_by_hand(lab, hosts)
        hand = Pair(by_hand_names[0], by_hand_names[1], f"{SUBNET}.2")
        stack.callback(hand.close)
        tests: list[tuple[str, str, Callable[[Pair], float], bool]] = [
            ("TCP, 1 stream", "Gbit/s", lambda pair: pair.tcp(1), False),
            ("TCP, 4 streams", "Gbit/s", lambda pair: pair.tcp(4), False),
            ("UDP, 64 bytes", "kpps", Pair.udp, False),
            ("ping, mean round trip", "us", Pair.ping, True),
        ]
        for what, unit, measure, less_is_better in tests:
            mesh, by_hand, ratios = [], [], []
            for number in range(ROUNDS):
                first, second = (meshd, hand) if number % 2 else (hand, meshd)
                got = {first: measure(first), second: measure(second)}
                mesh.append(got[meshd])
                by_hand.append(got[hand])
                ratios.append(got[hand] / got[meshd] if less_is_better else got[meshd] / got[hand])
            print(
                f"{what:<24} meshd {statistics.median(mesh):8.2f}  by hand {statistics.median(by_hand):8.2f} {unit:<7}"
                f" ratio median {statistics.median(ratios):.3f} ({min(ratios):.3f}..{max(ratios):.3f})"
                f" n={ROUNDS}  to reach: 0.98",
                flush=True,
            )


if __name__ == "__main__":
    main()
