"""A lab: hosts in namespaces on this machine, each with a real meshd, formed into one cluster.

Decides in which order a lab comes up and goes down, and what lab.json says about it, so that any later command
finds it again. Must not know the command line. Everything is done with the commands an operator would use:
``meshctl init``, ``token``, ``join``.
"""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from meshctl import labdaemon, labnet
from meshctl.errors import Failed
from meshctl.labhost import Host

DEFAULT_DIR = labdaemon.ROOT / "default"
HOSTS_MAX = 200  # numbers 1..200 of 192.0.2.0/24; a machine runs out of memory before


class Lab:
    """``hosts`` on one LAN. ``containers`` are further namespaces of this machine, for endpoints to live in."""

    def __init__(self, directory: Path, lab: str, hosts: int, underlay: int = 4) -> None:
        # Who keeps his files to himself means his own: what is made here the daemons' user must read.
        os.umask(0o022)
        self.dir = directory
        self.id = lab
        self.underlay = underlay
        self.lan = labnet.lan_namespace(lab)
        self.view = labdaemon.View(lab)
        self.hosts = [Host(self, number) for number in range(1, hosts + 1)]

    @classmethod
    def up(
        cls,
        hosts: int = 3,
        directory: Path = DEFAULT_DIR,
        *,
        underlay: int = 4,
        mtu: int = labnet.UNDERLAY_MTU,
    ) -> "Lab":
        """Bring a lab up: wires, daemons, one cluster. ``underlay``: 4 or 6; ``mtu``: bytes that its LAN carries.
        What was made goes again on failure.

        Raises Failed where one is up in ``directory`` already or a step does not work.
        """
        if os.geteuid() != 0:
            raise Failed(
                "a lab needs root: it makes network namespaces; nothing was made", "sudo meshctl lab up"
            )
        if not 1 <= hosts <= HOSTS_MAX:
            raise Failed(f"a lab has 1 to {HOSTS_MAX} hosts, not {hosts}; nothing was made")
        if (directory / "lab.json").exists():
            raise Failed(
                f"a lab is up in {directory} already; nothing was made", "meshctl lab down, or another --dir"
            )
        if directory.exists() and any(directory.iterdir()):
            raise Failed(
                f"{directory} is not empty; nothing was made", "--dir names a folder for the lab alone"
            )
        lab = cls(directory, labnet.new_id(), hosts, underlay)
        try:
            lab._build(mtu)
            lab._form()
        except BaseException:
            lab.down()
            raise
        return lab

    @classmethod
    def load(cls, directory: Path = DEFAULT_DIR) -> "Lab":
        """Find the lab that is up in ``directory``. Raises Failed where there is none."""
        try:
            said = json.loads((directory / "lab.json").read_text())
            lab = cls(directory, said["id"], len(said["hosts"]), said["underlay"])
            for host, kept in zip(lab.hosts, said["hosts"], strict=True):
                host.pid, host.started = kept["pid"], kept["started"]
        except FileNotFoundError:
            raise Failed(f"no lab is up in {directory}", "meshctl lab up") from None
        except (ValueError, KeyError, TypeError) as error:
            raise Failed(f"{directory / 'lab.json'} cannot be read: {error}") from None
        return lab

    def save(self) -> None:
        """Write lab.json anew."""
        hosts = [{"name": h.name, "ns": h.ns, "pid": h.pid, "started": h.started} for h in self.hosts]
        fresh = self.dir / "lab.json.new"
        fresh.write_text(json.dumps({"id": self.id, "underlay": self.underlay, "hosts": hosts}, indent=1))
        fresh.rename(self.dir / "lab.json")

    def _build(self, mtu: int) -> None:
        labdaemon.ROOT.mkdir(mode=0o755, exist_ok=True)
        self.dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.save()  # before anything else exists, so that `lab down` finds whatever comes to exist
        for host in self.hosts:
            for tree in ("etc", "state", "run/plugins"):
                (host.dir / tree).mkdir(parents=True)
            host.dir.chmod(0o755)
            (host.dir / "run").chmod(0o755)
            labdaemon.give(host.dir)
        labnet.make_lan(self.id, len(self.hosts), mtu)

    def _form(self) -> None:
        first, *others = self.hosts
        self._write_config(first, "init")
        first.start()
        if others:
            token = first.json("token")["token"]
            for host in others:
                self._write_config(host, "join", token)
                host.begin()
            for host in others:
                host.wait_ready()
        for host in self.hosts:
            host.wait_alive(len(self.hosts))

    def _write_config(self, host: Host, *command: str) -> None:
        """Let meshctl write config and keyring, then point them at this host's own folders."""
        config_dir = host.dir / "etc"
        done = host.meshctl(
            *command, "--name", host.name, "--bind", host.address, "--config-dir", str(config_dir)
        )
        if done.returncode:
            raise Failed(f"meshctl {command[0]} on {host.name}: {done.stderr.strip()}")
        seen = self.view.of(host.dir, host.name)
        host.configure(
            host={
                "state_dir": str(seen / "state"),
                "run_dir": str(seen / "run"),
                "docker_plugin_socket": str(seen / "run" / "plugins" / "meshd.sock"),
            },
            gossip={"keyring": str(seen / "etc" / "keyring")},
            log={"format": "console"},
        )

    def host(self, name: str) -> Host:
        """Return the host of that name. Raises Failed naming those there are."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise Failed(f"no host {name} in this lab", f"there are {', '.join(h.name for h in self.hosts)}")

    def container(self, name: str) -> str:
        """Make a namespace that stands for a container and return its name; its path is /run/netns/NAME."""
        return labnet.make_container(self.id, name)

    def down(self) -> None:
        """Stop the daemons, remove the namespaces and the folder. What is gone already is no error."""
        for host in self.hosts:
            with suppress(Failed):
                host.kill()
        labnet.remove(self.id)
        self.view.remove()
        for host in self.hosts:
            shutil.rmtree(host.dir, ignore_errors=True)
        for name in ("lab.json", "lab.json.new"):
            (self.dir / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.dir.rmdir()  # only if nobody put anything else there
