"""Scale of the data plane: where time and memory go with 100,000 endpoints on other hosts, what one more costs, and
1,000 networks on one host. Prints; asserts nothing.

    python tests/bench/bench_scale.py [cold] [delta] [daemons] [networks] [arrival] [--endpoints 100000] [--networks 1000]

``cold``      in this process, in a namespace of its own: the daemon's own steps from snapshot to kernel, one by one
``delta``     the same, one endpoint added and removed in a network of 100 and of ``--endpoints``
``daemons``   two real daemons: one has the endpoints of a third, dead host on its disk, the other learns them by
              sync and programs them; then the other starts from its own disk with an empty kernel
``networks``  one real daemon with so many networks, each with a local endpoint
``arrival``   two real daemons: one with 10,000 endpoints on its disk starts; when the other has all rows

Loop lag is measured from outside: a caller asks the daemon's socket for its own status again and again; while the
loop is held, nobody is answered. Its figure at rest is printed beside it.
"""

import argparse
import contextlib
import gc
import http.client
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernel"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchlib import Unix, put_back, show
from conftest import Netns

from meshctl import labdaemon, netns
from meshctl.errors import CommandError
from meshctl.labcluster import Lab
from meshctl.labhost import Host
from meshd.config import GC_THRESHOLDS
from meshd.daemon import replay
from meshd.kernel.links import Birth
from meshd.kernel.namespace import Namespace
from meshd.model import Attachment, Endpoint, HostFacts, Item, Kind, Network, Subnet, Version
from meshd.plan import names
from meshd.plan.objects import Link
from meshd.plan.ops import PutLink
from meshd.plan.shadow import Shadow
from meshd.plan.view import View
from meshd.shell.journal import Journal
from meshd.state.usage import Usage

MARK = "aabbccdd"
ME, NETWORK = bytes([1]) * 16, bytes([9]) * 16
HOSTS = [bytes([2, n]) * 8 for n in range(100)]
FIRST = int.from_bytes(bytes((100, 64, 1, 0)), "big")  # in 100.64.0.0/12, which no default pool touches
PUT_BACK = 300  # rows deleted by hand, among all
ROWS_PER_ENDPOINT = 3  # FDB of the vxlan device, FDB of the bridge, neighbour


def resident_mb(pid: int | str = "self") -> float:
    """Return VmRSS of a process."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024


def slab_mb() -> float:
    """Return the kernel's slab memory: of the whole machine, so only differences mean anything."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["Slab"].split()[0]) / 1024


