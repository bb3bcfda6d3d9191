"""Networks on one host beside what ip(8) alone makes of the same devices, and what an attach costs beside the kernel.

    python tests/bench/bench_bridge.py [--rounds 15] [--attaches 40]

Throughput: two containers on a bridge network beside two on a bridge made by hand with the same veths, and two on a
macvlan network beside two macvlans made by hand; those by hand are in a namespace without any firewall. br_netfilter is
off but where it says otherwise. Attach: the daemon's answer to POST /v1/endpoints, beside the time that its very
requests spend in the kernel's system calls (the same devices, rows and elements in a namespace of their own), and beside
what its one fdatasync takes there. A macvlan's attach asks the LAN for the address first, for as long as RFC 5227 makes
it: that is shown apart. Prints; asserts nothing.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernel"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchlib import Unix, show
from conftest import Netns
from pairs import MESHD, ROUNDS, Pair, br_netfilter, compare, processor

from meshctl import labnet
from meshctl.labcluster import Lab
from meshd.config import LAN_PROBE_WAIT_S, LAN_PROBES
from meshd.kernel import netlink
from meshd.kernel.lan import Guest
from meshd.kernel.links import Birth
from meshd.kernel.namespace import Namespace
from meshd.model import Attachment, HostFacts, Network, Subnet
from meshd.plan import names
from meshd.plan.desired import desired
from meshd.plan.diff import diff
from meshd.plan.objects import Link
from tests.plan_world import A, World

HAND = "10.98.0"
NETWORK, MARK = bytes(range(16)), "c1c2c3c4"
KINDS = ("bridge", "overlay", "macvlan")
LAN = ("--subnet", "10.97.0.0/16", "--parent", "w0")


# --- throughput ---------------------------------------------------------------------------------------------------
def bridge_by_hand(lab: Lab) -> tuple[list[str], list[str]]:
    """Make a bridge and two veth pairs in a namespace without a firewall; return containers and addresses."""
    host, ends = lab.container("handhost"), [lab.container(f"hand{n}") for n in (1, 2)]
    labnet.batch(
        host,
        ["link add hb0 type bridge mcast_snooping 0", f"addr add {HAND}.254/24 dev hb0", "link set hb0 up"],
    )
    for n, end in enumerate(ends, 1):
        labnet.batch(
            host, [f"link add h{n} type veth peer name eth0 netns {end}", f"link set h{n} master hb0 up"]
        )
        labnet.batch(end, [f"addr add {HAND}.{n}/24 dev eth0", "link set eth0 up"])
    return ends, [f"{HAND}.{n}" for n in (1, 2)]


def macvlan_by_hand(lab: Lab) -> tuple[list[str], list[str]]:
    """Make two macvlans on one parent; return containers and addresses."""
    host, ends = lab.container("maclan"), [lab.container(f"mac{n}") for n in (1, 2)]
    labnet.batch(host, ["link add w0 type veth peer name w1", "link set w0 up", "link set w1 up"])
    for n, end in enumerate(ends, 1):
        labnet.batch(
            host,
            [f"link add link w0 name m{n} type macvlan mode bridge", f"link set m{n} netns {end} name eth0"],
        )
        labnet.batch(end, [f"addr add {HAND}.{n}/24 dev eth0", "link set eth0 up"])
    return ends, [f"{HAND}.{n}" for n in (1, 2)]


def ours(lab: Lab, network: str) -> tuple[list[str], list[str]]:
    """Attach two containers; return them and their addresses."""
    ends = [lab.container(f"{network}{n}") for n in (1, 2)]
    made = [lab.hosts[0].json("attach", network, "--netns", f"/run/netns/{end}") for end in ends]
    return ends, [one["ips"][0].partition("/")[0] for one in made]


def beside(what: str, ends: dict[str, Pair], namespaces: list[str], folder: Path, rounds: int) -> None:
    """Take turns and print medians and ratios."""
    if br_netfilter(namespaces, on=True) and what == "bridge":
        for kind in ("udp", "tcp"):
            processor(kind, ends, folder, note="br_netfilter on")
    br_netfilter(namespaces, on=False)
    for kind in ("udp", "tcp"):
        processor(kind, ends, folder, note=what)
    for streams in (1, 4):
        compare(
            f"{what}, TCP, {streams} streams", "Gbit/s", ends, lambda pair, n=streams: pair.tcp(n), rounds
        )


# --- attach -------------------------------------------------------------------------------------------------------
def asked(lab: Lab, network: str, attaches: int) -> list[float]:
    """Return the milliseconds of each attach on a real daemon; each is detached before the next."""
    api, boot_id = Unix(lab.hosts[0].socket), Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    took = []
    for number in range(attaches + 1):
        where = {"cookie": 10**9 + number, "boot_id": boot_id}
        start = time.perf_counter()
        made = api.call("POST", "/v1/endpoints", {"network": network, "netns": where})
        took.append((time.perf_counter() - start) * 1000)
        api.call("DELETE", f"/v1/endpoints/{made['id']}")
    return took[1:]  # the first makes the network's devices too


class Kernel:
    """Counts the time that requests spend in system calls, where the kernel carries them out."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count while the body runs."""
        before = netlink.Netlink._send, netlink.Netlink._receive

        def timed(function):
            def call(*args):
                start = time.perf_counter()
                try:
                    return function(*args)
                finally:
                    self.spent_s += time.perf_counter() - start

            return call

        netlink.Netlink._send, netlink.Netlink._receive = map(timed, before)
        try:
            yield
        finally:
            netlink.Netlink._send, netlink.Netlink._receive = before


