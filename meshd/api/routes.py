"""Which request does what: the table of routes, who may use each, and the audit line of every change and every
refusal. Knows HTTP only as method, path, query and body; what happens is the use cases' business.
"""

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
import structlog
import trio

from meshd import __version__
from meshd.api import metrics, shapes, views
from meshd.api.body import decode
from meshd.api.errors import WrongMethod, status_of
from meshd.api.exchange import NDJSON, Request, Response
from meshd.api.peers import Access
from meshd.errors import BadRequest, ConfigError, Forbidden, MeshdError, NotFound
from meshd.model import HostId, text_id
from meshd.shell import attach, bridgekeep, bridgeports, bridges, farewell, netupdate, networks
from meshd.shell.events import Event, Subscription
from meshd.shell.usecase import ClusterLike
from meshd.state.lookup import hosts_meant
from meshd.state.networks import NetworkRequest


class Call(NamedTuple):
    """One request on its way to its handler. ``part`` is the path's variable segment, unquoted, or ""."""

    cluster: ClusterLike
    request: Request
    part: str


Handler = Callable[[Call], Awaitable[Response]]


class Route(NamedTuple):
    """``pattern``: segments, ``{}`` stands for one that varies. ``verb``: what the audit line calls it; where
    it is not empty, success is logged too. ``fields``: query fields it knows."""

    method: str
    pattern: str
    handler: Handler
    needs_root: bool
    verb: str = ""
    fields: tuple[str, ...] = ()


def _json(value: object, status: int = 200) -> Response:
    return Response(status, msgspec.json.encode(value) + b"\n")


async def _healthz(call: Call) -> Response:
    ready = call.cluster.ready
    return _json(shapes.ReadyShape(ready), 200 if ready else 503)


async def _version(_call: Call) -> Response:
    return _json(shapes.VersionShape(__version__))


async def _status(call: Call) -> Response:
    return _json(views.status(call.cluster))


async def _members(call: Call) -> Response:
    return _json(views.members(call.cluster))


async def _networks(call: Call) -> Response:
    return _json(views.all_networks(call.cluster))


async def _create_network(call: Call) -> Response:
    item = await networks.create_network(call.cluster, decode(call.request.body, NetworkRequest))
    return _json(views.network(call.cluster, item), 201)


async def _network(call: Call) -> Response:
    return _json(views.named_network(call.cluster, call.part))


async def _update_network(call: Call) -> Response:
    wanted = decode(call.request.body, netupdate.NetworkUpdate)
    return _json(views.network(call.cluster, await netupdate.update_network(call.cluster, call.part, wanted)))


async def _remove_network(call: Call) -> Response:
    await networks.remove_network(call.cluster, call.part)
    return _json(shapes.RemovedShape(removed=True))


async def _endpoints(call: Call) -> Response:
    query = call.request.query
    cookie = query.get("netns_cookie")
    if cookie is not None and not (cookie.isascii() and cookie.isdigit() and len(cookie) <= U64_DIGITS):
        raise BadRequest("netns_cookie: not a decimal number")
    name, host = query.get("network"), query.get("host")
    wanted = views.EndpointFilter(
        network=None if name is None else networks.resolve(call.cluster, name).id,
        hosts=None if host is None else _known_hosts(call.cluster, host),
        netns_cookie=None if cookie is None else int(cookie),
        boot_id=query.get("boot_id"),
    )
    return Response(body=await views.endpoints(call.cluster, wanted) + b"\n")


def _known_hosts(cluster: ClusterLike, name_or_id: str) -> set[HostId]:
    """Return the hosts meant, or raise NotFound: an empty list would say that it has no endpoints."""
    hosts = {*cluster.members, *cluster.endpoints.hosts()}
    if meant := hosts_meant(name_or_id, {host: cluster.host_name(host) for host in hosts}):
        return meant
    raise NotFound(f"no host {name_or_id[:OBJECT_MAX_CHARS]!r}", "meshctl members lists them")


U64_DIGITS = 20


async def _attach(call: Call) -> Response:
    found = await attach.attach(call.cluster, decode(call.request.body, attach.AttachRequest))
    return _json(views.EndpointView(call.cluster).attached(found), 201 if found.created else 200)


async def _endpoint(call: Call) -> Response:
    endpoint_id = attach.find(call.cluster, call.part)
    return _json(views.EndpointView(call.cluster).show(endpoint_id, call.cluster.endpoints[endpoint_id]))


async def _detach(call: Call) -> Response:
    try:
        endpoint_id = attach.find(call.cluster, call.part)
    except NotFound:
        return _json(shapes.RemovedShape(removed=False))
    return _json(shapes.RemovedShape(await attach.detach(call.cluster, endpoint_id)))


async def _bridges(call: Call) -> Response:
    return _json([views.bridge(call.cluster, found) for found in await bridges.every(call.cluster)])


async def _create_bridge(call: Call) -> Response:
    found = await bridges.create(call.cluster, decode(call.request.body, bridges.BridgeRequest))
    return _json(views.bridge(call.cluster, found), 201)