def cpu_s(pid: int) -> float:
    """Return the CPU seconds a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def timed(what: str, rows: int = 0):
    """Print how long the block took, rows a second, and what it added to this process."""
    before, begun, used = resident_mb(), time.perf_counter(), time.process_time()
    yield
    seconds, used = time.perf_counter() - begun, time.process_time() - used
    rate = f"{rows / seconds:12,.0f} rows/s" if rows else ""
    print(
        f"  {what:<44} {seconds:8.3f} s  (CPU {used:6.3f})  {resident_mb() - before:+7.1f} MB  {rate}",
        flush=True,
    )


def endpoints(count: int, hosts: list[bytes], network: bytes) -> list[Item]:
    """Make ENDPOINT items spread over ``hosts``."""
    rng = random.Random(1)
    items = []
    for number in range(count):
        id_, host = rng.randbytes(16), hosts[number % len(hosts)]
        body = Endpoint(
            network, host, f"ep-{id_.hex()[:8]}", 256 + number, ((FIRST + number).to_bytes(4, "big"),),
            names.endpoint_mac(id_), "eth0", created_ms=1_700_000_000_000,
        )  # fmt: skip
        items.append(
            Item(Kind.ENDPOINT, id_, Version(1_700_000_000_000, 0, host), body, origin=host, seq=number + 1)
        )
    return items


def world(count: int) -> tuple[list[Item], bytes]:
    """Make everything a host would have on disk: a network, 101 hosts, one endpoint here; return its id too."""
    facts = Network("big", "overlay", (Subnet("100.64.0.0/12", "100.64.0.1"),), vni=5000, creator=ME)
    items = [Item(Kind.NETWORK, NETWORK, Version(0, 1, ME), facts)]
    for number, host in enumerate([ME, *HOSTS]):
        body = HostFacts(f"h{number}", bytes((192, 0, 2, 1 + number)), 4789, 1500)
        items.append(Item(Kind.HOST, host, Version(0, 0, host), body))
    local = random.Random(2).randbytes(16)
    here = Endpoint(NETWORK, ME, "here", 2, (bytes((100, 64, 0, 2)),), names.endpoint_mac(local), "eth0")
    plugged = Attachment("boot", 1, "/ns", "eth0", names.veth(local), names.peer(local))
    items.append(Item(Kind.ENDPOINT, local, Version(1, 0, ME), here, origin=ME, seq=1))
    items.append(Item(Kind.ATTACHMENT, local, Version(1, 0, ME), plugged))
    return [*items, *endpoints(count, HOSTS, NETWORK)], local


def view_of(items: list[Item]) -> View:
    """Derive what plan/ works from, as shell/cluster.py does item by item."""
    found: dict[int, dict[bytes, object]] = {kind: {} for kind in Kind}
    for item in items:
        found[item.kind][item.id] = item.body
    return View(
        me=ME, cluster=MARK, networks=found[Kind.NETWORK], endpoints=found[Kind.ENDPOINT],
        hosts=found[Kind.HOST], attachments=found[Kind.ATTACHMENT], nhid=True, vxlan_port=4789, gossip_port=7947,
    )  # fmt: skip


@contextlib.contextmanager
def programmed_namespace(local: bytes):
    """Give a Namespace in a fresh network namespace that has the local endpoint's veth pair, and be in it meanwhile:
    nft runs where its caller is, and would write this machine's own tables."""
    fresh = Netns()
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    enter(f"/run/netns/{fresh.name}")
    namespace = Namespace()
    try:
        link = Link(names.veth(local), "veth", names.alias(MARK, NETWORK), 1450)
        namespace.apply(
            [PutLink(link)], {link.name: Birth(names.peer(local), names.endpoint_mac(local), 1450)}
        )
        yield namespace
    finally:
        namespace.close()
        enter(f"/proc/self/fd/{home}")
        os.close(home)
        fresh.close()


def enter(path: str) -> None:
    """Put this thread into the network namespace at ``path``."""
    with open(path) as file:
        if netns.libc.setns(file.fileno(), netns.CLONE_NEWNET):
            raise OSError(f"cannot enter {path}")


def cold(count: int) -> None:
    """Go from snapshot to kernel in this process, step by step."""
    gc.set_threshold(*GC_THRESHOLDS)  # as the daemon does
    print(f"cold start with {count:,} remote endpoints, step by step (seconds, resident memory added)")
    with tempfile.TemporaryDirectory(prefix="meshd-bench-") as folder, contextlib.ExitStack() as stack:
        items, local = world(count)
        journal = Journal(Path(folder))
        journal.load()
        with timed("snapshot: encode and write"):
            journal.compact(items)
        journal.close()
        del items
        size = (Path(folder) / "snapshot").stat().st_size
        print(f"  {'snapshot: bytes an endpoint':<44} {size / count:8.0f} B")
        base = resident_mb()
        with timed("snapshot: read, check, decode"):
            entries = journal.load()
        with timed("store: merge, digest"):
            store = replay(entries, bytes(32))
        del entries
        with timed("usage: indices in use"):
            usage = Usage()
            for item in store.everything():
                usage.observe(item, 0.0)
        view = view_of([*store.everything()])
        known = resident_mb() - base
        namespace = stack.enter_context(programmed_namespace(local))
        shadow, rows = Shadow(), ROWS_PER_ENDPOINT * count
        with timed("view: copy for the worker thread"):
            frozen = view.frozen()
        found = namespace.dump(MARK).ours
        with timed("plan: desired state and difference", rows):
            todo, _ = shadow.compare(frozen, found, 0.0, deletions=False)
        before = slab_mb()
        with timed("kernel: rows written", rows):
            refused = namespace.apply(todo)
        if refused:
            raise RuntimeError(refused[0])
        with timed("plan: note what was done", rows):
            shadow.done(todo, refused)
        del todo
        time.sleep(1)  # what the kernel frees after a grace period is none of these rows
        slab = slab_mb() - before
        with timed("kernel: dump", rows):
            found = namespace.dump(MARK).ours
        with timed("plan: compare with the dump (nothing to do)", rows):
            if shadow.compare(frozen, found, 1.0, deletions=True)[0]:
                raise RuntimeError("the kernel does not hold what was written")
        print(
            f"  {'kernel slab':<44} {slab * 2**20 / rows:8.0f} B a row, {1000 * slab / count:.2f} MB a 1,000 endpoints"
        )
        print(f"  {'store, usage and views':<44} {1000 * known / count:8.2f} MB a 1,000 endpoints")
        whole = resident_mb() - base
        print(
            f"  {'all of it, plan and shadow included':<44} {1000 * whole / count:8.2f} MB a 1,000 endpoints"
        )