def network_of(kind: str) -> Network:
    """Return a network of that driver as the daemon would plan it."""
    subnets = (Subnet("10.97.0.0/16", "10.97.0.1"),)
    return Network(
        "bench", kind, subnets, vni=5001 if kind == "overlay" else 0, mtu=1450, options={"mode": "bridge"}
    )


def kernels_share(kind: str, attaches: int) -> list[float]:
    """Return the milliseconds in the kernel of each attach's requests: those that the daemon makes, on the same state."""
    world, took = World(hosts={A: HostFacts("h", bytes((192, 0, 2, 1)), 4789, 1500)}), []
    world.networks[NETWORK] = network_of(kind)
    netns = Netns()
    try:
        netns.run("ip", "link", "add", "w0", "type", "veth", "peer", "name", "w1")
        netns.run("ip", "link", "set", "w0", "up")
        with netns.call(Namespace) as kernel:
            took += [one_more(kernel, world, kind, number) for number in range(attaches + 2)]
    finally:
        netns.close()
    return took[2:]


def one_more(kernel: Namespace, world: World, kind: str, number: int) -> float:
    """Make the requests of one attach; return milliseconds in the kernel. What is there from others stays."""
    name = f"e{number}"
    before = kernel.dump(MARK).ours
    id_ = world.endpoint(name, NETWORK, A, f"10.97.1.{number + 2}")
    endpoint, count, births = world.endpoints[id_], Kernel(), {}
    if kind == "macvlan":
        link = names.guest(id_)
        told = Attachment("boot", number + 1, "/ns", "eth0", link, link)
        alias = names.guest_alias(MARK, NETWORK, id_)
        parent = kernel.lan.parent("w0").index
        with count.counted():
            kernel.lan.make_guest(Guest(link, kind, "bridge", alias, parent, 1450, endpoint.mac))
    else:
        link, peer = names.veth(id_), names.peer(id_)
        told = Attachment("boot", number + 1, "/ns", "eth0", link, peer)
        births[link] = Birth(peer, endpoint.mac, 1450)
        before.links[link] = Link(link, "veth", alias="", mtu=0, up=False)
    world.attachments[id_] = told
    todo = diff(desired(world.view()), before, deletions=False)
    with count.counted():
        refused = kernel.apply(todo, births)
    if refused:
        raise RuntimeError(refused)
    return count.spent_s * 1000


def syncs(folder: Path, attaches: int) -> list[float]:
    """Return the milliseconds of one small fdatasync each, as an attach's record takes."""
    took = []
    with (folder / "sync").open("wb") as file:
        for _ in range(attaches):
            file.write(b"x" * 400)
            file.flush()
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - start) * 1000)
    return took


def main() -> None:
    """Print both parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--attaches", type=int, default=40)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="meshd-bench-") as folder, contextlib.ExitStack() as stack:
        lab = Lab.up(1, Path(folder) / "lab")
        stack.callback(lab.down)
        host = lab.hosts[0]
        labnet.batch(host.ns, ["link add w0 type veth peer name w1", "link set w0 up", "link set w1 up"])
        for kind in KINDS:
            host.json("network", "create", kind[:-1], "-d", kind, *(LAN if kind == "macvlan" else ()))
        shapes = (
            ("bridge", bridge_by_hand, "handhost"),
            ("macvlan", macvlan_by_hand, "maclan"),
        )
        for kind, by_hand, by_hands_host in shapes:
            with contextlib.ExitStack() as held:
                pairs = {}
                made = (ours(lab, kind[:-1]), by_hand(lab))
                for name, (ends, addresses) in zip((MESHD, "by hand, no firewall"), made, strict=True):
                    pairs[name] = Pair(ends[0], ends[1], addresses[1])
                    held.callback(pairs[name].close)
                namespaces = [host.ns, labnet.container_namespace(lab.id, by_hands_host)]
                beside(kind, pairs, namespaces, Path(folder), told.rounds)
        probe_ms = 1000 * LAN_PROBES * LAN_PROBE_WAIT_S
        show("one fdatasync", sync := syncs(Path(folder), told.attaches), "ms")
        for kind in KINDS:
            daemon = asked(lab, kind[:-1], told.attaches)
            kernel = kernels_share(kind, told.attaches)
            note = ""
            if kind == "macvlan":
                note = f"{probe_ms:.0f} ms of it wait for the LAN's answers"
                daemon = [ms - probe_ms for ms in daemon]
            show(f"attach, {kind}: in the daemon", daemon, "ms", note)
            show(f"attach, {kind}: of that in the kernel", kernel, "ms")
            ratio = statistics.median(daemon) / statistics.median(kernel)
            without = (statistics.median(daemon) - statistics.median(sync)) / statistics.median(kernel)
            print(
                f"attach, {kind}: ratio {ratio:.2f}, without its fdatasync {without:.2f}  to reach: 2",
                flush=True,
            )


if __name__ == "__main__":
    main()
