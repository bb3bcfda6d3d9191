"""`docker run` on a meshd overlay beside a Swarm overlay and Docker's own bridge: the same engines, the same hosts, taking
turns. From the command's start: when it returns, and when a container on the other host, which asks every 10 ms, gets the
first reply. Then many `docker run`s started at once on one engine, until the last has returned. Prints; asserts nothing.

    python tests/bench/bench_docker.py [--at-once 64]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "real"))

from benchlib import Rows, show
from realdocker import DOCKER, IMAGE, Engine

from meshctl.errors import Failed
from meshctl.labcluster import Lab

ROUNDS = 10
SUBNETS = {"meshd": "10.77.0.0/24", "swarm": "10.88.0.0/24"}
PROBE_S = 20.0

PROBE = """
import socket, struct, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
sock.settimeout(0.01)
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff
print("ready", flush=True)
sent, end = 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    sent += 1
    body = struct.pack("!BBHHH", 8, 0, 0, 7, sent)
    try:
        sock.sendto(body[:2] + struct.pack("!H", checksum(body)) + body[4:], (sys.argv[1], 0))
        until = time.monotonic() + 0.01
        while (left := until - time.monotonic()) > 0:
            sock.settimeout(left)
            data, peer = sock.recvfrom(2048)
            if peer[0] == sys.argv[1] and data[20] == 0:
                print(time.time(), flush=True)
                sys.exit()
    except OSError:
        pass
"""
"""Asks an address every 10 ms and says when the first reply came."""


def swarm(one: Engine, two: Engine) -> bool:
    """Make the two engines a Swarm with an attachable overlay; False, said, where that cannot be here."""
    try:
        one.well("swarm", "init", "--advertise-addr", one.host.address)
        token = one.well("swarm", "join-token", "-q", "worker")
        two.well(
            "swarm",
            "join",
            "--token",
            token,
            "--advertise-addr",
            two.host.address,
            f"{one.host.address}:2377",
        )
        one.well("network", "create", "-d", "overlay", "--attachable", "--subnet", SUBNETS["swarm"], "swarm")
    except Failed as error:
        print(f"Swarm cannot run here: {error.what.splitlines()[0]}")
        return False
    return True


class Course:
    """One network: who asks is on the first host, who is started on the second, where another container is already."""

    def __init__(self, network: str, one: Engine, two: Engine) -> None:
        self.network, self.two = network, two
        one.run(f"ask-{network}", network)
        two.run(f"warm-{network}", network)
        pid = one.well("inspect", "-f", "{{.State.Pid}}", f"ask-{network}")
        self.inside = ["nsenter", f"--target={pid}", "--net", "--"]
        for knob in ("retrans_time_ms", "delay_first_probe_time"):
            path = f"/proc/sys/net/ipv4/neigh/eth0/{knob}"
            subprocess.run([*self.inside, "sh", "-c", f"[ ! -e {path} ] || echo 10 >{path}"], check=True)
        self.runs: list[float] = []
        self.pings: list[float] = []
        self.started: list[float] = []
        self.after_start: list[float] = []
        self.macs: list[str] = []

    def round(self, number: int) -> None:
        """Start one container, and remove it again."""
        address = f"{SUBNETS[self.network].rpartition('.')[0]}.{100 + number}"
        probe = subprocess.Popen(
            [*self.inside, sys.executable, "-c", PROBE, address, str(PROBE_S)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert probe.stdout is not None
        probe.stdout.readline()
        name = f"new-{self.network}-{number}"
        begun = time.time()
        self.two.run(name, self.network, "--ip", address)
        self.runs.append(time.time() - begun)
        reply = probe.stdout.readline()
        probe.wait()
        state = json.loads(self.two.well("inspect", "-f", "{{json .State}}", name))
        started = _seconds(state["StartedAt"])
        self.started.append(started)
        self.macs.append(self.two.networks(name)[self.network]["MacAddress"])
        if reply:
            self.pings.append(float(reply) - begun)
            self.after_start.append(float(reply) - started)
        self.two.well("rm", "-f", name)


def at_once(engine: Engine, network: str, count: int) -> tuple[float, int]:
    """Start so many containers at once; return seconds until the last `docker run` has returned, and how many failed."""
    begun = time.perf_counter()
    running = [
        subprocess.Popen(
            [DOCKER, "--host", f"unix://{engine.socket}", "run", "-d", "--name", f"many-{number}",
             "--network", network, IMAGE],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for number in range(count)
    ]  # fmt: skip
    told = [each.communicate()[1] for each in running]
    took = time.perf_counter() - begun
    failed = [text for each, text in zip(running, told, strict=True) if each.returncode]
    if failed:
        print(f"{network}: {failed[0].strip()[:200]}")
    engine.docker("rm", "-f", *(f"many-{number}" for number in range(count)))
    return took, len(failed)


def _seconds(text: str) -> float:
    """Read Docker's time, which has nanoseconds."""
    return datetime.fromisoformat(text[:26].rstrip("Z") + "+00:00").timestamp()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--at-once", type=int, default=64)
    count = parser.parse_args().at_once
    with tempfile.TemporaryDirectory(prefix="bench-docker-") as folder:
        Path(folder).chmod(0o755)
        lab = Lab.up(2, Path(folder) / "lab")
        engines = [Engine(host, Path(folder) / "docker" / host.name) for host in lab.hosts]
        try:
            measure(lab, *engines, count)
        finally:
            for engine in engines:
                engine.down()
            lab.down()


def measure(lab: Lab, one: Engine, two: Engine, count: int) -> None:
    """Measure on two engines that are not up yet."""
    for engine in (one, two):
        engine.up()
    lab.hosts[0].json("network", "create", "meshd", "--subnet", SUBNETS["meshd"])
    lab.hosts[1].wait_network("meshd")
    one.join("meshd")
    two.join("meshd")
    rows = Rows(one.host.ns).begin()
    offset = time.time() - time.perf_counter()
    courses = [Course("meshd", one, two)]
    if swarm(one, two):
        courses.append(Course("swarm", one, two))
    bridge: list[float] = []
    for number in range(ROUNDS + 1):
        for course in courses if number % 2 else courses[::-1]:
            course.round(number)
        begun = time.time()
        two.well("run", "-d", "--name", "plain", IMAGE)
        bridge.append(time.time() - begun)
        two.well("rm", "-f", "plain")
    for course in courses:
        show(f"docker run -d, {course.network} overlay", [1000 * s for s in course.runs[1:]], "ms")
    show("docker run -d, Docker's own bridge", [1000 * s for s in bridge[1:]], "ms")
    for course in courses:
        show(f"first ping from the other host, {course.network}", [1000 * s for s in course.pings[1:]], "ms")
    for course in courses:
        show(
            f"first ping after the process started, {course.network}",
            [1000 * s for s in course.after_start[1:]],
            "ms",
        )
    ours = courses[0]
    ahead = [
        1000 * (rows.fdb[mac] + offset - started)
        for mac, started in zip(ours.macs[1:], ours.started[1:], strict=True)
        if mac in rows.fdb
    ]
    show("row on the other host after the process started", ahead, "ms", "negative: before")
    for network in [*(course.network for course in courses), "bridge"] * 2:
        took, failed = at_once(two, network, count)
        print(f"{count} docker runs at once, {network}: {took:.1f} s, {failed} failed", flush=True)


if __name__ == "__main__":
    main()
