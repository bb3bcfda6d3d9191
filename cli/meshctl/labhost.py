"""One host of a lab: its daemon's life, its settings, and commands run on it.

Must not know how a cluster is formed; that is labcluster.py's.
"""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from meshctl import labdaemon, labnet
from meshctl.client import Client
from meshctl.errors import Failed, Unreachable
from meshctl.setup import toml

START_S = 10.0  # until a daemon is ready: a Python start and a dump of an empty kernel take about one
MEET_S = 15.0  # until all hosts see each other
SETTLE_S = 10.0  # until news has arrived and the kernel follows: milliseconds, unless a datagram is lost
STOP_S = 10.0
POLL_S = 0.02


class Surroundings(Protocol):
    """What a host needs of its lab."""

    id: str
    dir: Path
    underlay: int
    view: labdaemon.View

    def save(self) -> None:
        """Keep what changed."""
        ...


def wait_for(what: str, seconds: float, holds: Callable[[], bool]) -> None:
    """Return once ``holds()`` is true. Raises Failed naming ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds:.0f} s")
        time.sleep(POLL_S)


class Host:
    """One host of a lab: ``name`` host1..hostN, ``ns`` its network namespace, ``address`` what its daemon binds."""

    def __init__(self, lab: Surroundings, number: int) -> None:
        self.lab = lab
        self.number = number
        self.name = f"host{number}"
        self.ns = labnet.host_namespace(lab.id, number)
        self.address = labnet.address(number, lab.underlay)
        self.dir = lab.dir / self.name
        self.log = self.dir / "log"
        self.socket = self.dir / "run" / "api.sock"
        self.plugin = self.dir / "run" / "plugins" / "meshd.sock"
        self.pid = 0
        self.started = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether the daemon's process runs (the very one that was started: a pid alone may be another's)."""
        if self._process is not None:
            self._process.poll()  # so that it does not stay a zombie of ours
        return self.pid > 0 and labdaemon.started_at(self.pid) == self.started

    def environment(self) -> dict[str, str]:
        """Return the environment for commands on this host: its socket, and meshctl on PATH."""
        path = f"{Path(sys.executable).parent}:/usr/sbin:/sbin:{os.environ.get('PATH', '/usr/bin:/bin')}"
        return {**os.environ, "MESHD_SOCKET": str(self.socket), "PATH": path}

    def argv(self, *command: str) -> list[str]:
        """Return what runs ``command`` in this host's namespace."""
        return ["ip", "netns", "exec", self.ns, *command]

    def run(self, *command: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command on this host, whatever its exit status."""
        return subprocess.run(
            self.argv(*command), env=self.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False, timeout=timeout,
        )  # fmt: skip

    def meshctl(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run ``meshctl ARGS`` on this host, whatever its exit status."""
        return self.run("meshctl", *args)

    def json(self, *args: str) -> Any:
        """Run ``meshctl -o json ARGS`` on this host and return the document. Raises Failed with its error."""
        done = self.meshctl("-o", "json", *args)
        if done.returncode:
            raise Failed(
                f"meshctl {' '.join(args)} on {self.name}: {done.stderr.strip() or done.stdout.strip()}"
            )
        return json.loads(done.stdout)

    def events(self) -> list[dict[str, Any]]:
        """Return what ``meshctl events`` has kept on this host."""
        done = self.meshctl("-o", "json", "events")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def status(self) -> Any:
        """Return /v1/status. Raises CommandError where the daemon does not answer."""
        return Client(str(self.socket)).get("status")

    def configure(self, **tables: Mapping[str, Any]) -> None:
        """Set keys of this host's meshd.toml, ``configure(gossip={"port": 7000})``; the rest stays. Restart to use."""
        path = self.dir / "etc" / "meshd.toml"
        settings: dict[str, dict[str, Any]] = tomllib.loads(path.read_text())
        for table, keys in tables.items():
            settings.setdefault(table, {}).update(keys)
        path.write_text("\n".join(toml(settings)) + "\n")
        labdaemon.give(path.parent)

    def begin(self, package: Path | None = None, manager: labdaemon.Manager | None = None) -> None:
        """Start the daemon without waiting for it. ``package``, ``manager``: see labdaemon.start."""
        if self.alive:
            raise Failed(f"meshd already runs on {self.name}, pid {self.pid}")
        if self._process is not None:
            self._process.wait()  # it has ended: not alive
        config = self.lab.view.of(self.dir, self.name) / "etc" / "meshd.toml"
        self._process = labdaemon.start(self.ns, self.dir, config, self.lab.view, self.log, package, manager)
        self.pid = self._process.pid
        self.started = labdaemon.started_at(self.pid) or 0
        self.lab.save()

    def wait_ready(self) -> None:
        """Wait until the daemon says that it is ready. Raises Failed with the end of its log."""

        def ready() -> bool:
            if not self.alive:
                raise Failed(
                    f"meshd on {self.name} ended instead of becoming ready:\n{labdaemon.tail(self.log)}"
                )
            try:
                return bool(self.status()["ready"])
            except Unreachable:
                return False

        try:
            wait_for(f"meshd on {self.name} is ready", START_S, ready)
        except Failed as error:
            raise Failed(
                f"{error.what}\n{labdaemon.tail(self.log)}" if "\n" not in error.what else error.what
            ) from None

    def wait_alive(self, hosts: int) -> None:
        """Wait until this host sees so many hosts alive, itself included."""

        def seen() -> bool:
            try:
                return bool(self.status()["cluster"]["alive"] == hosts)
            except Unreachable:
                return False

        wait_for(f"{self.name} sees {hosts} hosts alive", MEET_S, seen)

    def wait_network(self, name: str) -> None:
        """Wait until this host knows a network."""
        wait_for(
            f"{self.name} knows {name}",
            SETTLE_S,
            lambda: self.meshctl("network", "inspect", name).returncode == 0,
        )

    def wait_in_sync(self) -> None:
        """Wait until nothing is missing and nothing stale, as ``meshctl diff`` says. Raises Failed with what is."""
        client = Client(str(self.socket))
        try:
            wait_for("in sync", SETTLE_S, lambda: bool(client.get("diff")["in_sync"]))
        except Failed:
            found = self.meshctl("diff")
            raise Failed(f"meshctl diff on {self.name} is not empty: {found.stdout}{found.stderr}") from None

    def rows(self) -> str:
        """Return all FDB rows of this host as bridge(8) prints them, bridge ports' and VXLAN devices'."""
        return self.run("bridge", "fdb", "show").stdout

    def wait_rows(self, *macs: str, there: bool = True) -> None:
        """Wait until there are FDB rows for all these MACs, or for none of them."""
        what = f"{self.name} has {'rows' if there else 'no row'} for {', '.join(macs)}"

        def so() -> bool:
            rows = self.rows()
            return all((mac in rows) == there for mac in macs)

        wait_for(what, SETTLE_S, so)

    def start(self, package: Path | None = None, manager: labdaemon.Manager | None = None) -> None:
        """Start the daemon and wait until it is ready. ``package``, ``manager``: see labdaemon.start."""
        self.begin(package, manager)
        self.wait_ready()

    def kill(self) -> None:
        """End the daemon as the kernel's out-of-memory killer would. Nothing to do is no error."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """End the daemon as systemd would: SIGTERM, and the data plane stays."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)
            wait_for(f"meshd on {self.name} ends after {number.name}", STOP_S, lambda: not self.alive)
        if self._process is not None:
            self._process.wait()
