"""CNI: what each operation of the specification does here (SPEC.md 1.1.0), on cni.sock, where the executable hands over
what the runtime said. ADD and DEL end in the same attach and detach as meshctl's; this file decides what is the
caller's fault, and which code it has.

What the daemon knows is not asked of the runtime again: DEL and GC go by (configuration, container, interface), which
the journal has, so they need neither namespace nor prevResult.
"""

import ipaddress
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from meshd.api import cnirecords
from meshd.api.cniconfig import (
    AGAIN,
    CONFLICT,
    DIFFERENT,
    ENVIRONMENT,
    FAULT,
    INVALID,
    KERNEL,
    LIMITED,
    UNAVAILABLE,
    UNKNOWN_CONTAINER,
    UNSUPPORTED,
    CniRefusal,
    Config,
    Wish,
    arguments,
    container,
    ifname,
    read_config,
    valid,
    wish,
)
from meshd.api.cnirecords import CniCall
from meshd.api.cniresult import Given, Interface, previous, result, says
from meshd.api.exchange import Request, Response
from meshd.api.views import EndpointView
from meshd.errors import BadRequest, Conflict, KernelError, MeshdError, NotFound, Unavailable
from meshd.kernel import inside
from meshd.model import EndpointId, text_id, text_ip, text_mac
from meshd.plan.publish import parse_all
from meshd.shell import networks, publish, runtimes
from meshd.shell.attach import Attached, AttachRequest, attach, refusals
from meshd.shell.detach import detach, detach_ahead
from meshd.shell.runtimes import Owner, find, find_anywhere, owned
from meshd.shell.usecase import ClusterLike
from meshd.state.lan import LAN_DRIVERS

BINARY = "application/octet-stream"
CODES: tuple[tuple[type[MeshdError], int], ...] = (
    (BadRequest, INVALID),
    (NotFound, INVALID),
    (Conflict, CONFLICT),
    (Unavailable, AGAIN),
    (KernelError, KERNEL),
)
"""Whose fault an error is -> the specification's code."""


class Cni:
    """Answers the executable for one cluster. ``run_dir``: where it leaves what it could not tell."""

    def __init__(self, cluster: ClusterLike, run_dir: Path, *, log: Any = None) -> None:
        self.cluster = cluster
        self.run_dir = run_dir
        self._catching_up = trio.Lock()
        self.log = log if log is not None else structlog.get_logger("meshd.cni")

    async def handle(self, request: Request) -> Response:
        """Answer one request. Raises MeshdError for what is no request of the executable's."""
        if (request.method, request.path) != ("POST", "/cni"):
            raise NotFound("no such path: this socket is for the CNI executable", "see /opt/cni/bin/meshd")
        call = msgspec.structs.replace(cnirecords.read(request.body), pid=request.peer.pid)
        await self.catch_up()
        started = trio.current_time()
        code, error, body = await self._outcome(call)
        said = call.environment
        command = said.get("CNI_COMMAND", "")[:8].lower()
        if error or command in ("add", "del", "gc"):
            self.log.info(
                "audit", uid=request.peer.uid, pid=request.peer.pid, verb=f"cni-{command}",
                object=f"{said.get('CNI_CONTAINERID', '')} {said.get('CNI_IFNAME', '')}".strip()[:200],
                result=code or "ok", error=error, ms=round((trio.current_time() - started) * 1000),
            )  # fmt: skip
        return Response(body=body, content_type=BINARY)

    async def catch_up(self) -> None:
        """Do what was left for a daemon that was not there, in the order in which it was asked for: before anything
        that is asked for now, so that a late DEL never ends what a later ADD made."""
        async with self._catching_up:
            for path, body in runtimes.queued(self.run_dir):
                try:
                    call = cnirecords.read(body)
                    code, error, _ = await self._outcome(call)
                except MeshdError as refused:
                    code, error = code_of(refused), refused.what
                self.log.info("queued request done", file=path.name, result=code or "ok", error=error)
                if code == AGAIN:
                    return  # it is tried again
                path.unlink(missing_ok=True)

    async def _outcome(self, call: CniCall) -> tuple[int, str, bytes]:
        """Return code (0: done), error and answer of a request."""
        code, error = 0, ""
        try:
            body = await self.answer(call)
        except CniRefusal as refusal:
            code, error = refusal.code, refusal.what
            body = cnirecords.refused(refusal.code, refusal.what, refusal.hint)
        except MeshdError as refused:
            code, error = code_of(refused), refused.what
            body = cnirecords.refused(code, refused.what, refused.hint)
        except Exception as fault:
            code, error = FAULT, repr(fault)
            self.log.error("cni request failed", exc_info=fault)
            body = cnirecords.refused(
                FAULT, "meshd failed to answer, this is a fault in meshd", "see its log"
            )
        return code, error, body

    async def answer(self, call: CniCall) -> bytes:
        """Do what a request says. Raises CniRefusal, MeshdError."""
        command = call.environment.get("CNI_COMMAND", "")
        operation = OPERATIONS.get(command)
        if operation is None:
            raise CniRefusal(
                ENVIRONMENT, f"CNI_COMMAND: {command[:20]!r} is not one of {', '.join(OPERATIONS)}"
            )
        config = read_config(call.config, command)
        if not self.cluster.ready and command in ("ADD", "CHECK"):
            raise CniRefusal(AGAIN, "meshd is starting", "try again in a second")
        return await operation(self.cluster, call, config)


