"""``make demo``: meshd's story on one machine, told step by step. Decides what is shown and what must hold; exits
0 only if all of it held.

Each step prints the commands as an operator would type them, what was seen, and how long it took.
"""

import contextlib
import itertools
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from meshctl import labdaemon, labnet
from meshctl.errors import CommandError, Failed
from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for
from meshctl.ping import Ping, ping

FAMILIES = ("IPv4", "IPv6")
PINGS = 3
PING_EVERY_MS = 10
REPAIR_S = 10.0
VERDICT_S = 20.0  # a silent daemon is suspected, then failed: 2 to 6 s
BOLD, GREEN, RED, DIM, PLAIN = "\033[1m", "\033[32m", "\033[31m", "\033[2m", "\033[0m"


class Story:
    """Numbered steps on standard output, in colour only on a terminal."""

    def __init__(self) -> None:
        self.step_number = 0
        self.colours = sys.stdout.isatty()

    def paint(self, colour: str, text: str) -> str:
        """Colour ``text`` where a person looks."""
        return f"{colour}{text}{PLAIN}" if self.colours else text

    def say(self, text: str) -> None:
        """Print a line at once."""
        print(text, flush=True)

    def ran(self, host: Host, *command: str) -> None:
        """Show a command as it would be typed on ``host``."""
        self.shell(shlex.join(command), host.name)

    def shell(self, line: str, where: str = "") -> None:
        """Show a line at a root prompt."""
        self.say("   " + self.paint(DIM, f"{where}# {line}"))

    def saw(self, text: str) -> None:
        """Show what came of it."""
        self.say(f"   {text}")

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Tell one step; ends with how long it took."""
        self.step_number += 1
        self.say(self.paint(BOLD, f"{self.step_number}. {title}"))
        began = time.monotonic()
        yield
        self.say("   " + self.paint(GREEN, f"ok, {(time.monotonic() - began) * 1000:.0f} ms"))


def expect(held: bool, what: str) -> None:
    """Raise Failed saying which expectation did not hold."""
    if not held:
        raise Failed(f"expected: {what}")


class Demo:
    """The story. Its steps share the lab and what came of the steps before."""

    def __init__(self, story: Story, lab: Lab) -> None:
        self.story = story
        self.lab = lab
        self.first, self.second, self.third = lab.hosts
        self.containers: dict[str, str] = {}
        self.addresses: dict[str, list[str]] = {}
        self.endpoints: dict[str, dict[str, Any]] = {}

    def meshctl(self, host: Host, *args: str) -> Any:
        """Tell and run a meshctl command."""
        self.story.ran(host, "meshctl", *args)
        return host.json(*args)

    def attach(self, host: Host, network: str, name: str) -> None:
        """Make a container's namespace and attach it."""
        self.containers[name] = self.lab.container(name)
        path = f"/run/netns/{self.containers[name]}"
        endpoint = self.meshctl(host, "attach", network, "--netns", path, "--name", name)
        self.endpoints[name] = endpoint
        self.addresses[name] = [ip.partition("/")[0] for ip in endpoint["ips"]]
        self.story.saw(f"{name}: {', '.join(endpoint['ips'])}, {endpoint['mac']}")

    def ping_all(self, names: list[str]) -> None:
        """Ping between every two, both ways, over every family; not one may be lost, the first included."""
        pairs = [(a, b, ip) for a, b in itertools.permutations(names, 2) for ip in self.addresses[b]]
        running = [Ping(self.containers[a], ip, count=PINGS, every_ms=PING_EVERY_MS) for a, _, ip in pairs]
        results = [each.result() for each in running]
        for (a, b, ip), result in zip(pairs, results, strict=True):
            expect(
                result.lost == 0,
                f"no ping lost from {a} to {b} ({ip}), but {result.lost} of {result.sent} were",
            )
        mean = sum(result.mean_ms for result in results) / len(results)
        total = sum(result.sent for result in results)
        self.story.saw(
            f"{len(pairs)} ways between {', '.join(names)}: {total} sent, 0 lost, mean {mean:.2f} ms"
        )

    def settled(self, *hosts: Host) -> None:
        """The kernel is as desired on these hosts, all by default, says `meshctl diff`."""
        for host in hosts or self.lab.hosts:
            host.wait_in_sync()
            expect(host.json("diff")["in_sync"], f"meshctl diff finds nothing on {host.name}")
        names = ", ".join(host.name for host in hosts or self.lab.hosts)
        self.story.saw(f"meshctl diff on {names}: nothing missing, nothing stale")

    def members(self) -> None:
        """The cluster as a host sees it."""
        found = self.meshctl(self.first, "members")
        for member in found:
            self.story.saw(f"{member['name']}  {member['address']}:{member['port']}  {member['state']}")
        expect([m["state"] for m in found] == ["alive"] * 3, "three hosts alive")

    def overlay(self) -> None:
        """One network over three hosts."""
        self.meshctl(self.first, "network", "create", "blue", "--ipv6")
        for host in self.lab.hosts:
            host.wait_network("blue")
        for host, name in zip(self.lab.hosts, ("web", "db", "cache"), strict=True):
            self.attach(host, "blue", name)
        began = time.monotonic()
        for host in self.lab.hosts:
            host.wait_rows(*(endpoint["mac"] for endpoint in self.endpoints.values()))
        self.story.saw(
            f"every host's kernel has every row, seen {(time.monotonic() - began) * 1000:.0f} ms later"
        )

    def run_command(self) -> None:
        """A plain process on the network, without a container."""
        to = self.addresses["db"][0]
        command = ("meshctl", "run", "blue", "--", "ping", "-c", "1", "-n", to)
        self.story.ran(self.third, *command)
        done = self.third.run(*command)
        expect(done.returncode == 0, f"the process reaches db, but: {done.stdout}{done.stderr}")
        self.story.saw(next(line for line in done.stdout.splitlines() if "bytes from" in line))
        names = {endpoint["name"] for endpoint in self.third.json("endpoint", "ls", "--network", "blue")}
        expect(names == set(self.containers), f"its endpoint is gone again, but there are {names}")
        self.story.saw(f"it has ended, and its endpoint is gone: {', '.join(sorted(names))} are left")

    def bridge(self) -> None:
        """A network of one host, with the outside behind its gateway."""
        self.meshctl(self.first, "network", "create", "local", "-d", "bridge")
        gateway = self.first.json("network", "inspect", "local")["gateways"][0]
        for name in ("left", "right"):
            self.attach(self.first, "local", name)
        self.ping_all(["left", "right"])
        for what, ip in (("the gateway", gateway), ("the outside", labnet.address(labnet.GATEWAY_NUMBER))):
            result = ping(self.containers["left"], ip, count=PINGS, every_ms=PING_EVERY_MS)
            expect(
                result.lost == 0,
                f"no ping lost from left to {what} {ip}, but {result.lost} of {result.sent} were",
            )
            self.story.saw(f"left to {what} {ip}: {result.sent} sent, 0 lost")

    def vandalise(self) -> None:
        """What somebody deletes by hand comes back."""
        vxlan = f"mv{self.first.json('network', 'inspect', 'blue')['id'][:8]}"
        mac = str(self.endpoints["db"]["mac"])

        def row_is_there() -> bool:
            rows = self.first.run("bridge", "fdb", "show", "dev", vxlan).stdout.splitlines()
            return any(row.startswith(mac) and " self " in f"{row} " for row in rows)

        self.repaired("the row for db", ("bridge", "fdb", "del", mac, "dev", vxlan, "self"), row_is_there)
        self.repaired("the vxlan device", ("ip", "link", "delete", vxlan), row_is_there)
        self.settled()
        self.ping_all(["web", "db", "cache"])

    def repaired(self, what: str, command: tuple[str, ...], is_back: Callable[[], bool]) -> None:
        """Delete something by hand, and wait until it is back and an event says so."""
        before = sum(event["kind"] == "kernel-repaired" for event in self.first.events())
        self.story.ran(self.first, *command)
        done = self.first.run(*command)
        expect(done.returncode == 0, f"{shlex.join(command)} works by hand: {done.stderr.strip()}")
        began = time.monotonic()
        wait_for(f"{what} is back", REPAIR_S, is_back)
        took = (time.monotonic() - began) * 1000
        wait_for(
            f"a kernel-repaired event for {what}",
            REPAIR_S,
            lambda: sum(event["kind"] == "kernel-repaired" for event in self.first.events()) > before,
        )
        self.story.saw(f"{what} came back after {took:.0f} ms, with a kernel-repaired event")

    def crash(self) -> None:
        """A daemon dies and is noticed, comes back, and no packet is lost meanwhile."""
        names = ("web", "cache")
        pings = [
            Ping(self.containers[name], ip, every_ms=PING_EVERY_MS)
            for name in names
            for ip in self.addresses["db"]
        ]
        try:
            self.story.saw(
                f"{', '.join(names)} ping db every {PING_EVERY_MS} ms, over {' and '.join(FAMILIES)}, from here on"
            )
            self.story.shell(f"kill -9 {self.second.pid}   # meshd on {self.second.name}", self.second.name)
            self.second.kill()
            began = time.monotonic()
            wait_for(
                f"{self.first.name} notices that {self.second.name}'s daemon is gone",
                VERDICT_S,
                lambda: any(
                    event["kind"] == "member-failed" and self.second.name in map(str, event.values())
                    for event in self.first.events()
                ),
            )
            self.story.saw(
                f"{self.first.name}: member-failed {self.second.name}, after {time.monotonic() - began:.1f} s"
            )
            self.story.ran(self.second, "meshd", "--config", "/etc/meshd/meshd.toml")
            began = time.monotonic()
            self.second.start()
            ready = time.monotonic() - began
            for host in self.lab.hosts:
                host.wait_alive(3)
            took = time.monotonic() - began
            self.story.saw(f"ready after {ready:.1f} s; after {took:.1f} s all three see three alive again")
            self.settled()
        finally:
            results = [each.result() for each in pings]
        for result in results:
            expect(
                result.lost == 0, f"no ping lost across the crash, but {result.lost} of {result.sent} were"
            )
        self.story.saw(f"the pings to db: {sum(r.sent for r in results)} sent, 0 lost")
        kept = {e["name"]: e["ips"] for e in self.second.json("endpoint", "ls", "--network", "blue")}
        expect(
            kept["db"] == self.endpoints["db"]["ips"],
            f"db keeps {self.endpoints['db']['ips']}, but it has {kept['db']}",
        )
        self.story.saw(f"db kept {', '.join(kept['db'])}")

    def leave(self) -> None:
        """A host that leaves takes its rows with it."""
        self.meshctl(self.third, "leave")
        mac = str(self.endpoints["cache"]["mac"])
        for host in (self.first, self.second):
            host.wait_alive(2)
            host.wait_rows(mac, there=False)
        self.story.saw(
            f"no row of cache ({mac}) is left on {self.first.name} and {self.second.name}, which see two alive"
        )
        self.ping_all(["web", "db"])
        self.settled(self.first, self.second)


