"""Docker's plugin socket: which method does what, and how a refusal reaches Docker's user: as one sentence with
status 200, since dockerd shows other statuses with the method's name before them. Who may call, and the audit line
of every change and refusal, are as at api.sock; what the calls mean is cnmdriver.py's and cnmipam.py's business.
"""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
import structlog
import trio

from meshd.api import cnmdriver as driver
from meshd.api import cnmipam as ipam
from meshd.api import cnmshapes as cnm
from meshd.api.body import decode
from meshd.api.exchange import Request, Response
from meshd.api.peers import Access
from meshd.errors import Forbidden, MeshdError
from meshd.shell.usecase import ClusterLike

NO_METHOD = "404 page not found"
"""The words by which dockerd knows that a plugin does without a method."""


class Method(NamedTuple):
    """``form``: the request; Nothing: its body is not looked at. ``verb``: what the audit line calls it; "" where
    nothing changes."""

    form: type[msgspec.Struct]
    call: Callable[[ClusterLike, Any], Awaitable[msgspec.Struct]]
    verb: str = ""


METHODS: dict[str, Method] = {
    "/Plugin.Activate": Method(cnm.Nothing, driver.activate),
    "/NetworkDriver.GetCapabilities": Method(cnm.Nothing, driver.capabilities),
    "/NetworkDriver.CreateNetwork": Method(cnm.CreateNetwork, driver.create_network, "docker-network-create"),
    "/NetworkDriver.DeleteNetwork": Method(cnm.OfNetwork, driver.delete_network, "docker-network-remove"),
    "/NetworkDriver.CreateEndpoint": Method(cnm.CreateEndpoint, driver.create_endpoint, "docker-attach"),
    "/NetworkDriver.EndpointOperInfo": Method(cnm.OfEndpoint, driver.oper_info),
    "/NetworkDriver.DeleteEndpoint": Method(cnm.OfEndpoint, driver.delete_endpoint, "docker-detach"),
    "/NetworkDriver.Join": Method(cnm.Join, driver.join),
    "/NetworkDriver.Leave": Method(cnm.OfEndpoint, driver.leave),
    "/NetworkDriver.ProgramExternalConnectivity": Method(cnm.External, driver.program, "docker-publish"),
    "/NetworkDriver.RevokeExternalConnectivity": Method(cnm.OfEndpoint, driver.revoke, "docker-unpublish"),
    "/NetworkDriver.DiscoverNew": Method(cnm.Nothing, driver.nothing),
    "/NetworkDriver.DiscoverDelete": Method(cnm.Nothing, driver.nothing),
    "/NetworkDriver.AllocateNetwork": Method(cnm.Nothing, driver.not_in_swarm),
    "/NetworkDriver.FreeNetwork": Method(cnm.Nothing, driver.not_in_swarm),
    "/IpamDriver.GetCapabilities": Method(cnm.Nothing, ipam.capabilities),
    "/IpamDriver.GetDefaultAddressSpaces": Method(cnm.Nothing, ipam.address_spaces),
    "/IpamDriver.RequestPool": Method(cnm.RequestPool, ipam.request_pool),
    "/IpamDriver.ReleasePool": Method(cnm.ReleasePool, ipam.release_pool),
    "/IpamDriver.RequestAddress": Method(cnm.RequestAddress, ipam.request_address, "docker-address"),
    "/IpamDriver.ReleaseAddress": Method(cnm.ReleaseAddress, ipam.release_address),
}


class CnmApi:
    """Answers dockerd; ``handle`` is what http.Server wants."""

    def __init__(self, cluster: ClusterLike, access: Access, *, log: Any = None) -> None:
        self.cluster = cluster
        self.access = access
        self.log = log if log is not None else structlog.get_logger("meshd.cnm")

    async def handle(self, request: Request) -> Response:
        """Answer one call; every refusal is an answer too."""
        started = trio.current_time()
        method = METHODS.get(request.path)
        if method is None:
            return _refusal(f"{NO_METHOD}: {request.path[:PATH_MAX_CHARS]}", 404)
        try:
            if not self.access.may_change(request.peer):
                raise Forbidden(
                    f"uid {request.peer.uid} may not use this socket", "it is for dockerd, as root"
                )
            ask = cnm.Nothing() if method.form is cnm.Nothing else decode(request.body, method.form)
            answer = await method.call(self.cluster, ask)
        except MeshdError as error:
            self._audit(request, method, started, error.code, error.what)
            return refuse(error)
        if method.verb and answer is not cnm.UNCHANGED:
            self._audit(request, method, started, "ok", "")
        return _answer(answer)

    def _audit(self, request: Request, method: Method, started: float, result: str, error: str) -> None:
        self.log.info(
            "audit",
            uid=request.peer.uid,
            pid=request.peer.pid,
            verb=method.verb or request.path[1:],
            object=_object_of(request.body),
            result=result,
            error=error,
            ms=round((trio.current_time() - started) * 1000),
        )


PATH_MAX_CHARS = 80


class _Named(msgspec.Struct):
    """What an audit line takes from a body."""

    NetworkID: Any = ""
    EndpointID: Any = ""
    PoolID: Any = ""
    Address: Any = ""


def _object_of(body: bytes) -> str:
    try:
        said = decode(body, _Named)
    except MeshdError:
        return ""
    words = (said.NetworkID, said.EndpointID, said.PoolID, said.Address)
    return " ".join(word[:64] for word in words if isinstance(word, str) and word)


def refuse(error: MeshdError) -> Response:
    """Make the answer that tells Docker's user of an error: what is wrong, and what to do."""
    sentence = f"{error.what}; {error.hint}" if error.hint else error.what
    return _refusal(" ".join(sentence.split()))


def _refusal(sentence: str, status: int = 200) -> Response:
    return _answer(cnm.Refused(sentence, sentence), status)


def _answer(value: msgspec.Struct, status: int = 200) -> Response:
    return Response(status, msgspec.json.encode(value) + b"\n", cnm.PLUGIN_JSON)
