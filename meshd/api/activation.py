"""Listening sockets that systemd's .socket units hold open and pass at start (sd_listen_fds(3)), by their
FileDescriptorName=: ``api``, ``cni``, ``docker``. Clients that connect while the daemon restarts wait there instead
of being refused. Knows nothing of what is served, nor where a socket should stand.
"""

import contextlib
import os
import socket
from collections.abc import Iterator, MutableMapping

from meshd.errors import Unavailable

FIRST_FD = 3  # SD_LISTEN_FDS_START
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class Passed:
    """The sockets that were passed. Whoever serves one takes it, and closes it in the end."""

    def __init__(self, sockets: list[tuple[str, socket.socket]]) -> None:
        self._sockets = sockets

    def take(self, name: str) -> list[socket.socket]:
        """Return the sockets passed under ``name``, non-blocking; none where no unit passes any."""
        taken = [sock for named, sock in self._sockets if named == name]
        self._sockets = [(named, sock) for named, sock in self._sockets if named != name]
        return taken

    def close(self) -> list[str]:
        """Close what nobody has taken and return the names. Clients of those wait in vain: systemd still listens."""
        names = sorted({named for named, _ in self._sockets})
        for _, sock in self._sockets:
            sock.close()
        self._sockets = []
        return names


@contextlib.contextmanager
def passed(environ: MutableMapping[str, str] = os.environ, first_fd: int = FIRST_FD) -> Iterator[Passed]:
    """Take over what was passed to this very process; the variables go, so that no child believes them. At the end
    what nobody took is closed. Raises Unavailable where a unit passes what is no listening unix stream socket.
    """
    pid, count, names = (environ.pop(name, "") for name in _VARIABLES)
    found = Passed([])
    try:
        if pid == str(os.getpid()) and count.isdecimal():
            named = (names.split(":") if names else []) + ["unknown"] * int(count)
            for offset in range(int(count)):
                found._sockets.append((named[offset], _adopt(first_fd + offset, named[offset])))
        yield found
    finally:
        found.close()


def _adopt(fd: int, name: str) -> socket.socket:
    """Make a socket of a descriptor. Raises Unavailable unless it listens for unix streams."""
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise _unfit(name, error.strerror or "not a socket") from None
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        sock.close()
        raise _unfit(name, "not a unix stream socket")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise _unfit(name, "it does not listen")
    sock.setblocking(False)
    return sock


def _unfit(name: str, why: str) -> Unavailable:
    return Unavailable(
        f"the socket {name!r} that the service manager passes cannot be served: {why}",
        "its .socket unit needs ListenStream=/PATH and Accept=no",
    )