def delta(count: int) -> None:
    """Add and remove one endpoint in a small and in a large network."""
    print("one endpoint added, then removed: ops, and CPU ms of plan and kernel (median of 20)")
    for size in (100, count):
        items, local = world(size)
        view = view_of(items)
        with programmed_namespace(local) as namespace:
            shadow = Shadow()
            todo, _ = shadow.compare(view, namespace.dump(MARK).ours, 0.0, deletions=True)
            shadow.done(todo, namespace.apply(todo))
            figures: dict[str, list[float]] = {"copy": [], "add": [], "remove": []}
            ops = {}
            for item in endpoints(size + 20, HOSTS, NETWORK)[size:]:
                for what in ("add", "remove"):
                    if what == "add":
                        view.endpoints[item.id] = item.body  # type: ignore[index]
                    else:
                        del view.endpoints[item.id]  # type: ignore[attr-defined]
                    begun = time.process_time()
                    frozen = view.narrow({item.id})
                    copied = time.process_time()
                    todo = shadow.change(frozen, set(), {NETWORK: {item.id}}, deletions=True)
                    shadow.done(todo, namespace.apply(todo))
                    shadow.counts()
                    figures["copy"].append(1000 * (copied - begun))
                    figures[what].append(1000 * (time.process_time() - copied))
                    ops[what] = len(todo)
            medians = {what: statistics.median(values) for what, values in figures.items()}
        print(
            f"  among {size:>7,}: add {ops['add']} ops {medians['add']:.3f} ms, remove {ops['remove']} ops"
            f" {medians['remove']:.3f} ms, copy of the view {medians['copy']:.3f} ms",
            flush=True,
        )


IDLE = """
import select, sys, time
late = []
while not select.select([sys.stdin], [], [], 0)[0]:
    begun = time.perf_counter()
    time.sleep(0.002)
    late.append(1000 * (time.perf_counter() - begun) - 2)
late.sort()
print(f"idle process: p99 {late[int(0.99 * len(late))]:.1f} max {late[-1]:.1f}")
"""
"""How late a process that does nothing else wakes: what the machine's other work costs anybody."""


class Lag(threading.Thread):
    """Asks a daemon for its status all the time and keeps how long each answer took, in ms; beside it an idle process."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._done = False
        self.waited: list[float] = []
        self.first = 0.0

    def run(self) -> None:
        """Ask until told to stop; while there is no daemon, try again."""
        connection: Unix | None = None
        self._idle = subprocess.Popen(
            [sys.executable, "-c", IDLE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        while not self._done:
            begun = time.perf_counter()
            try:
                connection = connection or Unix(self._path)
                connection.call("GET", "/v1/status")
                self.first = self.first or time.perf_counter()
                self.waited.append(1000 * (time.perf_counter() - begun))
            except (OSError, http.client.HTTPException, RuntimeError):
                connection = None
            time.sleep(0.002)

    def stop(self, what: str) -> None:
        """Print and end."""
        self._done = True
        self.join()
        values = sorted(self.waited) or [0.0]
        p99 = values[min(len(values) - 1, int(0.99 * len(values)))]
        above = sum(1 for value in values if value > 50)
        print(
            f"  {what:<44} median {statistics.median(values):6.1f}  p99 {p99:6.1f}  max {values[-1]:6.1f} ms,"
            f" {above} of {len(values)} above 50 ms; {self._idle.communicate()[0].strip()}",
            flush=True,
        )


def neighbours(host: Host) -> int:
    """Count the rows that are written last of an endpoint's."""
    done = host.run("ip", "-4", "neigh", "show", "nud", "permanent")
    return done.stdout.count("lladdr")


