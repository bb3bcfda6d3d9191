"""What the lab's tests share: an endpoint's namespace as a value, pings over every family."""

import itertools
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshctl.labhost import Host
from meshctl.ping import Ping


@dataclass(frozen=True)
class Attached:
    """A namespace with an endpoint. ``v4``, ``v6``: its first address of the family, or ""."""

    host: Host
    ns: str
    endpoint: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.endpoint["name"])

    @property
    def mac(self) -> str:
        return str(self.endpoint["mac"])

    @property
    def devices(self) -> str:
        """What the names of its network's devices end in (meshd/plan/names.py)."""
        return str(self.host.json("network", "inspect", self.endpoint["network"])["id"][:8])

    @property
    def path(self) -> str:
        return f"/run/netns/{self.ns}"

    @property
    def ips(self) -> list[str]:
        return [ip.partition("/")[0] for ip in self.endpoint["ips"]]

    @property
    def v4(self) -> str:
        return next((ip for ip in self.ips if ":" not in ip), "")

    @property
    def v6(self) -> str:
        return next((ip for ip in self.ips if ":" in ip), "")


Attach = Callable[..., Attached]
"""``attach(host, network, *flags)``: see conftest.py."""

NewNetwork = Callable[..., str]
"""``new_network(*flags, host=None, name="")``: see conftest.py."""


ETHTOOL = Path(__file__).parents[1] / "ethtool.py"


def switch(ns: str, device: str, command: int, value: int) -> None:
    """Turn on or off what a device is left to do (tests/ethtool.py)."""
    argv = [sys.executable, str(ETHTOOL), device, str(command), str(value)]
    subprocess.run(["ip", "netns", "exec", ns, *argv], check=True)


def no_ping_is_lost(pairs: list[tuple[Attached, Attached]], count: int = 3) -> None:
    """Ping over every family of each pair at once; the first request counts like every other."""
    running = [(a, b, ip, Ping(a.ns, ip, count=count)) for a, b in pairs for ip in b.ips]
    results = [(a.name, b.name, ip, ping.result()) for a, b, ip, ping in running]
    assert [(a, b, ip, r.lost, r.sent) for a, b, ip, r in results if r.lost] == []
    assert all(r.sent == count for *_, r in results)


PING_EVERY_MS = 10
MONITORS = (("bridge", "monitor", "fdb"), ("ip", "monitor", "link", "neigh", "address", "nexthop"))
OURS = re.compile(r"\bm[ovbh]x?[0-9a-f]{8}\b")

EXPECTED = re.compile(r"Deleted (id (182871654|181195627)[23]\b|\d+: mp)")
"""What a starting daemon makes and deletes to see whether this kernel has FDB nexthops (kernel/nexthops.py; on VXLAN
port 8472 the second pair), and the end of an endpoint's link that goes to its namespace."""


@contextmanager
def nothing_is_deleted(*hosts: Host) -> Iterator[None]:
    """Listen in the hosts' namespaces while the body runs, with iproute2: no row, address or device of ours and no
    nexthop may be deleted."""
    with ExitStack() as stack:
        listening = []
        for host, command in itertools.product(hosts, MONITORS):
            said = stack.enter_context(tempfile.TemporaryFile("w+"))
            argv = host.argv("stdbuf", "-oL", *command)
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
            stack.callback(process.wait)
            stack.callback(process.kill)
            listening.append((host, said))
        yield
        time.sleep(0.1)  # what was told last is on its way through a pipe
        told = []
        for host, said in listening:
            said.seek(0)
            told += [
                (host.name, line.strip())
                for line in said
                if line.startswith("Deleted")
                and (OURS.search(line) or "fdb" in line)
                and not EXPECTED.search(line)
            ]
    assert told == [], told


@contextmanager
def pings_between(*attached: Attached) -> Iterator[None]:
    """Ping every 10 ms between all of them while the body runs; none may be lost."""
    pairs = [(a, b, ip) for a, b in itertools.permutations(attached, 2) for ip in b.ips]
    running = [Ping(a.ns, ip, every_ms=PING_EVERY_MS) for a, _, ip in pairs]
    try:
        yield
    finally:
        results = [each.result() for each in running]
    lost = {(a.name, ip): (r.lost, r.sent) for (a, _, ip), r in zip(pairs, results, strict=True) if r.lost}
    assert lost == {}, lost
    assert all(result.sent > 0 for result in results)


@contextmanager
def undisturbed(hosts: Sequence[Host], *attached: Attached) -> Iterator[None]:
    """No ping between the endpoints is lost while the body runs, and nothing of ours is deleted on ``hosts``."""
    with nothing_is_deleted(*hosts), pings_between(*attached):
        yield
