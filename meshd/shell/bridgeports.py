"""A network card becomes a port of an operator's bridge, with all the host has on it, and goes back by itself unless it
is confirmed in time: whoever cut himself off cannot confirm. The kernel's half is kernel/portmove.py's.

The record is on disk before the kernel is asked: it holds the deadline, as time since the boot, and what the card had.
So a daemon that died finds at its next start what is to be undone, and after a reboot, which has undone it, that there
is nothing to do. A confirmed port is kept: addresses that a DHCP client or the boot puts on the card follow the others.
"""

from collections.abc import Sequence

import msgspec
import structlog
import trio

from meshd.config import (
    BRIDGE_CONFIRM_MAX_S,
    BRIDGE_CONFIRM_MIN_S,
    BRIDGE_CONFIRM_S,
    BRIDGE_DEADLINE_STEP_S,
    BRIDGE_REVERT_RETRY_S,
    BRIDGE_STOP_S,
)
from meshd.errors import BadRequest, Conflict, KernelError, MeshdError, NotFound, Unavailable
from meshd.model import Bridge, BridgePort, text_mac
from meshd.plan import bridges as rules
from meshd.plan import managers as advice
from meshd.plan import names
from meshd.plan.bridges import Card, Move
from meshd.shell import lan
from meshd.shell.bridges import Found, boottime_ms, find, found, look, owner_of, save, taken
from meshd.shell.usecase import ClusterLike

log = structlog.get_logger("meshd.bridges")

ALARM, WAITS = "bridge-revert", "bridge-unconfirmed"


class PortRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/bridges/ports. ``confirm_within_s``: seconds until the card goes back by itself."""

    bridge: str
    interface: str
    confirm_within_s: float = BRIDGE_CONFIRM_S


class Added(msgspec.Struct, frozen=True):
    """The bridge with its new port, and what an operator should know besides."""

    found: Found
    warnings: tuple[str, ...]


class Pending(msgspec.Struct, frozen=True):
    """A port that nobody has confirmed yet."""

    id: bytes
    bridge: Bridge
    port: BridgePort

    @property
    def left_s(self) -> float:
        """Seconds until it goes back."""
        return (self.port.deadline_ms - boottime_ms()) / 1000


def pending(cluster: ClusterLike) -> Pending | None:
    """Return the change that waits for confirmation: there is one at most."""
    for bridge_id, bridge in cluster.bridges.items():
        for port in bridge.ports:
            if port.deadline_ms:
                return Pending(bridge_id, bridge, port)
    return None


async def add(cluster: ClusterLike, request: PortRequest) -> Added:
    """Make a card a port and move what is on it to the bridge, until ``confirm`` or the deadline.

    Raises BadRequest, NotFound, Conflict, Unavailable, KernelError: all is as it was then.
    """
    if not BRIDGE_CONFIRM_MIN_S <= request.confirm_within_s <= BRIDGE_CONFIRM_MAX_S:
        raise BadRequest(
            f"confirm_within_s: {request.confirm_within_s:.10g} is not {BRIDGE_CONFIRM_MIN_S:g} to {BRIDGE_CONFIRM_MAX_S:g}",
            "long enough to see that the host is still reached, short enough to wait for",
        )
    async with cluster.desk.bridging:
        bridge_id, bridge = await _named(cluster, request.bridge, request.interface)
        waiting = pending(cluster)
        if waiting is not None:
            raise Conflict(
                f"{waiting.port.name} in {waiting.bridge.name} is not confirmed yet, and goes back in "
                f"{max(0, waiting.left_s):.0f} s; nothing was changed",
                "meshctl bridge confirm, or wait",
            )
        card, device = await look(cluster, request.interface), await look(cluster, bridge.name)
        rules.check_port(card, bridge.name)
        if device.missing:
            raise Unavailable(
                f"bridge {bridge.name} is being made anew just now; nothing was changed", "try again"
            )
        using = await lan.users(cluster, card.name)
        if using:
            raise Conflict(
                f"{card.name} cannot be a port of {bridge.name}: it is the parent of endpoints of {', '.join(using)}; "
                "nothing was changed",
                f"detach them first, and have those networks made with --parent {bridge.name}",
            )
        told = await _managed(card, device)
        port = await _port(cluster, card, device, request.confirm_within_s)
        told += warnings(bridge, card.name, await belongings(cluster, card.index))
        joined = msgspec.structs.replace(
            bridge, mac=bridge.mac if bridge.ports else card.mac, ports=(*bridge.ports, port)
        )
        with trio.CancelScope(shield=True):  # a caller that goes away leaves nothing half done
            await save(cluster, bridge_id, joined)
            try:
                await cluster.reconciler.in_kernel_thread(cluster.kernel.bridging.join, move(joined, port))
            except BaseException:
                await save(cluster, bridge_id, bridge)
                raise
        cluster.background(expire, cluster, bridge_id, port)
        cluster.alarm(WAITS, _waits(bridge.name, port))
        log.warning(
            "bridge port added", bridge=bridge.name, port=port.name, confirm_within_s=request.confirm_within_s
        )
        cluster.events.publish(
            "bridge-port-added", bridge=bridge.name, port=port.name, confirm_within_s=request.confirm_within_s
        )
        return Added(await found(cluster, bridge_id), tuple(told))


async def _named(cluster: ClusterLike, name: str, interface: str) -> tuple[bytes, Bridge]:
    """Find a bridge for a card; one that is somebody else's is named as such. Raises NotFound, Conflict."""
    try:
        return find(cluster, name)
    except NotFound:
        card = await look(cluster, name)
        if card.missing or card.kind != "bridge":
            raise
        owner = await owner_of(card)
        hint, *lines = advice.add_port_there(owner, name, interface)
        raise Conflict(taken(card, owner).what, hint, lines=lines) from None