def wait_rows(host: Host, count: int, begun: float, what: str) -> None:
    """Wait for all rows, print the seconds since ``begun``."""
    deadline = time.perf_counter() + 120
    while (found := neighbours(host)) < count:
        if time.perf_counter() > deadline:
            raise RuntimeError(f"{found} of {count} rows; {labdaemon.tail(host.log)}")
        time.sleep(0.2)
    seconds = time.perf_counter() - begun
    print(f"  {what:<44} {seconds:8.2f} s  {ROWS_PER_ENDPOINT * count / seconds:12,.0f} rows/s", flush=True)


def daemons(count: int) -> None:
    """Let a real daemon learn the endpoints by sync, then start again from its disk with an empty kernel."""
    print(f"two real daemons, {count:,} endpoints")
    with tempfile.TemporaryDirectory(prefix="meshd-bench-") as folder, contextlib.ExitStack() as stack:
        lab = Lab.up(2, Path(folder) / "lab")
        stack.callback(lab.down)
        learner, holder = lab.hosts
        learner.json("network", "create", "big", "--subnet", "100.64.0.0/12")
        (network,) = [n["id"] for n in learner.json("network", "ls") if n["name"] == "big"]
        learner.json("attach", "big", "--netns", f"/run/netns/{lab.container('c1')}")
        holder.wait_network("big")
        rest = Lag(learner.socket)
        rest.start()
        time.sleep(3)
        rest.stop("answers at rest, few endpoints")
        base = resident_mb(learner.pid)
        holder.stop()
        give_endpoints(holder, count, bytes.fromhex(network))
        lag, used = Lag(learner.socket), cpu_s(learner.pid)
        lag.start()
        begun = time.perf_counter()
        holder.begin()
        wait_rows(learner, count, begun, "holder's exec -> all rows at the learner")
        time.sleep(3)
        lag.stop("learner's answers meanwhile")
        print(f"  {'learner: CPU':<44} {cpu_s(learner.pid) - used:8.2f} s")
        grown = resident_mb(learner.pid) - base
        print(
            f"  {'learner: resident':<44} {1000 * grown / count:8.2f} MB a 1,000 endpoints ({base + grown:.0f} MB)"
        )
        attaches(learner, {"big": f"among {count:,} endpoints", "bridge": "on a network without others"})
        idle(learner, "learner")
        known = learner.json("endpoint", "ls", "--network", "big")
        macs = [each["mac"] for each in known if each["host"] != learner.name]
        times = put_back(learner.ns, f"{names.VXLAN}{network[:8]}", random.Random(1).sample(macs, PUT_BACK))
        show("  row deleted by hand -> back", times, "ms", "to reach: p99 50")
        learner.kill()
        for link in json.loads(learner.run("ip", "-j", "link", "show").stdout):
            if link["ifname"].startswith((names.OVERLAY_BRIDGE, names.VXLAN)):
                learner.run("ip", "link", "del", link["ifname"])
        lag = Lag(learner.socket)
        lag.start()
        begun = time.perf_counter()
        learner.begin()
        wait_rows(learner, count, begun, "start from disk, empty kernel -> all rows")
        print(f"  {'... exec -> first answer':<44} {lag.first - begun:8.2f} s")
        time.sleep(3)
        lag.stop("answers meanwhile")
        learner.kill()
        begun = time.perf_counter()
        learner.begin()
        wait_ready(learner)
        print(f"  {'kill -9, start with all rows there -> ready':<44} {time.perf_counter() - begun:8.2f} s")
        print(f"  {'resident after that':<44} {resident_mb(learner.pid):8.0f} MB")
        print(f"  in sync: {learner.json('diff')['in_sync']}")