def code_of(error: MeshdError) -> int:
    """Return the code of an error of ours."""
    return next((code for form, code in CODES if isinstance(error, form)), FAULT)


def owner_of(call: CniCall, config: Config) -> Owner:
    """Return by what name the runtime knows an endpoint. Raises CniRefusal."""
    return Owner(config.name, container(call.environment), ifname(call.environment))


# --- ADD ------------------------------------------------------------------------------------------------------
async def _add(cluster: ClusterLike, call: CniCall, config: Config) -> bytes:
    owner = owner_of(call, config)
    wanted = wish(config, arguments(call.environment))
    previous(config)
    seen = inside.seen(call.link, call.addresses, call.routes)
    place = (call.cookie, owner.ifname)
    held = find(cluster, owner)
    if held is not None and not await _is_here(cluster, held, seen, call.cookie):
        # The container has another namespace by now, or an ADD was cut off before its link got there.
        await detach(cluster, held)
        held = None
    if held is None and seen.ifindex:
        async with cluster.desk.place(place):
            pass  # until the link of an endpoint that was detached is gone
        if call.turn == 1:
            return cnirecords.look_again()
        raise CniRefusal(
            CONFLICT,
            f"CNI_IFNAME: the container has an interface {owner.ifname} already",
            "choose another name",
        )
    _limited(cluster, config, wanted)
    wanted = _once(cluster, owner, wanted)
    try:
        request = _request(cluster, call, config, owner, wanted)
        found = await attach(cluster, request, str(owner), spare=call.sockets)
    except publish.Taken as taken:
        if call.looks:
            return cnirecords.whose(taken.inodes)
        raise
    try:
        steps, given = _plumbing(cluster, call, found, seen, wanted, owner)
        return cnirecords.done(result(config, given), steps, created=found.created)
    except BaseException:
        if found.created:
            with trio.CancelScope(shield=True):
                await detach(cluster, found.id)
        raise


def _once(cluster: ClusterLike, owner: Owner, wanted: Wish) -> Wish:
    """Leave out the ports that another of the container's endpoints publishes: podman asks for all of them on each of
    its networks, and a port leads to one."""
    if not wanted.published:
        return wanted
    others = {
        text
        for other, held in owned(cluster).items()
        if other.container == owner.container and other != owner and held in cluster.endpoints
        for text in cluster.endpoints[held].published
    }
    asked = [str(one) for one in parse_all(wanted.published)]
    return msgspec.structs.replace(wanted, published=tuple(text for text in asked if text not in others))


def _limited(cluster: ClusterLike, config: Config, wanted: Wish) -> None:
    """Refuse a limit that cannot be set: what goes into a container is limited on the host's end of its link."""
    if not wanted.bandwidth.ingressrate:
        return
    if networks.facts(networks.resolve(cluster, config.network)).driver in LAN_DRIVERS:
        raise CniRefusal(
            UNSUPPORTED,
            f"runtimeConfig.bandwidth.ingressRate: {wanted.bandwidth.ingressrate}: an endpoint on the LAN itself has no "
            "end on this host",
            "limit it at the switch, or use an overlay or bridge network",
        )


