"""ADD and DEL of the CNI executable beside the reference plugins (bridge, host-local, portmap), whole processes, in turn
in one run on one host of a lab.

    python tests/bench/bench_cni.py [--rounds 50] [--parallel 64] [--parallel-rounds 5]

Printed: each way in milliseconds, then that many ADDs (and DELs) started at once, until the last is done, then ratios of
medians to the reference doing the same. Reference DEL includes the kernel's removal of the link; ours goes on
behind the answer, so a pause between the steps keeps it out of the next one's time. Targets: issue 5.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchlib import CLONE_NEWNET, show

from meshctl import labnet
from meshctl.cni import build, put, source
from meshctl.labcluster import Lab

REFERENCE = Path("/usr/lib/cni")
PAUSE_S = 0.06
CLEANED_S = 0.15  # the kernel takes a namespace apart behind the command, under the lock that every ADD needs
PORT = 20_000


class Chain:
    """A list of plugins. ``ports``: the last one (ours: the only one) publishes."""

    def __init__(self, name, folder, *plugins, ports=False):
        self.name, self.folder, self.plugins, self.ports = name, folder, plugins, ports

    def call(self, command, number, path, result=None):
        """Run the list as a runtime does; return the last result."""
        for plugin in reversed(self.plugins) if command == "DEL" else self.plugins:
            config = {"cniVersion": "1.0.0", "name": self.name, **plugin}
            if result is not None:
                config["prevResult"] = result
            if self.ports and plugin["type"] in ("meshd", "portmap"):
                mapping = {"hostPort": PORT + number, "containerPort": 80, "protocol": "tcp"}
                config["runtimeConfig"] = {"portMappings": [mapping]}
            folder = self.folder if plugin["type"] == "meshd" else REFERENCE
            environment = {
                "CNI_COMMAND": command, "CNI_CONTAINERID": f"{self.name}{number}", "CNI_NETNS": path,
                "CNI_IFNAME": "eth0", "CNI_PATH": str(REFERENCE), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            }  # fmt: skip
            done = subprocess.run(
                [folder / plugin["type"]], env=environment, input=json.dumps(config), capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"{plugin['type']} {command}: {done.stdout}{done.stderr}")
            if command == "ADD":
                result = json.loads(done.stdout)
        return result


def timed(function, *args):
    start = time.perf_counter()
    value = function(*args)
    return (time.perf_counter() - start) * 1000, value


def chains(lab, folder):
    """Return the ways by what they do: (ours, the reference)."""
    socket = str(lab.hosts[0].dir / "run" / "cni.sock")
    ours = {"type": "meshd", "socket": socket}

    def bridge(number, **more):
        ipam = {
            "type": "host-local", "dataDir": str(folder / "ipam"), "subnet": f"172.30.{number}.0/24",
            "routes": [{"dst": "0.0.0.0/0"}],
        }  # fmt: skip
        return {"type": "bridge", "bridge": f"ref{number}", "isGateway": True, "ipam": ipam, **more}

    return {
        "plain": (Chain("plain", folder, ours), Chain("ref1", folder, bridge(1))),
        "ipMasq": (Chain("masq", folder, ours), Chain("ref2", folder, bridge(2, ipMasq=True))),
        "ipMasq, a port": (
            Chain("masq", folder, ours, ports=True),
            Chain("ref3", folder, bridge(3, ipMasq=True), {"type": "portmap", "snat": True}, ports=True),
        ),
    }


def one_by_one(lab, ways, rounds):
    """Measure each way in turn; return milliseconds by (what, who, command)."""
    times = {}
    for number in range(rounds):
        for what, pair in ways.items():
            for who, chain in zip(("meshd", "reference"), pair, strict=True):
                ns = lab.container(f"b{number}")
                path = f"/run/netns/{ns}"
                took, result = timed(chain.call, "ADD", number, path)
                times.setdefault((what, who, "ADD"), []).append(took)
                time.sleep(PAUSE_S)
                took, _ = timed(chain.call, "DEL", number, path, result)
                times.setdefault((what, who, "DEL"), []).append(took)
                time.sleep(PAUSE_S)
                labnet.ip("netns", "del", ns)
                time.sleep(CLEANED_S)
    return times


def at_once(lab, chain, count):
    """Start ``count`` at once; return milliseconds until the last ADD and the last DEL."""
    spaces = [lab.container(f"p{number}") for number in range(count)]
    took = []
    for command in ("ADD", "DEL"):
        start = time.perf_counter()
        children = []
        for number, ns in enumerate(spaces):
            pid = os.fork()
            if pid == 0:
                try:
                    chain.call(command, number, f"/run/netns/{ns}")
                except BaseException as error:
                    print(error, file=sys.stderr)
                    os._exit(1)
                os._exit(0)
            children.append(pid)
        failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in children)
        took.append((time.perf_counter() - start) * 1000)
        if failed:
            raise RuntimeError(f"{failed} of {count} {command} failed")
    for ns in spaces:
        labnet.ip("netns", "del", ns)
    return took


def all_at_once(lab, ways, rounds, count):
    """Measure two of the ways in turn; return milliseconds by (what, who, command)."""
    times = {}
    for _ in range(rounds):
        for what in ("plain", "ipMasq"):
            for who, chain in zip(("meshd", "reference"), ways[what], strict=True):
                for command, took in zip(("ADD", "DEL"), at_once(lab, chain, count), strict=True):
                    times.setdefault((f"{what}, {count} at once", who, command), []).append(took)
                time.sleep(1)  # the kernel takes the namespaces apart
    return times


def ratios(times):
    """Print all, then each median beside the reference's."""
    for (what, who, command), values in times.items():
        show(f"{command} {what}, {who}", values, "ms")
    for (what, who, command), values in times.items():
        if who == "meshd":
            ratio = statistics.median(values) / statistics.median(times[what, "reference", command])
            print(f"{command} {what}: {ratio:.2f} times the reference")


def enter(namespace):
    """Enter a network namespace: no ip-netns(8) is to be part of what is measured."""
    if ctypes.CDLL(None).setns(namespace, CLONE_NEWNET):
        sys.exit("setns failed")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--parallel", type=int, default=64)
    parser.add_argument("--parallel-rounds", type=int, default=5)
    args = parser.parse_args()
    if not (REFERENCE / "bridge").exists():
        sys.exit("needs containernetworking-plugins")
    with tempfile.TemporaryDirectory(prefix="bench-cni-") as folder:
        lab = Lab.up(1, Path(folder) / "lab")
        own = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            put(build(source()), Path(folder))
            host = lab.hosts[0]
            host.json("network", "create", "plain", "-d", "bridge", "--internal")
            host.json("network", "create", "masq", "-d", "bridge")
            enter(os.open(f"/run/netns/{host.ns}", os.O_RDONLY))
            ways = chains(lab, Path(folder))
            ratios(one_by_one(lab, ways, args.rounds))
            ratios(all_at_once(lab, ways, args.parallel_rounds, args.parallel))
        finally:
            enter(own)  # what is in the host's namespace is ended with it
            lab.down()


if __name__ == "__main__":
    main()