async def _managed(card: Card, device: Card) -> list[str]:
    """Look who else looks after card and bridge; returns warnings. Raises Conflict where they would fight over them."""
    owner = await owner_of(card)
    if owner is not None and owner.program in advice.KEEPS_AT_IT:
        hint, *lines = advice.have_it_make(owner, device.name, card.name, text_mac(card.mac))
        raise Conflict(
            f"{advice.told(owner, card.name)} and would undo what meshd does to it; nothing was changed",
            hint,
            lines=lines,
        )
    other = await owner_of(device)
    if other is not None and other.program in advice.KEEPS_AT_IT:
        hint, *lines = advice.keep_off(other, device.name)
        raise Conflict(
            f"{advice.told(other, device.name)} too; nothing was changed",
            hint,
            lines=lines,
        )
    return [advice.at_boot(owner, device.name, card.name)] if owner is not None else []


async def belongings(cluster: ClusterLike, index: int) -> rules.Belongings:
    """Read what the host has on a device. Raises KernelError."""
    return await cluster.reconciler.in_kernel_thread(cluster.kernel.bridging.belongings, index)


async def _port(cluster: ClusterLike, card: Card, device: Card, confirm_within_s: float) -> BridgePort:
    """Write down what card and bridge have. Raises Conflict where it cannot move."""
    had, before = await belongings(cluster, card.index), await belongings(cluster, device.index)
    if not had.fits:
        raise Conflict(
            f"{card.name} has {had.count} addresses and routes, more than move in one step; nothing was changed",
            "have a routing daemon's routes withdrawn first: it installs them anew on the bridge",
        )
    if had.advertised and not device.accept_ra:
        raise Conflict(
            f"{card.name} has its IPv6 default route from router advertisements, which {device.name} would ignore: the "
            "route would expire; nothing was changed",
            f"sysctl -w net.ipv6.conf.{device.name}.accept_ra=2, and the same line in /etc/sysctl.d",
        )
    now = boottime_ms()
    deadline_ms = now + round(confirm_within_s * 1000)
    return BridgePort(
        name=card.name,
        mac=card.mac,
        boot_id=cluster.boot_id,
        index=card.index,
        bridge_index=device.index,
        deadline_ms=deadline_ms,
        moved_ms=now,
        carried=had.packed,
        before=before.packed,
    )


