"""Debian hosts booted by systemd on this machine: systemd-nspawn, each with an own network namespace of a lab's LAN.

Decides how such a host is made, booted, entered and taken down. Knows nothing of meshd but that its package is a file.
The root file system is made once with mmdebstrap from this machine's own package sources, and kept in .cache/; each
host has an overlay of its own on it.
"""

import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from meshctl import labnet

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache"
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "iproute2", "nftables", "python3", "iputils-ping", "adduser",
    "init-system-helpers", "procps", "kmod", "curl",
)  # fmt: skip
"""What a Debian 12 server has by default, what the package depends on, and what README's commands use: nothing is fetched
on the hosts."""
TOOLS = {"mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container"}
SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources")
BOOT_S = 60.0
LOOK_EVERY_S = 0.02
POWER_OFF = signal.SIGRTMIN + 4  # systemd(1)

ENTER = """
for tree in /sys/fs/cgroup/*/; do
  [ -e "$tree/cgroup.procs" ] || continue
  mkdir -p "$tree$1"
  if [ -e "$tree/cpuset.cpus" ]; then
    cat "${tree}cpuset.cpus" >"$tree$1/cpuset.cpus"
    cat "${tree}cpuset.mems" >"$tree$1/cpuset.mems"
  fi
  echo $$ >"$tree$1/cgroup.procs"
done
shift
exec "$@"
"""
"""Run a command in a control group of its own in every hierarchy: nspawn takes over the group that it is in."""


def install_tools(tools: Mapping[str, str] = TOOLS) -> None:
    """Install ``tools`` (command: package), by default what makes and boots a host, where they are missing."""
    missing = [package for tool, package in tools.items() if shutil.which(tool) is None]
    if missing:
        done = subprocess.run(
            ["apt-get", "install", "-y", "--no-install-recommends", *missing],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def base(*more: str) -> Path:
    """Return the root file system with PACKAGES and ``more``, made where it is not there yet."""
    install_tools()
    packages = [*PACKAGES, *more]
    place = CACHE / f"bookworm-{hashlib.sha256(' '.join(packages).encode()).hexdigest()[:8]}"
    if not place.exists():
        CACHE.mkdir(exist_ok=True)
        sources = [path for path in SOURCES if Path(path).exists() and Path(path).read_text().strip()]
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            fresh = Path(scratch) / "root"
            done = subprocess.run(
                ["mmdebstrap", "--variant=apt", f"--include={','.join(packages)}", "bookworm", str(fresh), *sources],
                capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            # the wires are laid from outside, so networkd has nothing to manage and would wait for ever
            (fresh / "etc/systemd/system/systemd-networkd-wait-online.service").symlink_to("/dev/null")
            fresh.chmod(0o755)
            fresh.rename(place)
    return place


class BootedHost:
    """Host ``number`` (from 1) of the lab ``lab``, whose network namespace labnet has made."""

    def __init__(self, lab: str, number: int, lower: Path, scratch: Path) -> None:
        self.name = f"host{number}"
        self.machine = f"{lab}-{self.name}"
        self.ns = labnet.host_namespace(lab, number)
        self.address = labnet.address(number)
        self.root = scratch / self.name / "root"
        self.console = scratch / self.name / "console.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0
        upper, work = scratch / self.name / "upper", scratch / self.name / "work"
        for folder in (self.root, upper, work):
            folder.mkdir(parents=True)
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(self.root)], check=True)
        (self.root / "etc" / "hostname").write_text(f"{self.name}\n")
        (self.root / "etc" / "machine-id").write_text(f"{secrets.token_hex(16)}\n")

    def boot(self) -> None:
        """Boot, and wait until systemd has started everything."""
        command = [
            "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", f"--machine={self.machine}",
            f"--directory={self.root}", f"--network-namespace-path=/run/netns/{self.ns}", "--bind=/dev/net/tun",
            "--capability=all", "--private-users=no", "--resolv-conf=off", "--link-journal=no", "--console=pipe",
            "--system-call-filter=@keyring bpf",
        ]  # fmt: skip
        with self.console.open("ab") as console:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "bash", "-euc", ENTER, "bash", self.machine, *command],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
            )  # fmt: skip
        wait_for("the container's init", lambda: self._find_init(), BOOT_S)
        wait_for(
            "systemd to have started everything", lambda: self.state() in ("running", "degraded"), BOOT_S
        )

    def _find_init(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.console.read_text()
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        said = children.read_text().split()
        try:
            if not said or Path(f"/proc/{said[0]}/comm").read_text().strip() != "systemd":
                return False
        except (FileNotFoundError, ProcessLookupError):  # a helper of nspawn's, gone meanwhile
            return False
        self._init = int(said[0])
        return True

    def state(self) -> str:
        """Return what ``systemctl is-system-running`` says; "" while nobody answers."""
        return self.run("systemctl", "is-system-running", check=False).stdout.strip()

    def argv(self, *command: str) -> list[str]:
        """Return the command line that runs ``command`` on this host as root."""
        return ["nsenter", "-t", str(self._init), "-a", "--", *command]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as root on the host."""
        done = subprocess.run(
            self.argv(*command), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        assert not check or done.returncode == 0, (
            f"{self.name}: {' '.join(command)}: {done.stdout}{done.stderr}"
        )
        return done

    def sh(self, script: str, check: bool = True) -> str:
        """Run a shell script as root on the host and return what it printed."""
        return self.run("bash", "-euc", script, check=check).stdout

    def put(self, file: Path, place: str) -> None:
        """Copy a file of this machine to ``place`` on the host."""
        shutil.copy(file, self.root / place.lstrip("/"))

    def power_off(self) -> None:
        """Shut down in order, as ``poweroff`` does."""
        self._stop(POWER_OFF)

    def pull_the_plug(self) -> None:
        """End everything on the host at once."""
        self._stop(signal.SIGKILL)

    def _stop(self, how: int) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        if self._init:
            with suppress(ProcessLookupError):
                os.kill(self._init, how)
        try:
            self._process.wait(BOOT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._init = 0

    def remove(self) -> None:
        """Stop and leave nothing behind."""
        self.pull_the_plug()
        subprocess.run(["umount", "--lazy", str(self.root)], check=False)
        for tree in Path("/sys/fs/cgroup").glob(f"*/{self.machine}"):
            for folder, _, _ in os.walk(tree, topdown=False):
                with suppress(OSError):
                    os.rmdir(folder)


class BootedLan:
    """``count`` booted hosts on one LAN."""

    def __init__(self, count: int, more: Sequence[str] = ()) -> None:
        self.id = labnet.new_id()
        self.scratch = Path(tempfile.mkdtemp(prefix=f"{self.id}-"))
        self.hosts: list[BootedHost] = []
        try:
            lower = base(*more)
            labnet.make_lan(self.id, count)
            for number in range(1, count + 1):
                self.hosts.append(BootedHost(self.id, number, lower, self.scratch))
            for host in self.hosts:
                host.boot()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take all hosts, the LAN and the folders away."""
        for host in self.hosts:
            host.remove()
        labnet.remove(self.id)
        shutil.rmtree(self.scratch, ignore_errors=True)


def wait_for(what: str, holds: Callable[[], bool], seconds: float) -> None:
    """Wait until ``holds`` does. Fails naming ``what``."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, f"{what}: not within {seconds:.0f} s"
        time.sleep(LOOK_EVERY_S)
