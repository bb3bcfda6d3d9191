"""Docker engines for tests: Debian's docker.io on the hosts of a lab, each with a containerd of its own.

Decides how an engine lives in a host's namespaces without this machine's Docker noticing: a mount namespace with a /run
and a /sys of its own, in which both daemons and their shims are, and a control group named after the host. containerd is
started apart, so that dockerd alone can be killed and is back within a second.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from meshctl.errors import Failed
from meshctl.labhost import Host, wait_for

SURROUNDINGS = """
mount --make-rprivate /
mkdir -p "$1/cgroup" "$1/plugins"
mount --rbind /sys/fs/cgroup "$1/cgroup"
mount --bind "$2" "$1/plugins"
mount -t sysfs sysfs /sys
mount --rbind "$1/cgroup" /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mkdir -p /run/docker/plugins /run/lock
mount --bind "$1/plugins" /run/docker/plugins
exec containerd --config "$1/containerd.toml" --root "$1/containerd" --state /run/containerd \
  --address /run/containerd.sock
"""
"""Arguments: the engine's folder, the folder of the host's plugin socket. /sys is the namespace's, with this machine's
control groups; the plugins are bind-mounted last, since /run is new."""

CONTAINERD = """
version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri"]
"""

DOCKER = "/usr/bin/docker"  # Debian's, of the same version as its dockerd
IMAGE = "box"
APPLETS = ("sh", "sleep", "ping", "ip", "nc", "cat", "wget", "true", "arping", "httpd")
START_S = 40.0  # dockerd waits up to 30 s for what a killed one left
COMMAND_S = 120.0  # rm of a container whose plugin is away takes 45


class Engine:
    """dockerd and containerd on one host."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.host = host
        self.dir = directory
        self.dir.mkdir(parents=True)
        self.socket = self.dir / "docker.sock"
        self.log = self.dir / "dockerd.log"
        self._containerd: subprocess.Popen[bytes] | None = None
        self._dockerd: subprocess.Popen[bytes] | None = None

    # --- life -------------------------------------------------------------------------------------------------
    def up(self, *flags: str) -> None:
        """Start both daemons and make the image."""
        self.begin(*flags)
        self.well("import", "-c", 'CMD ["sleep","100000"]', str(image(self.dir.parent)), IMAGE)

    def begin(self, *flags: str) -> None:
        """Start both daemons, as a booting machine does."""
        (self.dir / "containerd.toml").write_text(CONTAINERD)
        with (self.dir / "containerd.log").open("ab") as log:
            self._containerd = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.host.ns}", "unshare", "--mount", "sh", "-euc", SURROUNDINGS, "sh",
                 str(self.dir), str(self.host.plugin.parent)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            wait_for(
                "containerd listens", START_S, lambda: self.inside("test", "-S", "/run/containerd.sock") == 0
            )
            self.start(*flags)
        except Failed as error:
            raise Failed(f"{error.what}\n{self.tail()}") from None

    def start(self, *flags: str) -> None:
        """Start dockerd, and wait until it answers."""
        command = [
            "dockerd", "--host", f"unix://{self.socket}", "--containerd", "/run/containerd.sock",
            "--data-root", str(self.dir / "data"), "--exec-root", "/run/docker", "--pidfile", str(self.dir / "pid"),
            "--storage-driver", "vfs", "--cgroup-parent", f"/{self.host.ns}", *flags,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self._dockerd = subprocess.Popen(
                self._argv(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "DOCKER_RAMDISK": "1"},  # no pivot_root where the root is a ramdisk
            )  # fmt: skip
        wait_for("dockerd answers", START_S, lambda: self.docker("version").returncode == 0)

    def stop(self) -> None:
        """End dockerd as systemd does; its containers end unless it runs with --live-restore."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End dockerd as the kernel's out-of-memory killer would."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._dockerd is not None:
            self._dockerd.send_signal(number)
            self._dockerd.wait(timeout=60)
            self._dockerd = None

    def crash(self) -> None:
        """End all at once, containers included: a power cut. What is on disk stays."""
        self.kill()
        for pid in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._containerd is not None:
            self._containerd.wait()
            self._containerd = None
        for leftover in (self.dir / "pid", self.socket):
            leftover.unlink(missing_ok=True)

    def _processes(self) -> list[int]:
        """List what runs in the engine's mount namespace, or in a control group of the host's."""
        assert self._containerd is not None
        mine = os.readlink(f"/proc/{self._containerd.pid}/ns/mnt")
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and (
                    os.readlink(entry / "ns/mnt") == mine
                    or f"/{self.host.ns}/" in (entry / "cgroup").read_text()
                ):
                    found.append(int(entry.name))
        return found

    def down(self) -> None:
        """End everything; what is gone already is no error."""
        if self._dockerd is not None:
            with suppress(subprocess.TimeoutExpired):
                for container in self.docker("ps", "-aq").stdout.split():
                    self.docker("rm", "-f", container)
        if self._containerd is not None:
            self.crash()
        for tree in Path("/sys/fs/cgroup").glob(f"*/{self.host.ns}"):
            for group in sorted((p for p in tree.rglob("*") if p.is_dir()), reverse=True):
                with suppress(OSError):
                    group.rmdir()
            with suppress(OSError):
                tree.rmdir()
        shutil.rmtree(self.dir, ignore_errors=True)

    # --- commands ---------------------------------------------------------------------------------------------
    def _argv(self, *command: str) -> list[str]:
        assert self._containerd is not None
        return ["nsenter", f"--target={self._containerd.pid}", "--mount", "--net", "--", *command]

    def inside(self, *command: str) -> int:
        """Run a command in the engine's namespaces and return its exit status."""
        return subprocess.run(
            self._argv(*command), stdin=subprocess.DEVNULL, capture_output=True, check=False
        ).returncode

    def docker(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run ``docker ARGS`` on this engine, whatever its exit status."""
        return subprocess.run(
            [DOCKER, "--host", f"unix://{self.socket}", *args], stdin=subprocess.DEVNULL, capture_output=True,
            text=True, check=False, timeout=COMMAND_S,
        )  # fmt: skip

    def well(self, *args: str) -> str:
        """Run ``docker ARGS`` and return what it says. Raises Failed with its error."""
        done = self.docker(*args)
        if done.returncode:
            raise Failed(f"docker {' '.join(args)} on {self.host.name}: {done.stderr.strip()}\n{self.tail()}")
        return done.stdout.strip()

    def refused(self, *args: str) -> str:
        """Run ``docker ARGS``, which must fail, and return the error that its user sees."""
        done = self.docker(*args)
        assert done.returncode != 0, done.stdout
        return done.stderr.strip()

    def join(self, network: str, *flags: str) -> None:
        """Make the Docker network that is a network of the cluster, as README says."""
        self.host.json("docker", "create", network, "--host", f"unix://{self.socket}", *flags)

    def run(self, name: str, network: str, *flags: str, command: tuple[str, ...] = ()) -> None:
        """Run a container that sleeps, or ``command``."""
        self.well("run", "-d", "--name", name, "--network", network, *flags, IMAGE, *command)

    def networks(self, name: str) -> dict[str, Any]:
        """Return what Docker says of a container's networks."""
        found: dict[str, Any] = json.loads(
            self.well("inspect", "-f", "{{json .NetworkSettings.Networks}}", name)
        )
        return found

    def ip(self, name: str, network: str, family: int = 4) -> str:
        """Return a container's address."""
        found = self.networks(name)[network]
        return str(found["IPAddress"] if family == 4 else found["GlobalIPv6Address"])

    def pings(self, name: str, address: str, count: int = 3) -> bool:
        """Ping from within a container; True if no ping was lost, the first included."""
        done = self.docker("exec", name, "ping", "-c", str(count), "-i", "0.2", "-W", "2", address)
        return f" {count} packets received" in done.stdout

    def running(self, name: str) -> bool:
        """Tell whether a container runs."""
        return self.docker("inspect", "-f", "{{.State.Running}}", name).stdout.strip() == "true"

    def endpoints(self) -> list[dict[str, Any]]:
        """Return what meshd knows of this engine's endpoints."""
        found = self.host.json("endpoint", "ls", "--host", self.host.name)
        return [each for each in found if each["runtime"] == "docker"]

    def tail(self, lines: int = 12) -> str:
        """Return the last lines of dockerd's log."""
        return (
            "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""
        )


def image(directory: Path) -> Path:
    """Make a root file system of busybox alone, once a folder; no registry is asked. Raises Failed without busybox."""
    path = directory / "image.tar"
    if path.exists():
        return path
    busybox = shutil.which("busybox", path="/bin:/usr/bin")
    if busybox is None:
        raise Failed("busybox is not installed", "make setup installs busybox-static")
    with tarfile.open(path, "w") as tar:
        for folder in ("bin", "etc", "tmp"):
            made = tarfile.TarInfo(folder)
            made.type, made.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(made)
        program = tarfile.TarInfo("bin/busybox")
        code = Path(busybox).read_bytes()
        program.size, program.mode, program.mtime = len(code), 0o755, int(time.time())
        tar.addfile(program, io.BytesIO(code))
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return path