def tell(story: Story) -> None:
    """Tell the whole story. Raises CommandError where it does not hold; takes down what it made in any case."""
    directory = labdaemon.ROOT / f"demo-{secrets.token_hex(3)}"
    with contextlib.ExitStack() as cleanup:
        with story.step("three hosts on this machine, each with a real meshd, become one cluster"):
            story.shell(
                "meshctl lab up --hosts 3   # meshctl init on host1, meshctl join TOKEN on the others"
            )
            lab = Lab.up(3, directory)
            cleanup.callback(lab.down)
            story.saw(f"network namespaces {', '.join(host.ns for host in lab.hosts)}")
        demo = Demo(story, lab)
        with story.step("each knows the others"):
            demo.members()
        with story.step("an overlay network, dual stack, with an endpoint on each host"):
            demo.overlay()
        with story.step("they reach each other as if they shared a switch, from the first packet on"):
            demo.ping_all(["web", "db", "cache"])
            demo.settled()
        with story.step("a process joins the network for as long as it runs"):
            demo.run_command()
        with story.step("a bridge network on host1, with the outside behind it"):
            demo.bridge()
        with story.step("what is deleted by hand comes back"):
            demo.vandalise()
        with story.step("host2's daemon is killed, noticed and started again; traffic does not care"):
            demo.crash()
        with story.step("host3 leaves, and its rows go with it"):
            demo.leave()
        with story.step("everything is taken down again"):
            story.shell("meshctl lab down")
            namespaces = len(lab.hosts) + len(demo.containers) + 1  # and the LAN's
            lab.down()
            expect(lab.id not in labnet.ip("netns", "list"), "no namespace is left")
            expect(not directory.exists(), f"nothing is left in {directory}")
            expect(not any(host.alive for host in lab.hosts), "no daemon is left")
            story.saw(f"{namespaces} namespaces and {directory} are gone, and so is every daemon")


def main() -> int:
    """Run the demo and return the exit status."""
    story = Story()
    began = time.monotonic()
    try:
        tell(story)
    except CommandError as error:
        story.say(story.paint(RED, f"   failed: {error.what}"))
        if error.hint:
            story.say(f"   hint: {error.hint}")
        story.say(f"demo: step {story.step_number} did not hold")
        return 1
    story.say(
        story.paint(GREEN, f"demo: all {story.step_number} steps held, {time.monotonic() - began:.1f} s")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
