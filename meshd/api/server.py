"""The sockets of one daemon, api.sock, cni.sock and Docker's: where they stand, who may open them, and that they end in
order. Ties listen, http and routes together; decides nothing about requests.
"""

import grp
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
import trio

from meshd import config
from meshd.api import cnm
from meshd.api.cni import Cni
from meshd.api.http import Server
from meshd.api.listen import Standing, stand
from meshd.api.peers import Access
from meshd.api.routes import Api
from meshd.errors import MeshdError, Unavailable
from meshd.shell import runtimes
from meshd.shell.usecase import ClusterLike
from meshd.shell.watchdog import Loop

log = structlog.get_logger("meshd.api")

SOCKET_NAME = "api.sock"
SOCKET_MODE = 0o660
CNI_SOCKET_NAME = "cni.sock"
CNI_SOCKET_MODE = 0o600
GROUP = "meshd"
DOCKER_MODE = 0o600


class ApiServer:
    """A server and its listening sockets; ``serve`` in a task of its own, ``stop`` to end it."""

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


class DockerServer:
    """Docker's plugin socket; ``run`` in a task of its own, ``stop`` to end it. ``troubled`` is told why it cannot be
    served, and "" once it is."""

    def __init__(
        self,
        cluster: ClusterLike,
        path: str,
        passed: Sequence[socket.socket],
        troubled: Callable[[str], None],
        loop: Loop | None = None,
    ) -> None:
        access = Access(os.geteuid(), None)
        self._loop = loop or Loop()
        self._server = Server(
            cnm.CnmApi(cluster, access).handle, access.may_change, refuse=cnm.refuse,
            body_max_bytes=config.CNM_BODY_MAX_BYTES, connections=config.CNM_CONNECTIONS, loop=self._loop,
        )  # fmt: skip
        self._path = path
        self._passed = passed
        self._troubled = troubled
        self._stopping = trio.Event()
        self._serving: ApiServer | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve on what systemd passed, else at ``path`` as soon as its folder is there: Docker's, which this daemon
        does not make. Started when it serves, or is known not to for now."""
        standing = self._stand()
        if standing is None:
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
        while standing is None:
            self._loop.goes_round()
            with trio.move_on_after(min(config.CNM_RETRY_S, self._loop.every_s)):
                await self._stopping.wait()
                return
            standing = self._stand()
        log.info("Docker's plugin socket is served", path=self._path)
        self._serving = ApiServer(standing, self._server)
        await self._serving.serve(task_status)

    def _stand(self) -> Standing | None:
        """Listen, or say why not; None where there is no folder either: no Docker is here."""
        if not self._passed and not Path(self._path).parent.is_dir():
            return None
        try:
            standing = stand(self._path, DOCKER_MODE, None, self._passed)
        except MeshdError as error:
            self._troubled(f"Docker's plugin socket is not served: {error.what}")
            return None
        self._troubled("")
        return standing

    async def stop(self) -> None:
        """Take no more requests and wait for those under way, API_STOP_S at most."""
        self._stopping.set()
        if self._serving is not None:
            await self._serving.stop()


async def open_cni(
    cluster: ClusterLike, run_dir: Path, passed: Sequence[socket.socket] = (), loop: Loop | None = None
) -> tuple[ApiServer, Cni]:
    """Listen on what systemd ``passed`` for CNI, else at ``run_dir``/cni.sock, for root alone: who asks for an endpoint
    names a namespace, and is believed. Raises as ``open_api`` does."""
    standing = stand(str(run_dir / CNI_SOCKET_NAME), CNI_SOCKET_MODE, None, passed)
    try:
        runtimes.prepare(run_dir)
    except OSError as error:
        standing.close()
        raise Unavailable(
            f"{run_dir}: cannot be written: {error.strerror}", "give the folder to the daemon's user"
        ) from None
    cni, access = Cni(cluster, run_dir), Access(os.geteuid(), None)
    server = Server(
        cni.handle,
        access.may_change,
        body_max_bytes=config.CNI_BODY_MAX_BYTES,
        connections=config.CNI_CONNECTIONS,
        loop=loop,
    )
    return ApiServer(standing, server), cni


def _readers() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None