def arrival(count: int) -> None:
    """Let a host that has ``count`` endpoints come up: from the moment another has learnt the last of them to all rows
    written there, and from the host's start."""
    print(f"a host with {count:,} endpoints comes up")
    for attempt in range(ARRIVALS):
        with tempfile.TemporaryDirectory(prefix="meshd-bench-") as folder, contextlib.ExitStack() as stack:
            lab = Lab.up(2, Path(folder) / "lab")
            stack.callback(lab.down)
            learner, holder = lab.hosts
            learner.json("network", "create", "big", "--subnet", "100.64.0.0/12")
            (network,) = [n["id"] for n in learner.json("network", "ls") if n["name"] == "big"]
            learner.json("attach", "big", "--netns", f"/run/netns/{lab.container('c1')}")
            holder.wait_network("big")
            holder.stop()
            give_endpoints(holder, count, bytes.fromhex(network))
            api, used, begun = Unix(learner.socket), cpu_s(learner.pid), time.perf_counter()
            holder.begin()
            while api.call("GET", "/v1/status")["endpoints"] <= count:
                time.sleep(0.002)
            known = time.perf_counter()
            while neighbours(learner) < count:
                time.sleep(0.005)
            done = time.perf_counter()
            print(
                f"  {attempt + 1}: all known after {known - begun:6.2f} s, all rows {1000 * (done - known):7.0f} ms later"
                f"  (to reach: 1000; CPU of the daemon {cpu_s(learner.pid) - used:.2f} s)",
                flush=True,
            )


ARRIVALS = 3


def attaches(host: Host, networks_: dict[str, str]) -> None:
    """Print how long one more local endpoint takes on each network, in turn, and what it costs the daemon."""
    api, boot_id = Unix(host.socket), Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    took: dict[tuple[str, str], list[float]] = {}
    for number in range(ATTACHES):
        for name in networks_:
            netns = {"cookie": 3_000_000 + number, "boot_id": boot_id, "path": f"bench-{name}-{number}"}
            begun = time.perf_counter()
            made = api.call("POST", "/v1/endpoints", {"network": name, "ifname": "eth0", "netns": netns})
            done = time.perf_counter()
            api.call("DELETE", f"/v1/endpoints/{made['id']}")
            took.setdefault((name, "attach"), []).append(1000 * (done - begun))
            took.setdefault((name, "detach"), []).append(1000 * (time.perf_counter() - done))
    for (name, what), values in took.items():
        print(f"  {what + ' ' + networks_[name]:<44} median {statistics.median(values):6.1f} ms", flush=True)


ATTACHES = 20


def wait_ready(host: Host) -> None:
    """Wait longer than a lab does: at this size a start takes seconds."""
    deadline = time.perf_counter() + 120
    while time.perf_counter() < deadline:
        with contextlib.suppress(CommandError):
            if host.status()["ready"]:
                return
        time.sleep(0.05)
    raise RuntimeError(labdaemon.tail(host.log))


def idle(host: Host, what: str, seconds: float = 35.0) -> None:
    """Print the CPU at rest, a full comparison included, and the answers meanwhile."""
    lag = Lag(host.socket)
    time.sleep(2)
    used = cpu_s(host.pid)
    time.sleep(seconds)
    share = 100 * (cpu_s(host.pid) - used) / seconds
    print(f"  {what + ': CPU at rest':<44} {share:8.2f} % of a core (comparisons included)", flush=True)
    lag.start()
    time.sleep(seconds)
    lag.stop(f"{what}: answers at rest")


def give_endpoints(host: Host, count: int, network: bytes) -> None:
    """Write endpoints of a host that is not there into a stopped daemon's snapshot."""
    journal = Journal(host.dir / "state")
    store = replay(journal.load(), bytes(32))
    gone = [bytes([7, number]) * 8 for number in range(20)]
    facts = [
        Item(
            Kind.HOST, id_, Version(0, 0, id_), HostFacts(f"gone{n}", bytes((192, 0, 2, 201 + n)), 4789, 1500)
        )
        for n, id_ in enumerate(gone)
    ]
    journal.compact([*store.everything(), *facts, *endpoints(count, gone, network)])
    journal.close()
    labdaemon.give(host.dir / "state")