async def _remove_bridge(call: Call) -> Response:
    await bridges.remove(call.cluster, call.part)
    return _json(shapes.RemovedShape(removed=True))


async def _add_port(call: Call) -> Response:
    added = await bridgeports.add(call.cluster, decode(call.request.body, bridgeports.PortRequest))
    return _json(views.port_added(call.cluster, added), 201)


async def _remove_port(call: Call) -> Response:
    bridge = call.request.query.get("bridge")
    if not bridge:
        raise BadRequest("bridge: missing", "DELETE /v1/bridges/ports/INTERFACE?bridge=NAME")
    await bridgeports.remove(call.cluster, bridge, call.part)
    return _json(shapes.RemovedShape(removed=True))


async def _confirm_port(call: Call) -> Response:
    if call.request.body:
        decode(call.request.body, shapes.EmptyShape)
    return _json(views.bridge(call.cluster, await bridgeports.confirm(call.cluster)))


async def _diff(call: Call) -> Response:
    found = await call.cluster.reconciler.diff()
    ports = await bridgekeep.findings(call.cluster)
    return _json(views.diff({**found, "missing": [*found["missing"], *ports]}))


async def _events(call: Call) -> Response:
    follow = call.request.query.get("follow", "0")
    if follow not in ("0", "1"):
        raise BadRequest("follow: not 0 or 1")
    bus = call.cluster.events
    if follow == "0":
        return Response(body=b"".join(map(_line, bus.kept())), content_type=NDJSON)
    stack = ExitStack()
    watched = stack.enter_context(bus.subscribe(history=True))
    return Response(stream=_Lines(watched), content_type=NDJSON, done=stack.close)


def _line(event: Event) -> bytes:
    return msgspec.json.encode(event) + b"\n"


class _Lines:
    """Events as lines of JSON."""

    def __init__(self, events: Subscription) -> None:
        self._events = events

    def __aiter__(self) -> "_Lines":
        return self

    async def __anext__(self) -> bytes:
        return _line(await anext(self._events))


async def _metrics(call: Call) -> Response:
    await trio.to_thread.run_sync(metrics.load)  # the first time it takes tens of milliseconds
    return Response(body=metrics.render(call.cluster), content_type=metrics.CONTENT_TYPE)


async def _token(call: Call) -> Response:
    return _json(views.token(call.cluster))


async def _reload(call: Call) -> Response:
    if call.request.body:
        decode(call.request.body, shapes.EmptyShape)
    try:
        return _json(call.cluster.reload())
    except ConfigError as error:
        raise ConfigError(f"{error.what}; nothing was changed", error.hint) from None


def _draining(draining: bool) -> Handler:
    async def answer(call: Call) -> Response:
        if call.request.body:
            decode(call.request.body, shapes.EmptyShape)
        await call.cluster.drain(draining)
        return _json(shapes.DrainShape(draining, len(call.cluster.attachments)))

    return answer


async def _leave(call: Call) -> Response:
    if call.request.body:
        decode(call.request.body, shapes.EmptyShape)
    return _json(await call.cluster.leave())


async def _forget(call: Call) -> Response:
    member, blocks = await farewell.forget(call.cluster, decode(call.request.body, farewell.ForgetRequest))
    return _json(shapes.ForgottenShape(text_id(member.id), member.facts.name, blocks))


ROUTES: tuple[Route, ...] = (
    Route("GET", "/healthz", _healthz, needs_root=False),
    Route("GET", "/metrics", _metrics, needs_root=False),
    Route("GET", "/v1/version", _version, needs_root=False),
    Route("GET", "/v1/status", _status, needs_root=False),
    Route("GET", "/v1/members", _members, needs_root=False),
    Route("GET", "/v1/networks", _networks, needs_root=False),
    Route("POST", "/v1/networks", _create_network, needs_root=True, verb="network-create"),
    Route("GET", "/v1/networks/{}", _network, needs_root=False),
    Route("PATCH", "/v1/networks/{}", _update_network, needs_root=True, verb="network-update"),
    Route("DELETE", "/v1/networks/{}", _remove_network, needs_root=True, verb="network-remove"),
    Route(
        "GET",
        "/v1/endpoints",
        _endpoints,
        needs_root=False,
        fields=("network", "host", "netns_cookie", "boot_id"),
    ),
    Route("POST", "/v1/endpoints", _attach, needs_root=True, verb="attach"),
    Route("GET", "/v1/endpoints/{}", _endpoint, needs_root=False),
    Route("DELETE", "/v1/endpoints/{}", _detach, needs_root=True, verb="detach"),
    Route("GET", "/v1/bridges", _bridges, needs_root=False),
    Route("POST", "/v1/bridges", _create_bridge, needs_root=True, verb="bridge-create"),
    Route("DELETE", "/v1/bridges/{}", _remove_bridge, needs_root=True, verb="bridge-remove"),
    Route("POST", "/v1/bridges/ports", _add_port, needs_root=True, verb="bridge-port-add"),
    Route("POST", "/v1/bridges/confirm", _confirm_port, needs_root=True, verb="bridge-confirm"),
    Route(
        "DELETE",
        "/v1/bridges/ports/{}",
        _remove_port,
        needs_root=True,
        verb="bridge-port-remove",
        fields=("bridge",),
    ),
    Route("GET", "/v1/diff", _diff, needs_root=False),
    Route("GET", "/v1/events", _events, needs_root=False, fields=("follow",)),
    Route("GET", "/v1/token", _token, needs_root=True, verb="token-read"),
    Route("POST", "/v1/reload", _reload, needs_root=True, verb="reload"),
    Route("POST", "/v1/drain", _draining(True), needs_root=True, verb="drain"),
    Route("POST", "/v1/undrain", _draining(False), needs_root=True, verb="undrain"),
    Route("POST", "/v1/forget", _forget, needs_root=True, verb="forget"),
    Route("POST", "/v1/leave", _leave, needs_root=True, verb="leave"),
)


