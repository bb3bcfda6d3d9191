"""The api.sock of one daemon: where it stands, who may open it, and that it ends in order. Ties listen, http and
routes together; decides nothing about requests.
"""

import grp
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import trio

from meshd.api.http import Server
from meshd.api.listen import Standing, stand
from meshd.api.peers import Access
from meshd.api.routes import Api
from meshd.shell.usecase import ClusterLike
from meshd.shell.watchdog import Loop

SOCKET_NAME = "api.sock"
SOCKET_MODE = 0o660
GROUP = "meshd"


class ApiServer:
    """A listening api.sock; ``serve`` in a task of its own, ``stop`` to end it."""

    def __init__(self, standing: Standing, server: Server) -> None:
        self._standing = standing
        self._server = server
        self._ended = trio.Event()

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until ``stop``; started once connections are taken."""
        try:
            await self._server.serve(self._standing.sockets, task_status)
        finally:
            self._standing.close()
            self._ended.set()

    async def stop(self) -> None:
        """Take no more requests, wait for those under way (API_STOP_S at most), end streams; a socket of our own
        goes, one of systemd's is left to it."""
        self._server.stop()
        await self._ended.wait()


async def open_api(
    cluster: ClusterLike, run_dir: Path, passed: Sequence[socket.socket] = (), loop: Loop | None = None
) -> ApiServer:
    """Listen on what systemd ``passed`` for the API, else at ``run_dir``/api.sock, for root, this daemon's own user
    and, to read, group meshd where there is one. A run_dir that is missing is made, as where no unit does it. Raises
    Conflict when another daemon serves there, Unavailable when it cannot be made.
    """
    readers = await trio.to_thread.run_sync(_readers)
    access = Access(os.geteuid(), readers)
    mine = {os.getegid(), *os.getgroups()}
    group = readers if readers in mine or os.geteuid() == 0 else None
    standing = stand(str(run_dir / SOCKET_NAME), SOCKET_MODE, group, passed)
    return ApiServer(standing, Server(Api(cluster, access).handle, access.may_read, loop=loop))


def _readers() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None