def networks(count: int) -> None:
    """Make so many networks with one local endpoint each on one real daemon."""
    print(f"{count:,} networks on one host, one local endpoint each")
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with tempfile.TemporaryDirectory(prefix="meshd-bench-") as folder, contextlib.ExitStack() as stack:
        lab = Lab.up(1, Path(folder) / "lab")
        stack.callback(lab.down)
        (host,) = lab.hosts
        container = lab.container("all")
        api, base, slab = Unix(host.socket), resident_mb(host.pid), slab_mb()
        made, attached, peers = [], [], []
        used = cpu_s(host.pid)
        for number in range(count):
            begun = time.perf_counter()
            api.call("POST", "/v1/networks", {"name": f"net{number}", "subnets": [subnet(number)]})
            made.append(1000 * (time.perf_counter() - begun))
            begun = time.perf_counter()
            body = {
                "network": f"net{number}", "ifname": "eth0",
                "netns": {"cookie": 1_000_000 + number, "boot_id": boot_id, "path": f"bench-{number}"},
            }  # fmt: skip
            answer = api.call("POST", "/v1/endpoints", body)
            attached.append(1000 * (time.perf_counter() - begun))
            peers.append(names.peer(bytes.fromhex(answer["id"])))
            if len(peers) == 50 or number + 1 == count:
                move(host, peers, container)
                peers.clear()
            if number + 1 in (100, count):
                last = slice(-100, None)
                print(
                    f"  the last 100 of {number + 1:>5,}: create {statistics.median(made[last]):7.2f} ms,"
                    f" attach {statistics.median(attached[last]):7.2f} ms (medians)",
                    flush=True,
                )
        print(f"  {'CPU of the daemon, all of them':<44} {cpu_s(host.pid) - used:8.2f} s (nft's apart)")
        grown = resident_mb(host.pid) - base
        print(f"  {'daemon':<44} {1000 * grown / count:8.2f} MB a 1,000 networks ({base + grown:.0f} MB)")
        print(f"  {'kernel slab':<44} {1000 * (slab_mb() - slab) / count:8.2f} MB a 1,000 networks")
        begun = time.perf_counter()
        found = api.call("GET", "/v1/diff")
        print(
            f"  {'diff: dump and comparison':<44} {time.perf_counter() - begun:8.3f} s  in sync: {found['in_sync']}"
        )
        idle(host, "daemon")
        host.kill()
        begun = time.perf_counter()
        host.begin()
        wait_ready(host)
        print(f"  {'kill -9, start -> ready':<44} {time.perf_counter() - begun:8.2f} s")


def move(host: Host, peers: list[str], container: str) -> None:
    """Do what a caller of attach does: take the peers away. Left where they are, their endpoints are released."""
    moves = "".join(f"link set {peer} netns {container}\n" for peer in peers)
    done = subprocess.run(
        host.argv("ip", "-batch", "-"), input=moves, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)


def subnet(number: int) -> str:
    """Return the n-th /24 of 100.64.0.0/10."""
    return f"100.{64 + number // 256}.{number % 256}.0/24"


PARTS = {"cold": cold, "delta": delta, "daemons": daemons}
ARRIVING = 10_000


def main() -> None:
    """Run the parts asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "networks", "arrival", []])
    parser.add_argument("--endpoints", type=int, default=100_000)
    parser.add_argument("--networks", type=int, default=1_000)
    options = parser.parse_args()
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    print(f"load of this machine before: {load:.1f} a core; above 0.5, trust the CPU seconds only")
    if shutil.which("ip") is None:
        sys.exit("needs ip")
    for part in options.parts or [*PARTS, "networks", "arrival"]:
        if part == "networks":
            networks(options.networks)
        elif part == "arrival":
            arrival(min(ARRIVING, options.endpoints))
        else:
            PARTS[part](options.endpoints)


if __name__ == "__main__":
    main()