async def _is_here(cluster: ClusterLike, held: EndpointId, seen: inside.Seen, cookie: int) -> bool:
    """Tell whether an endpoint is the interface that was seen in the namespace, or its link waits on this host."""
    attachment = cluster.attachments[held]
    if (
        attachment.netns_cookie != cookie
        or attachment.boot_id != cluster.boot_id
        or held not in cluster.endpoints
    ):
        return False
    if seen.ifindex:
        return seen.mac == cluster.endpoints[held].mac
    waiting = await cluster.reconciler.in_kernel_thread(cluster.kernel.links_exist, [attachment.peer_if])
    return bool(waiting)


def _request(
    cluster: ClusterLike, call: CniCall, config: Config, owner: Owner, wanted: Wish
) -> AttachRequest:
    asked = {
        "network": config.network,
        "netns": {
            "cookie": call.cookie,
            "boot_id": cluster.boot_id,
            "path": call.environment.get("CNI_NETNS", "")[:4096],
            "pid": call.pid,
        },
        "ifname": owner.ifname,
        "name": wanted.name,
        "aliases": wanted.aliases,
        "ips": wanted.ips,
        "mac": wanted.mac,
        "published": wanted.published,
    }
    try:
        return msgspec.convert(asked, AttachRequest)
    except msgspec.ValidationError as error:
        raise CniRefusal(INVALID, str(error).replace(" - at `$.", " in `")) from None


def _plumbing(
    cluster: ClusterLike, call: CniCall, found: Attached, seen: inside.Seen, wanted: Wish, owner: Owner
) -> tuple[list[inside.Step], Given]:
    """Say what the executable does inside, and what there is once that is done."""
    plumb = EndpointView(cluster).attached(found).plumb
    addresses = [ipaddress.ip_interface(text) for text in plumb.addresses]
    routes = []
    for route in plumb.routes:
        via = ipaddress.ip_address(route.via) if route.via else None
        v6 = route.dst == "::/0" or (via is not None and via.version == 6)
        dst = ipaddress.ip_network(route.dst if route.dst != "default" else "::/0" if v6 else "0.0.0.0/0")
        routes.append(inside.Route(dst, via.packed if via else None))
    ranked = inside.ranked(routes, seen)
    born_there = found.created and call.pid and found.attachment.host_if != plumb.link
    steps = inside.plumb(
        plumb.link, plumb.ifname, plumb.mtu, [(a.ip.packed, a.network.prefixlen) for a in addresses], ranked,
        moved=bool(seen.ifindex or born_there),
    )  # fmt: skip
    limits = wanted.bandwidth
    steps += inside.shape(
        found.attachment.host_if, plumb.ifname, (limits.ingressrate, limits.ingressburst),
        (limits.egressrate, limits.egressburst),
    )  # fmt: skip
    gateways = {ipaddress.ip_address(route.via).version: route.via for route in plumb.routes if route.via}
    sandbox = call.environment["CNI_NETNS"]
    host_end = (
        [] if found.attachment.host_if == plumb.link else [Interface(found.attachment.host_if, mtu=plumb.mtu)]
    )
    metrics = {route.dst: route for route in ranked}
    given = Given(
        interfaces=[*host_end, Interface(owner.ifname, plumb.mac, plumb.mtu, sandbox)],
        ips=[(str(a), gateways.get(a.version, "")) for a in addresses],
        routes=[metrics.get(route.dst, route) for route in routes],
        dns=wanted.dns,
    )
    return steps, given


# --- DEL, GC --------------------------------------------------------------------------------------------------
async def _delete(cluster: ClusterLike, call: CniCall, config: Config) -> bytes:
    owner = owner_of(call, config)
    held = find(cluster, owner)
    if held is not None:
        await detach_ahead(cluster, held)
    return cnirecords.done()


async def _collect(cluster: ClusterLike, _call: CniCall, config: Config) -> bytes:
    kept = valid(config)
    stale = {
        owner: held
        for owner, held in owned(cluster).items()
        if owner.network == config.name and (owner.container, owner.ifname) not in kept
    }
    failed: list[str] = []

    async def free(owner: Owner, held: EndpointId) -> None:
        try:
            await detach_ahead(cluster, held)
        except MeshdError as error:  # the others are freed all the same
            failed.append(f"{owner.container} {owner.ifname}: {error.what}")

    async with trio.open_nursery() as nursery:
        for owner, held in stale.items():
            nursery.start_soon(free, owner, held)
    if failed:
        raise CniRefusal(
            AGAIN, f"{len(failed)} of {len(stale)} are not freed: {'; '.join(sorted(failed)[:3])}"
        )
    return cnirecords.done()


