"""How a local socket comes to stand at its path: passed by systemd, whose it then stays, or made here: never with wider
permissions than asked for, never in the place of one that another process still serves. Knows nothing of what is
served.
"""

import errno
import os
import secrets
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

from meshd import config
from meshd.errors import Conflict, Unavailable

log = structlog.get_logger("meshd.api")


class Standing(NamedTuple):
    """Sockets that listen for one server. ``kept``: systemd's, which go on listening when this process ends."""

    path: str
    sockets: list[socket.socket]
    kept: bool

    def close(self) -> None:
        """Close them; the path of one made here is taken away."""
        for sock in self.sockets:
            if self.kept:
                sock.close()
            else:
                remove(self.path, sock)


def stand(path: str, mode: int, group: int | None, passed: Sequence[socket.socket]) -> Standing:
    """Return what listens for the server whose place is ``path``: the sockets that systemd ``passed``, else one made
    there (see ``listen``). Mode, owner and path of systemd's are its unit's.
    """
    if not passed:
        _make(Path(path).parent)
        return Standing(path, [listen(path, mode, group)], kept=False)
    for place in sorted({str(sock.getsockname()) for sock in passed} - {path}):
        log.warning("systemd listens elsewhere than the configuration says", unit=place, configured=path)
    return Standing(path, list(passed), kept=True)


def listen(path: str, mode: int, group: int | None = None) -> socket.socket:
    """Listen at ``path`` with permission bits ``mode``, owned by ``group`` if given; non-blocking.

    The socket is bound under a temporary name and renamed when its mode and group are right, so there is no
    moment at which others may connect. A socket that nobody answers at is replaced. Raises Conflict when
    somebody does or when the path is not a socket, Unavailable when the directory cannot be written.
    """
    _check_free(path)
    temporary = f"{path}.{secrets.token_hex(4)}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        old = os.umask(0o177)
        try:
            sock.bind(temporary)
        finally:
            os.umask(old)
        try:
            if group is not None and Path(temporary).stat().st_gid != group:
                os.chown(
                    temporary, -1, group
                )  # not where it changes nothing: the unit's seccomp filter refuses it
            Path(temporary).chmod(mode)
            sock.listen(config.API_BACKLOG)
            Path(temporary).rename(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        sock.close()
        raise Unavailable(
            f"cannot listen at {path}: {error.strerror or error}",
            "the directory must exist and belong to the daemon's user",
        ) from None
    return sock


def _make(run_dir: Path) -> None:
    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(
            f"{run_dir}: cannot be used as run_dir: {error.strerror}",
            "make the directory and give it to the daemon's user, or set [host] run_dir",
        ) from None


def remove(path: str, sock: socket.socket) -> None:
    """Close a listening socket and take its path away, unless another socket stands there by now."""
    sock.close()
    try:
        if stat.S_ISSOCK(Path(path).lstat().st_mode) and not _answers(path):
            Path(path).unlink()
    except FileNotFoundError:
        pass


def _check_free(path: str) -> None:
    """Raise Conflict unless ``path`` is absent or a socket without a listener."""
    try:
        mode = Path(path).lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unavailable(f"cannot listen at {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise Conflict(f"{path} exists and is not a socket, left as it is", "move it away")
    if _answers(path):
        raise Conflict(f"another process answers at {path}, left as it is", "is meshd running already?")


def _answers(path: str) -> bool:
    """Say whether somebody listens at ``path``. A full backlog (EAGAIN) is somebody too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT)