class Api:
    """Routes requests to the use cases of one cluster; ``handle`` is what http.Server wants."""

    def __init__(self, cluster: ClusterLike, access: Access, *, log: Any = None) -> None:
        self.cluster = cluster
        self.access = access
        self.log = log if log is not None else structlog.get_logger("meshd.api")

    async def handle(self, request: Request) -> Response:
        """Answer one request. Raises MeshdError, after the audit line that tells of it."""
        started = trio.current_time()
        route: Route | None = None
        try:
            route, part = find(request.method, request.path)
            self._authorise(route, request)
            unknown = sorted(set(request.query) - set(route.fields))
            if unknown:
                known = ", ".join(route.fields)
                raise BadRequest(f"{unknown[0]}: unknown query field", f"known: {known}" if known else "")
            response = await route.handler(Call(self.cluster, request, part))
        except MeshdError as error:
            if (route is not None and route.verb) or status_of(error) == FORBIDDEN:
                self._audit(request, route, started, error.code, error.what)
            raise
        except Exception:
            if route is not None and route.verb:
                self._audit(request, route, started, "failed", "")
            raise
        if route.verb:
            self._audit(request, route, started, "ok", "")
        return response

    def _authorise(self, route: Route, request: Request) -> None:
        """Refuse who may not. Raises Forbidden."""
        peer = request.peer
        if not self.access.may_read(peer):
            raise Forbidden(
                f"uid {peer.uid} may not use this socket", "become root, or a member of group meshd"
            )
        if route.needs_root and not self.access.may_change(peer):
            what = "see this: it is a secret" if route.method == "GET" else "change anything"
            raise Forbidden(f"uid {peer.uid} may look, but not {what}", "become root")

    def _audit(self, request: Request, route: Route | None, started: float, result: str, error: str) -> None:
        """Write the one line of a change or refusal: who, what, on what, outcome. Never a body: it may hold
        secrets."""
        self.log.info(
            "audit",
            uid=request.peer.uid,
            pid=request.peer.pid,
            verb=(route.verb if route is not None and route.verb else request.method.lower()),
            object=request.path if route is None or not route.verb else object_of(request, route),
            result=result,
            error=error,
            ms=round((trio.current_time() - started) * 1000),
        )


FORBIDDEN = 403


class _Named(msgspec.Struct):
    """What an audit line takes from a body."""

    name: Any = None
    network: Any = None
    bridge: Any = None
    interface: Any = None
    netns: Any = None
    host: Any = None


def object_of(request: Request, route: Route) -> str:
    """Say what a change is about: the path's last segment, or from the body network, name and namespace."""
    if route.pattern.endswith("{}"):
        return request.path.rpartition("/")[2][:OBJECT_MAX_CHARS]
    try:
        said = decode(request.body, _Named)
    except MeshdError:
        return ""
    path = said.netns.get("path") if isinstance(said.netns, dict) else None
    said_of = (said.network, said.bridge, said.name, said.interface, path, said.host)
    words = [word for word in said_of if isinstance(word, str)]
    return " ".join(words)[:OBJECT_MAX_CHARS]


OBJECT_MAX_CHARS = 200


def find(method: str, path: str) -> tuple[Route, str]:
    """Find the route of a request. Raises NotFound, or WrongMethod where the path has others."""
    segments = path.split("/")
    allowed: list[str] = []
    for route in ROUTES:
        pattern = route.pattern.split("/")
        if len(pattern) != len(segments):
            continue
        if all(want == got or (want == "{}" and got) for want, got in zip(pattern, segments, strict=True)):
            if route.method == method:
                return route, unquote(segments[-1]) if pattern[-1] == "{}" else ""
            allowed.append(route.method)
    if allowed:
        raise WrongMethod(f"{method} is not possible here", tuple(allowed))
    raise NotFound(
        f"no such path: {path[:OBJECT_MAX_CHARS]}", "the paths are /healthz, /metrics and those under /v1"
    )