# --- CHECK, STATUS --------------------------------------------------------------------------------------------
async def _check(cluster: ClusterLike, call: CniCall, config: Config) -> bytes:
    owner = owner_of(call, config)
    held = find(cluster, owner)
    if held is None or held not in cluster.endpoints:
        elsewhere = find_anywhere(cluster, owner.container, owner.ifname)
        hint = (
            f"it is attached by {next(iter(elsewhere)).network}"
            if elsewhere
            else "meshctl endpoint ls lists all"
        )
        raise CniRefusal(
            UNKNOWN_CONTAINER, f"container {owner.container} has no endpoint {owner.ifname}", hint
        )
    before = previous(config)
    if not before:
        raise CniRefusal(INVALID, "prevResult: missing; CHECK compares with what ADD answered")
    await cluster.reconciler.settled()
    endpoint, attachment = cluster.endpoints[held], cluster.attachments[held]
    shown = EndpointView(cluster).show(held, endpoint)
    seen = inside.seen(call.link, call.addresses, call.routes)
    mac, ips, defaults = says(before, call.environment.get("CNI_NETNS", ""), owner.ifname)
    wrong: list[str] = []
    if attachment.netns_cookie != call.cookie:
        wrong.append("it is attached in another namespace")
    if not seen.ifindex:
        wrong.append(f"there is no interface {owner.ifname}")
    elif seen.mac != endpoint.mac:
        wrong.append(
            f"{owner.ifname} has MAC {text_mac(seen.mac)}, not {shown.mac}, and the firewall drops what it sends"
        )
    elif not seen.up:
        wrong.append(f"{owner.ifname} is down")
    if mac and mac != shown.mac:
        wrong.append(f"prevResult says MAC {mac}, not {shown.mac}")
    for text in shown.ips:
        address = ipaddress.ip_interface(text)
        if text not in ips:
            wrong.append(f"prevResult does not say {text}")
        if seen.ifindex and (address.ip.packed, address.network.prefixlen) not in seen.addresses:
            wrong.append(f"{owner.ifname} does not have {text}")
    there = {(text_ip(default.via) if default.via else "") for default in seen.defaults}
    wrong += [f"the default route by {gateway} is missing" for _, gateway in defaults if gateway not in there]
    if attachment.host_if != attachment.peer_if:
        exists = await cluster.reconciler.in_kernel_thread(cluster.kernel.links_exist, [attachment.host_if])
        wrong += [] if exists else [f"the host's end {attachment.host_if} is gone"]
    network = networks.resolve(cluster, text_id(endpoint.network))
    wrong += [error.what for _, error in refusals(cluster, network, attachment)]
    if wrong:
        raise CniRefusal(DIFFERENT, "; ".join(wrong), "attach it anew")
    return cnirecords.done()


async def _status(cluster: ClusterLike, _call: CniCall, config: Config) -> bytes:
    if not cluster.ready:
        raise CniRefusal(UNAVAILABLE, "meshd is starting", "try again in a second")
    if cluster.allocation_stopped:
        raise CniRefusal(
            UNAVAILABLE, f"no address can be given: {cluster.allocation_stopped}", "meshctl status says more"
        )
    try:
        network = networks.resolve(cluster, config.network)
    except MeshdError as error:
        raise CniRefusal(UNAVAILABLE, error.what, error.hint) from None
    if networks.facts(network).removing:
        raise CniRefusal(UNAVAILABLE, f"network {config.network} is being removed")
    alive = cluster.alive()
    if not any(block.free for block in networks.blocks(cluster, network) if block.owner in alive):
        raise CniRefusal(
            UNAVAILABLE,
            f"network {config.network} has no free address on a host that is alive",
            f"meshctl network inspect {config.network} lists who has which",
        )
    if cluster.reconciler.counts()["missing"]:
        await cluster.reconciler.settled()
    if cluster.reconciler.failures():
        what = next(iter(cluster.reconciler.failures().values())).what
        raise CniRefusal(LIMITED, f"the kernel refuses: {what}", "meshctl diff lists what is missing")
    return cnirecords.done()


Operation = Callable[[ClusterLike, CniCall, Config], Awaitable[bytes]]
OPERATIONS: dict[str, Operation] = {
    "ADD": _add,
    "DEL": _delete,
    "CHECK": _check,
    "GC": _collect,
    "STATUS": _status,
}
