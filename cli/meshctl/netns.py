"""Network namespaces: opening one beyond doubt, naming it so that a daemon that never enters it can tell it from
all others, and doing something inside. Knows nothing of links.

A namespace is entered by a thread that does its work and ends (setns(2) acts on the thread); the rest of the
process never leaves its own. Python has os.setns only from 3.12, so setns and fstatfs go through ctypes.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from meshctl.errors import Failed, reason

T = TypeVar("T")

NAMED = "/run/netns"  # where ip-netns(8) keeps its names
OWN = "/proc/self/ns/net"
CLONE_NEWNET = 0x40000000
NSFS_MAGIC = 0x6E736673  # linux/magic.h
NS_GET_NSTYPE = 0xB703  # linux/nsfs.h: ioctl that says which kind of namespace a descriptor is
SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14: 64 bits, never used again until the next boot
STATFS_BYTES = 256  # more than struct statfs anywhere; f_type is its first word

libc = ctypes.CDLL(None, use_errno=True)


class Namespace(NamedTuple):
    """An open network namespace. ``path``: as the caller named it. ``cookie`` names it for this boot."""

    fd: int
    path: str
    cookie: int


def path_of(netns: str | None, pid: int | None) -> str:
    """Return the path of a namespace given by path, by its name under /run/netns, or by a process."""
    if pid is not None:
        return f"/proc/{pid}/ns/net"
    assert netns is not None  # noqa: S101  # the commands ask for exactly one of the two
    return netns if "/" in netns else f"{NAMED}/{netns}"


@contextlib.contextmanager
def opened(path: str) -> Iterator[Namespace]:
    """Open the namespace at ``path``.

    Raises Failed, code "not-found" where nothing is there; else for what is no network namespace, for the one that
    this process is in, and where the caller may not enter it.
    """
    fd = _open(path)
    try:
        if os.path.samestat(os.fstat(fd), os.stat(OWN)):
            raise Failed(
                f"{path} is this host's own namespace; nothing was changed", "name a container's namespace"
            )
        cookie = int.from_bytes(inside(fd, path, _cookie), "little")
        yield Namespace(fd, path, cookie)
    finally:
        os.close(fd)


def inside(fd: int, path: str, work: Callable[[], T]) -> T:
    """Return ``work()``, done by a thread inside the namespace ``fd``. Raises Failed where it cannot be entered."""
    results: list[T] = []
    errors: list[Exception] = []

    def enter_and_work() -> None:
        # the kernel may give a signal to any thread that does not block it, even to one that is just ending
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            _check(libc.setns(fd, CLONE_NEWNET))
            results.append(work())
        except Exception as error:  # handed to the caller's thread below
            errors.append(error)

    thread = threading.Thread(target=enter_and_work)
    thread.start()
    thread.join()
    if not errors:
        return results[0]
    if isinstance(errors[0], OSError):
        raise refused(f"{path} cannot be entered", errors[0]) from None
    raise errors[0]


def unshare() -> None:
    """Put this process into a fresh network namespace. Raises OSError."""
    _check(libc.unshare(CLONE_NEWNET))


def refused(what: str, error: OSError) -> Failed:
    """Make the error for what the kernel would not do, with the remedy where root could."""
    hint = "run it as root" if isinstance(error, PermissionError) and os.geteuid() != 0 else ""
    return Failed(f"{what}: {reason(error)}", hint)


def _open(path: str) -> int:
    """Open what is at ``path`` only after a look at it: opening a device or a FIFO can have effects, or never end."""
    try:
        looked = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise _missing(path) from None
    except OSError as error:
        raise refused(f"{path} cannot be opened", error) from None
    try:
        if _filesystem(looked) != NSFS_MAGIC:
            raise Failed(f"{path} is not a network namespace", f"see {NAMED}, or name a process with --pid")
        fd = os.open(f"/proc/self/fd/{looked}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(looked)
    if fcntl.ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET:
        os.close(fd)
        raise Failed(f"{path} is a namespace of another kind, not a network namespace")
    return fd


def _missing(path: str) -> Failed:
    if path.startswith("/proc/") and path.endswith("/ns/net"):
        return Failed(f"no process has the id {path.split('/')[2]}", code="not-found")
    return Failed(f"no such network namespace: {path}", "ip netns lists those with names", code="not-found")


def _filesystem(fd: int) -> int:
    """Return f_type of statfs(2)."""
    buffer = ctypes.create_string_buffer(STATFS_BYTES)
    _check(libc.fstatfs(fd, buffer))
    return ctypes.c_long.from_buffer(buffer).value


def _cookie() -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as anyone:
        return anyone.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
