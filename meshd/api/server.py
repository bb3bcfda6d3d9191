"""The api.sock of one daemon: where it stands, who may open it, and that it ends in order. Ties listen, http and
routes together; decides nothing about requests.
"""

import grp
import os
import socket
from pathlib import Path

import trio

from meshd.api.http import Server
from meshd.api.listen import listen, remove
from meshd.api.peers import Access
from meshd.api.routes import Api
from meshd.errors import Unavailable
from meshd.shell.usecase import ClusterLike

SOCKET_NAME = "api.sock"
SOCKET_MODE = 0o660
GROUP = "meshd"


class ApiServer:
    """A listening api.sock; ``serve`` in a task of its own, ``stop`` to end it."""

    def __init__(self, path: str, sock: socket.socket, server: Server) -> None:
        self._path = path
        self._sock = sock
        self._server = server
        self._ended = trio.Event()

    async def serve(self) -> None:
        """Serve until ``stop``."""
        try:
            await self._server.serve([self._sock])
        finally:
            remove(self._path, self._sock)
            self._ended.set()

    async def stop(self) -> None:
        """Take no more requests, wait for those under way (API_STOP_S at most), end streams, remove the socket."""
        self._server.stop()
        await self._ended.wait()


async def open_api(cluster: ClusterLike, run_dir: Path) -> ApiServer:
    """Listen at ``run_dir``/api.sock, for root, this daemon's own user and, to read, group meshd where there is
    one. A run_dir that is missing is made, as where no unit does it. Raises Conflict when another daemon serves
    there, Unavailable when it cannot be made.
    """
    readers = await trio.to_thread.run_sync(_readers)
    access = Access(os.geteuid(), readers)
    mine = {os.getegid(), *os.getgroups()}
    path = str(run_dir / SOCKET_NAME)
    _make(run_dir)
    sock = listen(path, SOCKET_MODE, readers if readers in mine or os.geteuid() == 0 else None)
    return ApiServer(path, sock, Server(Api(cluster, access).handle, access.may_read))


def _readers() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def _make(run_dir: Path) -> None:
    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(
            f"{run_dir}: cannot be used as run_dir: {error.strerror}",
            "make the directory and give it to the daemon's user, or set [host] run_dir",
        ) from None
