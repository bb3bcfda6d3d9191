"""Figures of real daemons in a lab: how soon an endpoint is programmed everywhere, how long commands
and starts take, what a daemon costs at rest. Prints; asserts nothing.

The clock of "attach -> rows elsewhere" starts when the daemon's answer has been read by the caller and stops when
the kernel of the slowest other host tells of the last row (neighbour on the bridge) of the endpoint, read from a
netlink socket in that host's namespace. A negative figure is one that was there before the answer.
"""

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

from benchlib import Rows, Unix, show

from meshctl.labcluster import Lab
from meshctl.labhost import Host

ROUNDS = 60
REST_S = 20.0


def others_of(lab: Lab) -> list[Host]:
    """All hosts but the last, which attaches."""
    return lab.hosts[:-1]


def attach_to_rows(lab: Lab) -> None:
    """Attach on the last host; see rows on all others, which have an endpoint on the network."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    lab.hosts[0].json("network", "create", "bench")
    for number, host in enumerate(others_of(lab)):
        host.wait_network("bench")
        host.json("attach", "bench", "--netns", f"/run/netns/{lab.container(f'b{number}')}")
    lab.hosts[-1].wait_network("bench")
    others = [Rows(host.ns).begin() for host in others_of(lab)]
    api = Unix(lab.hosts[-1].socket)
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
        while not all(ip in thread.neighbours for thread in others) and time.perf_counter() < deadline:
            time.sleep(0.0005)
        last = max(thread.neighbours.get(ip, float("inf")) for thread in others)
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
    show(f"attach: request -> rows on all of {len(others)} others", whole, "ms")
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
    """Three hosts, then nine, since spreading is what grows."""
    with tempfile.TemporaryDirectory(prefix="meshd-bench-") as folder, contextlib.ExitStack() as stack:
        lab = Lab.up(3, Path(folder) / "lab")
        stack.callback(lab.down)
        rest(lab)
        attach_to_rows(lab)
        commands(lab)
        starts(lab.hosts[1])
    with tempfile.TemporaryDirectory(prefix="meshd-bench-") as folder, contextlib.ExitStack() as stack:
        lab = Lab.up(9, Path(folder) / "lab")
        stack.callback(lab.down)
        attach_to_rows(lab)


if __name__ == "__main__":
    main()
