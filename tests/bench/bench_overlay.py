"""The data plane beside a hand-built one of the same shape: bridge, vxlan (nolearning, suppression), veth; once on two hosts
of their own on the same LAN, without any firewall and so without conntrack, and once in the very hosts of meshd, whose
tables and conntrack its packets then pass too. Prints; asserts nothing.

    python tests/bench/bench_overlay.py [--rounds 15]
"""

import argparse
import contextlib
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pairs import MESHD, ROUNDS, Pair, br_netfilter, compare, processor

from meshctl import labnet
from meshctl.labcluster import Lab

VNI, SUBNET = 42, "10.99.0"


class Site(NamedTuple):
    """A namespace that stands for a host, and its address on the LAN."""

    ns: str
    address: str


def bare_hosts(lab: Lab) -> list[Site]:
    """Make two hosts on the lab's LAN with nothing on them."""
    made = []
    for number in (101, 102):
        ns = lab.container(f"bare{number}")
        labnet.batch(
            lab.lan,
            [f"link add p{number} type veth peer name eth0 netns {ns}", f"link set p{number} master br0 up"],
        )
        labnet.batch(ns, ["link set eth0 up", f"addr add {labnet.address(number)}/24 dev eth0"])
        made.append(Site(ns, labnet.address(number)))
    return made


def build_by_hand(lab: Lab, hosts: Sequence[Site], prefix: str) -> Pair:
    """Make the same thing with ip(8) and bridge(8). ``prefix``: of the containers' names."""
    names = [lab.container(f"{prefix}{number}") for number in range(2)]
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
    return Pair(*names, f"{SUBNET}.2")


def bridge(namespace: str, command: str) -> None:
    """Run one bridge(8) command."""
    subprocess.run(["ip", "netns", "exec", namespace, "bridge", *command.split()], check=True)


def main() -> None:
    """Take turns and print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
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
        bare, own = bare_hosts(lab), [Site(host.ns, host.address) for host in hosts]
        pairs = {
            MESHD: Pair(*ours, ends[1]["ips"][0].partition("/")[0]),
            "by hand, no firewall": build_by_hand(lab, bare, "bare"),
            "by hand, on meshd's hosts": build_by_hand(lab, own, "hand"),
        }
        for pair in pairs.values():
            stack.callback(pair.close)
        namespaces = [site.ns for site in (*bare, *own)]
        for on in (False, True):
            if not br_netfilter(namespaces, on=on) and on:
                continue
            print(f"br_netfilter {'on' if on else 'off'}")
            for kind in ("udp", "tcp"):
                processor(kind, pairs, Path(folder))
        br_netfilter(namespaces, on=False)
        print("br_netfilter off")
        for streams in (1, 4):
            compare(f"TCP, {streams} streams", "Gbit/s", pairs, lambda pair, n=streams: pair.tcp(n), rounds)
        compare("UDP, 64 bytes", "kpps", pairs, Pair.udp, rounds)
        compare("ping, mean round trip", "us", pairs, Pair.ping, rounds, less_is_better=True)


if __name__ == "__main__":
    main()
