"""How soon what is wrong is right again, and what a crash costs. Prints; asserts nothing.

A foreign deletion: from the kernel's word that a row is gone, which bridge(8) has deleted, to that of its return,
another endpoint's row each time. A healed host: from the removal of the packet filter that cut its gossip off until it
holds the rows of everything that changed meanwhile. Crashes: a flow of 1,000 datagrams a second, each numbered and
counted where it arrives, through kill -9 and restart of the daemons at both its ends.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchlib import Rows, Unix, put_back, show

from meshctl.labcluster import Lab
from meshctl.labhost import Host

DELETIONS, ROUNDS = 100, 2  # an endpoint whose link stays here is released after half a minute
HEALS = 3
CUT_S = 12.0
CHANGES = 50
KILLS = int(os.environ.get("MESHD_KILLS", "100"))
CUT = """table inet cut {
  chain in { type filter hook input priority -300; meta l4proto { tcp, udp } th dport 7947 drop; }
  chain out { type filter hook output priority -300; meta l4proto { tcp, udp } th dport 7947 drop; }
}
"""


class Endpoints:
    """Endpoints made over one kept connection, without namespaces: their rows are what counts here."""

    def __init__(self, host: Host, network: str) -> None:
        self._api = Unix(host.socket)
        self._network = network
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._cookie = 1_000_000

    def add(self) -> dict:
        """Attach one more."""
        self._cookie += 1
        netns = {"cookie": self._cookie, "boot_id": self._boot_id, "path": f"bench-{self._cookie}"}
        return self._api.call(
            "POST", "/v1/endpoints", {"network": self._network, "ifname": "eth0", "netns": netns}
        )

    def remove(self, endpoint: dict) -> None:
        """Detach one."""
        self._api.call("DELETE", f"/v1/endpoints/{endpoint['id']}")


def wait(what: str, holds, seconds: float = 20.0) -> float:
    """Return when ``holds`` became true."""
    end = time.perf_counter() + seconds
    while not holds():
        if time.perf_counter() > end:
            raise RuntimeError(f"{what}: not within {seconds} s")
        time.sleep(0.001)
    return time.perf_counter()


def deletions(lab: Lab) -> None:
    """Delete rows by hand on host1."""
    rows = Rows(lab.hosts[0].ns).begin()
    device = "mv" + lab.hosts[0].json("network", "inspect", "bench")["id"][:8]
    times = []
    for _ in range(ROUNDS):
        endpoints = Endpoints(lab.hosts[1], "bench")
        made = [endpoints.add() for _ in range(DELETIONS)]
        wait("rows", lambda made=made: all(end["mac"] in rows.fdb for end in made))
        times += put_back(lab.hosts[0].ns, device, [end["mac"] for end in made])
        for end in made:
            Endpoints(lab.hosts[1], "bench").remove(end)
    show("row deleted by hand -> back", times, "ms", "to reach: p99 50")


def heals(lab: Lab) -> None:
    """Cut host3's gossip off, change things, let it back."""
    times = []
    cut_off = lab.hosts[2]
    endpoints = Endpoints(lab.hosts[0], "bench")
    for _ in range(HEALS):
        gone = [endpoints.add() for _ in range(CHANGES)]
        rows = Rows(cut_off.ns).begin()
        lab.hosts[2].wait_rows(*(end["mac"] for end in gone))
        subprocess.run(
            ["ip", "netns", "exec", cut_off.ns, "nft", "-f", "-"], input=CUT, text=True, check=True
        )
        for end in gone:
            endpoints.remove(end)
        made = [endpoints.add() for _ in range(CHANGES)]
        time.sleep(CUT_S)
        subprocess.run(
            ["ip", "netns", "exec", cut_off.ns, "nft", "delete", "table", "inet", "cut"], check=True
        )
        healed = time.perf_counter()
        wait("new rows", lambda rows=rows, made=made: all(end["mac"] in rows.fdb for end in made), 60)
        wait("old rows' end", lambda gone=gone: not any(end["mac"] in cut_off.rows() for end in gone), 60)
        times.append(time.perf_counter() - healed)
        cut_off.wait_alive(3)
        for end in made:
            endpoints.remove(end)
    show("healed -> all rows right", times, "s", "to reach: 2 (Swarm 20.10: 51.9)")


SINK = """
import select, socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE: nothing is lost at this end
sock.bind((sys.argv[1], 5000))
print("ready", flush=True)
seen = set()
while True:
    if sys.stdin in select.select([sock, sys.stdin], [], [])[0]:
        break
    seen.add(sock.recv(64))
sock.settimeout(1.0)
try:
    while True:
        seen.add(sock.recv(64))
except TimeoutError:
    print(len(seen))
"""
SOURCE = """
import select, socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], 5000))
begun, sent = time.monotonic(), 0
while not select.select([sys.stdin], [], [], max(0.0, begun + sent / 1000 - time.monotonic()))[0]:
    sock.send(b"%d" % sent)  # one that the kernel refuses ends this with the reason
    sent += 1
print(sent, time.monotonic() - begun)
"""
"""A thousand a second on the whole: what a busy machine delays is sent as soon as it can be."""


def kills(lab: Lab, ends: list[tuple[str, str]]) -> None:
    """Kill both daemons of a flow, over and over."""
    (source_ns, _), (sink_ns, sink_ip) = ends[:2]

    def python(ns: str, script: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", ns, sys.executable, "-c", script, sink_ip],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    with python(sink_ns, SINK) as sink:
        sink.stdout.readline()
        with python(source_ns, SOURCE) as source:
            for number in range(KILLS):
                host = lab.hosts[number % 2]
                host.kill()
                host.start()
            sent, took = source.communicate("end")[0].split()
        arrived = sink.communicate("end")[0]
    print(
        f"{KILLS} times kill -9 and restart under {int(sent) / float(took):.0f} datagrams a second: "
        f"{sent} sent, {int(sent) - int(arrived)} lost  to reach: 0 at 1,000 a second",
        flush=True,
    )


def main() -> None:
    """Three hosts; one endpoint each so that all program the network."""
    with tempfile.TemporaryDirectory(prefix="meshd-bench-") as folder, contextlib.ExitStack() as stack:
        lab = Lab.up(3, Path(folder) / "lab")
        stack.callback(lab.down)
        lab.hosts[0].json("network", "create", "bench")
        ends = []
        for number, host in enumerate(lab.hosts):
            host.wait_network("bench")
            name = lab.container(f"b{number}")
            end = host.json("attach", "bench", "--netns", f"/run/netns/{name}")
            ends.append((name, end["ips"][0].partition("/")[0]))
        deletions(lab)
        heals(lab)
        kills(lab, ends)


if __name__ == "__main__":
    main()
