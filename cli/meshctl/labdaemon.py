"""How the lab runs a real meshd as its unit does: a user of its own, CAP_NET_ADMIN alone, read-only /etc.

Decides the command line. Must not know about clusters. The daemon's user cannot pass a folder closed to
others (a clone or a --dir with mode 0700, a home): such a tree is bind-mounted at a place it can reach, inside
the daemon's own mount namespace and nowhere else.
"""

import fcntl
import importlib.util
import os
import socket
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meshctl.errors import Failed

LAB_UID = (
    64747  # needs no passwd entry; in the range that Debian allots to rare packages, so hardly anybody's
)
ROOT = Path("/run/meshd-lab")  # on tmpfs, open to all users, gone at the next boot
GROUPS = Path("/etc/group")
MANAGERS = (
    Path("/run/systemd/netif"),
    Path("/run/NetworkManager"),
    Path("/etc/network"),
    Path("/etc/systemd/network"),
)
"""Where this machine's network managers say what they look after, by names and ifindexes that a lab's hosts have too."""

SCRIPT = """
for tree in /etc /proc/sys; do mount --bind "$tree" "$tree"; mount -o remount,bind,ro "$tree"; done
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
shift
exec "$@"
"""
"""Arguments: pairs of tree and mount point, ``--``, command. Each step is an exec, so the pid stays."""

PASSING = """
import os, sys
fds = [int(fd) for fd in sys.argv[1].split(",") if fd]
for number, fd in enumerate(fds, start=3):
    os.dup2(fd, number)
if fds:
    os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), str(len(fds))
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Arguments: descriptors to pass as systemd does (sd_listen_fds(3)), command."""

FIRST_PASSED_FD = 100  # of the copies that ``PASSING`` puts at 3 and up: none stands where another goes


@dataclass(frozen=True)
class Manager:
    """What a service manager gives the daemon beside its command line. ``environment``: variables (NOTIFY_SOCKET,
    WATCHDOG_USEC); ``sockets``: listening sockets by FileDescriptorName."""

    environment: Mapping[str, str] = field(default_factory=dict)
    sockets: Mapping[str, socket.socket] = field(default_factory=dict)


def reachable(path: Path) -> bool:
    """Say whether a user without any rights can pass every folder down to ``path`` and read it."""
    if not path.stat().st_mode & (stat.S_IROTH | stat.S_IXOTH):
        return False
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)


class View:
    """What one lab's daemons see of this machine's trees: the same path, or a mount point below ``ROOT``."""

    def __init__(self, lab: str) -> None:
        self.root = ROOT / f"view-{lab}"
        self.mounts: dict[Path, Path] = {}

    def of(self, path: Path, name: str) -> Path:
        """Return where the daemon finds ``path``; ``name`` names the mount point if one is needed."""
        path = path.resolve()
        if reachable(path):
            return path
        point = self.root / name
        point.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.mounts[path] = point
        return point

    def remove(self) -> None:
        """Remove the mount points. Nothing is mounted on them outside the daemons' namespaces, so all are empty."""
        if self.root.exists():
            for point in self.root.iterdir():
                point.rmdir()
            self.root.rmdir()


def start(
    namespace: str,
    host_dir: Path,
    config: Path,
    view: View,
    log: Path,
    package: Path | None = None,
    manager: Manager | None = None,
) -> subprocess.Popen[bytes]:
    """Start a daemon in a network namespace, its output appended to ``log``. ``config``: as the daemon sees it;
    ``package``: a folder ``meshd`` to run instead of the installed one, open to all users.

    Raises Failed where the Python or the package cannot be used by the daemon's user.
    """
    installed = importlib.util.find_spec("meshd")
    if installed is None or not installed.submodule_search_locations:
        raise Failed(
            "the package meshd is not installed beside meshctl", "make setup, or pip install the checkout"
        )
    code = package or Path(installed.submodule_search_locations[0])
    if not all(file.stat().st_mode & stat.S_IROTH for file in code.rglob("*.py")):
        raise Failed(f"{code} is closed to other users, and the daemon runs as one", f"chmod -R a+rX {code}")
    python = Path(sys.executable).resolve()
    prefix = Path(sys.base_prefix).resolve()
    python = view.of(prefix, "python") / python.relative_to(prefix)
    # The package's parent may hold anything; a mount point of its own holds nothing but the package.
    parent = code.parent if reachable(code) else view.of(code, "meshd").parent
    packages = view.of(Path(sysconfig.get_path("purelib")), "site-packages")
    view.of(host_dir, host_dir.name)
    pairs = [*_hidden(host_dir), *view.mounts.items(), (_groups(host_dir), GROUPS)]
    mounts = [str(word) for pair in pairs for word in pair]
    capabilities = "-all,+net_admin"
    command = [
        "ip", "netns", "exec", namespace,  # a mount namespace of its own, with this namespace's /sys
        "sh", "-euc", SCRIPT, "sh", *mounts, "--",
        "setpriv", f"--reuid={LAB_UID}", f"--regid={LAB_UID}", "--clear-groups", "--no-new-privs",
        f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}", f"--bounding-set={capabilities}",
        str(python), "-P", "-m", "meshd", "--config", str(config),
    ]  # fmt: skip
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONPATH": f"{parent}:{packages}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    passed: list[int] = []
    if manager is not None:
        environment |= {**manager.environment, "LISTEN_FDNAMES": ":".join(manager.sockets)}
        passed = [fcntl.fcntl(s, fcntl.F_DUPFD, FIRST_PASSED_FD) for s in manager.sockets.values()]
        command = [sys.executable, "-c", PASSING, ",".join(map(str, passed)), *command]
    try:
        with log.open("ab") as output:
            return subprocess.Popen(
                command, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,  # it outlives the command that started it
                pass_fds=passed,
            )  # fmt: skip
    finally:
        for fd in passed:
            os.close(fd)


def _hidden(host_dir: Path) -> list[tuple[Path, Path]]:
    """Return an empty folder to be mounted over each that tells of this machine's own devices."""
    empty = host_dir / "empty"
    empty.mkdir(mode=0o755, exist_ok=True)
    return [(empty, folder) for folder in MANAGERS if folder.is_dir()]


def _groups(host_dir: Path) -> Path:
    """Write a group(5) file that has the group meshd, whose members may read the API, and return its path."""
    others = [line for line in GROUPS.read_text().splitlines() if not line.startswith("meshd:")]
    path = host_dir / "group"
    path.write_text("\n".join([*others, f"meshd:x:{LAB_UID}:", ""]))
    path.chmod(0o644)
    return path


def started_at(pid: int) -> int | None:
    """Return when a process started (clock ticks after boot), which with its pid names it; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before may hold spaces and parentheses: proc(5)
    return None if fields[0] in "ZX" else int(fields[19])


def tail(log: Path, lines: int = 15) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def give(path: Path) -> None:
    """Make the daemon's user the owner of a tree."""
    for name in (path, *path.rglob("*")):
        os.chown(name, LAB_UID, LAB_UID)