def warnings(bridge: Bridge, card: str, had: rules.Belongings) -> list[str]:
    """Say what an operator should see to, a line each."""
    told = [
        f"a DHCP client looks after {ip} on {card}: have it run on {bridge.name} instead before the lease ends"
        for ip in had.leased
    ]
    if had.count:
        told.append(
            f"firewall and ip rules, sysctls and sockets that name {card} do not apply to {bridge.name}, which packets "
            "come by now"
        )
    if bridge.ports:
        others = ", ".join(port.name for port in bridge.ports)
        told.append(
            f"if {card} and {others} lead to one switch, that is a loop: {bridge.name} runs no spanning tree"
        )
    return told


def move(bridge: Bridge, port: BridgePort, *, restore: bool = False, mac: bytes = b"") -> Move:
    """Say how a port joins or leaves. ``restore``: what it had and has been lost is put back; ``mac``: the bridge's
    then, if not what is recorded."""
    return Move(
        card=port.name,
        bridge=bridge.name,
        mac=mac or bridge.mac,
        index=port.index,
        carried=port.carried,
        before=port.before,
        others=b"".join(other.carried for other in bridge.ports if other.name != port.name),
        elapsed_s=max(0, boottime_ms() - port.moved_ms) // 1000,
        restore=restore,
    )


def _waits(bridge: str, port: BridgePort) -> str:
    return f"{port.name} leaves bridge {bridge} again unless it is confirmed: meshctl bridge confirm"


async def confirm(cluster: ClusterLike) -> Found:
    """Have the port that waits for it stay. Raises Conflict where none does or it is too late, Unavailable."""
    async with cluster.desk.bridging:
        waiting = pending(cluster)
        if waiting is None:
            raise Conflict(
                "no bridge port waits for confirmation", "meshctl events tells whether one went back already"
            )
        if waiting.left_s <= 0:
            raise Conflict(f"too late: {waiting.port.name} is going back out of {waiting.bridge.name}")
        kept = msgspec.structs.replace(waiting.port, deadline_ms=0)
        await save(cluster, waiting.id, _with(waiting.bridge, kept))
        cluster.calm(WAITS)
        log.info("bridge port confirmed", bridge=waiting.bridge.name, port=kept.name)
        cluster.events.publish("bridge-port-confirmed", bridge=waiting.bridge.name, port=kept.name)
        return await found(cluster, waiting.id)


def _with(bridge: Bridge, port: BridgePort) -> Bridge:
    """Put a port's record in place of that of the same name."""
    ports = tuple(port if other.name == port.name else other for other in bridge.ports)
    return msgspec.structs.replace(bridge, ports=ports)


async def remove(cluster: ClusterLike, name: str, interface: str) -> None:
    """Take a port out, with what is its on the bridge. Raises NotFound, Conflict, Unavailable, KernelError."""
    async with cluster.desk.bridging:
        bridge_id, bridge = await _named(cluster, name, interface)
        port = next((port for port in bridge.ports if port.name == interface), None)
        if port is None:
            device = await look(cluster, name)
            other = interface in device.ports
            raise NotFound(
                f"{interface[:64]} is no port of {name}" + (" that meshd was asked for" if other else ""),
                f"ip link set {interface} nomaster" if other else "meshctl bridge ls lists them",
            )
        refused = await _take_out(cluster, bridge_id, port, strict=not port.deadline_ms)
        if refused:
            raise refused[0]
        log.info("bridge port removed", bridge=name, port=interface)
        cluster.events.publish("bridge-port-removed", bridge=name, port=interface)


