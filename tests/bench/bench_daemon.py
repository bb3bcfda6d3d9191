"""Figures of real daemons on three hosts of a lab: how soon an endpoint is programmed everywhere, how long commands
and starts take, what a daemon costs at rest. Prints; asserts nothing.

The clock of "attach -> rows elsewhere" starts when the daemon's answer has been read by the caller and stops when
the kernel of the slowest other host tells of the last row (neighbour on the bridge) of the endpoint, read from a
netlink socket in that host's namespace. A negative figure is one that was there before the answer.
"""

import contextlib
import ctypes
import http.client
import json
import os
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

from meshctl.labcluster import Lab
from meshctl.labhost import Host

ROUNDS = 60
REST_S = 20.0
CLONE_NEWNET = 0x40000000
RTNLGRP_NEIGH = 3
RTM_NEWNEIGH = 28
AF_INET = 2


class Rows(threading.Thread):
    """Notes when each v4 neighbour with a MAC appears in a namespace."""

    def __init__(self, namespace: str) -> None:
        super().__init__(daemon=True)
        self._namespace = namespace
        self.seen: dict[str, float] = {}
        self.ready = threading.Event()

    def run(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{self._namespace}") as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.bind((0, 1 << (RTNLGRP_NEIGH - 1)))
        self.ready.set()
        while True:
            chunk = sock.recv(1 << 16)
            now = time.perf_counter()
            offset = 0
            while offset < len(chunk):
                length, kind = struct.unpack_from("=IH", chunk, offset)
                if kind == RTM_NEWNEIGH and chunk[offset + 16] == AF_INET:
                    at = offset + 28
                    while at < offset + length:
                        size, attribute = struct.unpack_from("=HH", chunk, at)
                        if attribute == 1:  # NDA_DST
                            self.seen.setdefault(socket.inet_ntoa(chunk[at + 4 : at + 8]), now)
                        at += (size + 3) & ~3
                offset += (length + 3) & ~3


class Unix(http.client.HTTPConnection):
    """HTTP over a unix socket, kept open."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))

    def call(self, method: str, target: str, body: object = None) -> dict:
        self.request(method, target, json.dumps(body) if body is not None else None)
        response = self.getresponse()
        answer = json.loads(response.read())
        if response.status >= 300:
            raise RuntimeError(answer)
        return answer


def show(what: str, values: list[float], unit: str, note: str = "") -> None:
    """Print one row: minimum, median, 99th percentile, maximum."""
    values = sorted(values)
    p99 = values[min(len(values) - 1, int(0.99 * len(values)))]
    cells = f"min {values[0]:8.2f}  median {statistics.median(values):8.2f}  p99 {p99:8.2f}  max {values[-1]:8.2f}"
    print(f"{what:<44} {cells} {unit:<4} n={len(values):<4} {note}", flush=True)


def attach_to_rows(lab: Lab) -> None:
    """Attach on host3; see rows on host1 and host2, which have an endpoint on the network."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    lab.hosts[0].json("network", "create", "bench")
    for number, host in enumerate(lab.hosts[:2]):
        host.wait_network("bench")
        host.json("attach", "bench", "--netns", f"/run/netns/{lab.container(f'b{number}')}")
    lab.hosts[2].wait_network("bench")
    others = [Rows(host.ns) for host in lab.hosts[:2]]
    for thread in others:
        thread.start()
        thread.ready.wait(5)
    api = Unix(lab.hosts[2].socket)
    answers, programmed, whole = [], [], []
    endpoints = []
    for number in range(ROUNDS):
        body = {
            "network": "bench", "ifname": "eth0",
            "netns": {"cookie": 1_000_000 + number, "boot_id": boot_id, "path": f"bench-{number}"},
        }  # fmt: skip
        begun = time.perf_counter()
        endpoint = api.call("POST", "/v1/endpoints", body)
        answered = time.perf_counter()
        endpoints.append(endpoint["id"])
        ip = endpoint["ips"][0].partition("/")[0]
        deadline = answered + 5
        while not all(ip in thread.seen for thread in others) and time.perf_counter() < deadline:
            time.sleep(0.0005)
        last = max(thread.seen.get(ip, float("inf")) for thread in others)
        answers.append(1000 * (answered - begun))
        programmed.append(1000 * (last - answered))
        whole.append(1000 * (last - begun))
        time.sleep(0.05)
    show("attach: request -> answer", answers, "ms")
    show(
        "attach: answer -> rows on every other host",
        programmed,
        "ms",
        "to reach: median 10 (Swarm 20.10: 80)",
    )
    show("attach: request -> rows on every other host", whole, "ms")
    for endpoint in endpoints:
        api.call("DELETE", f"/v1/endpoints/{endpoint}")


def commands(lab: Lab) -> None:
    """Time whole processes."""
    host = lab.hosts[0]
    members = ["meshctl", "members"]
    for what, argv in (("bare interpreter", [sys.executable, "-c", ""]), ("meshctl members", members)):
        times = []
        for _ in range(20):
            begun = time.perf_counter()
            done = host.run(*argv)
            times.append(1000 * (time.perf_counter() - begun))
            if done.returncode:
                raise RuntimeError(done.stderr)
        show(
            f"{what} (whole process, in a namespace)", times, "ms", "to reach: 90" if argv is members else ""
        )


def starts(host: Host) -> None:
    """Time SIGKILL -> start -> ready."""
    times = []
    for _ in range(8):
        host.kill()
        begun = time.perf_counter()
        host.begin()
        host.wait_ready()
        times.append(1000 * (time.perf_counter() - begun))
    show("daemon: exec -> ready (polled)", times, "ms", "to reach: 500")


def rest(lab: Lab) -> None:
    """Read what each daemon uses when nothing happens."""
    time.sleep(3)
    ticks = os.sysconf("SC_CLK_TCK")

    def used(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    before = {host.name: used(host.pid) for host in lab.hosts}
    time.sleep(REST_S)
    cpu = [100 * (used(host.pid) - before[host.name]) / REST_S for host in lab.hosts]
    show("daemon at rest: of a core", cpu, "%", "to reach: 0.3")
    show("daemon at rest: resident", [resident_mb(host.pid) for host in lab.hosts], "MB", "to reach: 60")


def resident_mb(pid: int) -> float:
    """Return VmRSS of a process."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024


def main() -> None:
    """Bring a lab up, measure, take it down."""
    with tempfile.TemporaryDirectory(prefix="meshd-bench-") as folder, contextlib.ExitStack() as stack:
        lab = Lab.up(3, Path(folder) / "lab")
        stack.callback(lab.down)
        rest(lab)
        attach_to_rows(lab)
        commands(lab)
        starts(lab.hosts[1])


if __name__ == "__main__":
    main()
