"""Two containers and what passes between them, beside others of the same shape: iperf3, ping, and the processor's time a
packet (trips.c). All take turns in short rounds, and a ratio is one round's: what else the machine does moves both.
"""

import json
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from meshctl import labnet

ROUNDS = 15
SECONDS = 1
SERVER_PORT = 5201
TO_REACH = 0.98
MESHD = "meshd"
TRIPS = {"udp": ("64 bytes there and back", 1000), "tcp": ("256 KiB there", 60)}


class Pair:
    """Two containers: ``client`` sends to ``address``, where an iperf3 server runs."""

    def __init__(self, client: str, server: str, address: str) -> None:
        self.client = client
        self.address = address
        self.text = f"{client},{server},{address}"
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
        """Return received Gbit/s. Congestion control is reno: what paces itself by timers (bbr) sends now at full speed,
        now at half of it, and shows nothing of the path."""
        return self._iperf("-P", str(streams), "-C", "reno")["sum_received"]["bits_per_second"] / 1e9

    def udp(self) -> float:
        """Return received thousands of 64-byte packets a second."""
        end = self._iperf("-u", "-b", "0", "-l", "64")["sum"]
        return (end["packets"] - end["lost_packets"]) / end["seconds"] / 1e3

    def ping(self) -> float:
        """Return the mean round trip of 300 pings, in us."""
        command = ["ip", "netns", "exec", self.client, "ping", "-q", "-c", "300", "-i", "0.002", self.address]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return 1000 * float(re.search(r"= [\d.]+/([\d.]+)/", out)[1])


def compare(
    what: str,
    unit: str,
    pairs: Mapping[str, Pair],
    measure: Callable[[Pair], float],
    rounds: int = ROUNDS,
    *,
    less_is_better: bool = False,
) -> None:
    """Let the pairs take turns and print medians and ratios. ``pairs``: meshd's first, by name."""
    order, got = list(pairs), {name: [] for name in pairs}
    for number in range(rounds):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            got[name].append(measure(pairs[name]))
    _print(what, unit, got, less_is_better)


def processor(kind: str, pairs: Mapping[str, Pair], folder: Path, rounds: int = 31, note: str = "") -> None:
    """Print what trips.c says of the pairs: ``kind`` "udp" or "tcp"."""
    if shutil.which("cc") is None:
        print("processor time: needs cc")
        return
    program = folder / "trips"
    if not program.exists():
        source = Path(__file__).with_name("trips.c")
        subprocess.run(["cc", "-O2", "-Wall", "-o", program, source], check=True)
    of, count = TRIPS[kind]
    command = [program, kind, str(count), str(rounds), *(pair.text for pair in pairs.values())]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    got = {name: [int(ns) / 1000 for ns in line.split()] for name, line in zip(pairs, lines, strict=True)}
    head = f"{note}: " if note else ""
    _print(f"{head}processor, {kind.upper()}, {of}", "us", got, less_is_better=True)


def _print(what: str, unit: str, got: Mapping[str, Sequence[float]], less_is_better: bool) -> None:
    mesh = got[MESHD]
    print(f"{what:<44} {MESHD} {statistics.median(mesh):8.2f} {unit}  n={len(mesh)}  to reach: {TO_REACH}")
    for name, values in got.items():
        if name == MESHD:
            continue
        ratios = [b / a if less_is_better else a / b for a, b in zip(mesh, values, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"    beside {name:<34} {statistics.median(values):8.2f} {unit:<6}  ratio {middle:.3f}"
            f"  (half of the rounds {low:.3f} to {high:.3f})",
            flush=True,
        )


def br_netfilter(namespaces: Sequence[str], *, on: bool) -> bool:
    """Show bridged packets to the chains of IP or not; False where this kernel never does."""
    if not Path("/proc/sys/net/bridge").exists():
        return False
    for name in namespaces:
        labnet.set_sysctls(
            name, {f"bridge/bridge-nf-call-{table}": str(int(on)) for table in ("iptables", "ip6tables")}
        )
    return True