async def _take_out(
    cluster: ClusterLike, bridge_id: bytes, port: BridgePort, *, strict: bool = False
) -> Sequence[KernelError]:
    """Have a card go back and forget that it was a port; returns what the kernel refused. ``strict``: then it stays a
    port. Raises Unavailable, KernelError: it is to be tried again."""
    bridge = cluster.bridges[bridge_id]
    left = tuple(other for other in bridge.ports if other.name != port.name)
    mac = bridge.mac if bridge.mac != port.mac else left[0].mac if left else names.lan_bridge_mac(bridge_id)
    card = await look(cluster, port.name)
    restore = bool(port.deadline_ms) or (card.master != bridge.name and port.boot_id == cluster.boot_id)
    kernel, bridging = cluster.reconciler.in_kernel_thread, cluster.kernel.bridging
    with trio.CancelScope(shield=True):
        refused = await kernel(bridging.leave, move(bridge, port, restore=restore, mac=mac))
        if refused and strict:
            await kernel(bridging.join, move(bridge, port))
            return refused
        await save(cluster, bridge_id, msgspec.structs.replace(bridge, mac=mac, ports=left))
    cluster.calm(f"bridge-port {port.name}")
    if port.deadline_ms:
        cluster.calm(WAITS)
    return refused


async def expire(cluster: ClusterLike, bridge_id: bytes, port: BridgePort) -> None:
    """Wait for a port's deadline, and have it go back unless it was confirmed or removed meanwhile."""
    while True:
        left_ms = (
            port.deadline_ms - boottime_ms()
        )  # goes on while the machine is suspended, our clock does not
        if left_ms <= 0:
            break
        await trio.sleep(min(left_ms / 1000, BRIDGE_DEADLINE_STEP_S))
    await revert(cluster, bridge_id, port, "nobody confirmed it in time")


async def revert(cluster: ClusterLike, bridge_id: bytes, port: BridgePort, why: str) -> None:
    """Have an unconfirmed port go back, however often it takes."""
    while True:
        try:
            async with cluster.desk.bridging:
                bridge = cluster.bridges.get(bridge_id)
                ports = bridge.ports if bridge is not None else ()
                if not any(p.name == port.name and p.deadline_ms == port.deadline_ms for p in ports):
                    return
                refused = await _take_out(cluster, bridge_id, port)
            break
        except MeshdError as error:
            cluster.alarm(ALARM, f"{port.name} should leave its bridge again, and cannot: {error.what}")
            await trio.sleep(BRIDGE_REVERT_RETRY_S)
    if refused:
        told = "; ".join(error.what for error in refused[:REFUSED_NAMED])
        cluster.alarm(ALARM, f"{port.name} left its bridge, but not all came back with it: {told}")
    else:
        cluster.calm(ALARM)
    _reverted(cluster, bridge_id, port, why)


def _reverted(cluster: ClusterLike, bridge_id: bytes, port: BridgePort, why: str) -> None:
    name = cluster.bridges[bridge_id].name
    log.warning("bridge port reverted", bridge=name, port=port.name, why=why)
    cluster.events.publish("bridge-port-reverted", bridge=name, port=port.name, why=why)


REFUSED_NAMED = 3


async def recover(cluster: ClusterLike) -> None:
    """At start, before the kernel is touched: undo or go on waiting for what an earlier run left unconfirmed. A reboot
    has undone it by itself."""
    waiting = pending(cluster)
    if waiting is None:
        return
    port = waiting.port
    if port.boot_id != cluster.boot_id:
        left = tuple(other for other in waiting.bridge.ports if other.name != port.name)
        mac = left[0].mac if left else names.lan_bridge_mac(waiting.id)
        await save(cluster, waiting.id, msgspec.structs.replace(waiting.bridge, mac=mac, ports=left))
        _reverted(cluster, waiting.id, port, "the host was restarted before anybody confirmed it")
        return
    card = await look(cluster, port.name)
    if waiting.left_s > 0 and card.master == waiting.bridge.name:
        cluster.alarm(WAITS, _waits(waiting.bridge.name, port))
        cluster.background(expire, cluster, waiting.id, port)
    else:
        why = "nobody confirmed it in time" if waiting.left_s <= 0 else "the daemon ended while it was added"
        await revert(cluster, waiting.id, port, why)


async def stop(cluster: ClusterLike) -> None:
    """At a stop: have an unconfirmed port go back now, since nobody would later."""
    waiting = pending(cluster)
    if waiting is not None:
        with trio.move_on_after(BRIDGE_STOP_S):
            await revert(
                cluster, waiting.id, waiting.port, "the daemon was stopped before anybody confirmed it"
            )
