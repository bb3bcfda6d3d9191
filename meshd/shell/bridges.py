"""The bridges that an operator makes for what is to be on the LAN itself: create, list, remove. The device follows
from the record (plan/desired.py); who may be its port is plan/bridges.py's rule.
"""

import time

import msgspec
import structlog
import trio

from meshd.errors import Conflict, NotFound
from meshd.model import ID_BYTES, Bridge, BridgePort, Item, Key, Kind, Version
from meshd.plan import bridges as rules
from meshd.plan import managers as advice
from meshd.plan import names
from meshd.plan.bridges import Card
from meshd.plan.managers import Owner
from meshd.plan.ops import DelLink, PutLink
from meshd.shell import lan, managers
from meshd.shell.usecase import ClusterLike

log = structlog.get_logger("meshd.bridges")


class BridgeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/bridges."""

    name: str


class Found(msgspec.Struct, frozen=True):
    """A bridge's record and device. ``others``: its ports that nobody gave us: virtual machines' taps and the like."""

    id: bytes
    bridge: Bridge
    card: Card
    others: tuple[str, ...]


def find(cluster: ClusterLike, name: str) -> tuple[bytes, Bridge]:
    """Find a bridge by name. Raises NotFound."""
    for bridge_id, bridge in cluster.bridges.items():
        if bridge.name == name:
            return bridge_id, bridge
    raise NotFound(f"no bridge {name[:64]!r}", "meshctl bridge ls lists them")


async def look(cluster: ClusterLike, name: str) -> Card:
    """Read a device. Raises KernelError."""
    return await cluster.reconciler.in_kernel_thread(cluster.kernel.bridging.card, name)


async def brief(cluster: ClusterLike, name: str) -> Card:
    """Read a device alone, which costs the same among thousands. Raises KernelError."""
    return await cluster.reconciler.in_kernel_thread(cluster.kernel.bridging.brief, name)


async def create(cluster: ClusterLike, request: BridgeRequest) -> Found:
    """Make a bridge. Raises BadRequest, Conflict, Unavailable, KernelError: nothing was changed then."""
    rules.check_name(request.name)
    async with cluster.desk.bridging:
        if any(bridge.name == request.name for bridge in cluster.bridges.values()):
            raise Conflict(f"bridge {request.name} exists already", "meshctl bridge ls lists them")
        card = await look(cluster, request.name)
        if not card.missing:
            raise taken(card, await owner_of(card))
        maker = await trio.to_thread.run_sync(managers.maker, request.name)
        if maker is not None:
            raise Conflict(
                f"{maker.program} is to make bridge {request.name} ({maker.file}); nothing was changed",
                "leave it to that, or choose another name; network create --parent takes it as it is",
            )
        bridge_id = cluster.entropy(ID_BYTES)
        bridge = Bridge(request.name, names.lan_bridge_mac(bridge_id), cluster.wall_ms())
        await save(cluster, bridge_id, bridge)
        await cluster.reconciler.settled()
        for op, error in cluster.reconciler.failures().items():
            if isinstance(op, PutLink) and op.link.name == request.name:
                await forget(cluster, bridge_id)
                raise error
        log.info("bridge created", bridge=request.name)
        return await found(cluster, bridge_id)


async def owner_of(card: Card) -> Owner | None:
    """Say which manager looks after a device, None where none does."""
    return await trio.to_thread.run_sync(managers.owner, card)


def taken(card: Card, owner: Owner | None) -> Conflict:
    """Say that a device has the name, and whose it is."""
    what = "a bridge" if card.kind == "bridge" else f"a {card.kind} device" if card.kind else "a network card"
    if names.is_lan_bridge(card.alias):
        return Conflict(
            f"{card.name} is a bridge that meshd made and has no record of any more; it was left alone",
            f"see what is on it (ip addr show {card.name}), then ip link del {card.name}",
        )
    whose = f"; {advice.told(owner, card.name)}" if owner else ""
    return Conflict(
        f"{card.name} exists on this host: {what} that is not meshd's; it was left alone{whose}",
        "choose another name",
    )


async def remove(cluster: ClusterLike, name: str) -> None:
    """Remove a bridge without ports. Raises NotFound, Conflict, Unavailable, KernelError."""
    async with cluster.desk.bridging:
        bridge_id, bridge = find(cluster, name)
        card = await look(cluster, name)
        ports = sorted({port.name for port in bridge.ports} | {*card.ports})
        if ports:
            own = next((port.name for port in bridge.ports), None)
            hint = f"meshctl bridge port rm {name} {own}" if own else f"ip link set {ports[0]} nomaster"
            raise Conflict(f"bridge {name} has ports: {', '.join(ports)}; nothing was changed", hint)
        if card.above:
            raise Conflict(
                f"bridge {name} is the parent of {', '.join(card.above)}; nothing was changed",
                "remove those first",
            )
        using = await lan.users(cluster, name)
        if using:
            raise Conflict(
                f"bridge {name} is the parent of endpoints of {', '.join(using)}; nothing was changed",
                "detach them first",
            )
        await forget(cluster, bridge_id)
        await cluster.reconciler.settled()
        for op, error in cluster.reconciler.failures().items():
            if isinstance(op, DelLink) and op.name == name:
                await save(cluster, bridge_id, bridge)
                raise error
    log.info("bridge removed", bridge=name)


async def every(cluster: ClusterLike) -> list[Found]:
    """List bridges with their devices, by name. Raises KernelError."""
    ids = sorted(cluster.bridges, key=lambda bridge_id: cluster.bridges[bridge_id].name)
    return [await found(cluster, bridge_id) for bridge_id in ids]


async def found(cluster: ClusterLike, bridge_id: bytes) -> Found:
    """Look at a bridge. Raises KernelError."""
    bridge = cluster.bridges[bridge_id]
    card = await look(cluster, bridge.name)
    ours = {port.name for port in bridge.ports}
    return Found(bridge_id, bridge, card, tuple(port for port in card.ports if port not in ours))


async def save(cluster: ClusterLike, bridge_id: bytes, bridge: Bridge) -> None:
    """Make a record durable. Raises Unavailable: nothing was changed."""
    before = cluster.store.get(Kind.LOCAL_BRIDGE, bridge_id)
    counter = before.version.counter + 1 if before is not None else 0
    await cluster.commit([Item(Kind.LOCAL_BRIDGE, bridge_id, Version(0, counter, cluster.me), bridge)])


async def forget(cluster: ClusterLike, bridge_id: bytes) -> None:
    """Drop a record. Raises Unavailable: nothing was changed."""
    await cluster.commit([], [Key(Kind.LOCAL_BRIDGE, bridge_id)])


def port_state(cluster: ClusterLike, found_: Found, port: BridgePort) -> tuple[str, float | None]:
    """Say how a port is, and in how many seconds it leaves again unless it is confirmed."""
    if port.name not in found_.card.ports:
        return "missing", None
    if not port.deadline_ms:
        return "up", None
    return "unconfirmed", max(0.0, (port.deadline_ms - boottime_ms()) / 1000)


def boottime_ms() -> int:
    """Return milliseconds since the boot, suspension included: what a deadline on disk can count in."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
