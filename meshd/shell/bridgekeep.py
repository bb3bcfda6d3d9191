"""Keeps what ports are recorded true in the kernel: a card that was taken out of its bridge, came back under another
ifindex or was plugged in late joins again, and what a DHCP client or the boot puts on it follows to the bridge.

Decides when to look and what to do about what is found. A card that another program gave to another bridge is left
there, and one that is taken out again and again is given in to for longer each time.
"""

import msgspec
import structlog
import trio

from meshd.config import BRIDGE_KEEP_BACKOFF_MAX_S, BRIDGE_KEEP_BACKOFF_S, BRIDGE_KEEP_REST_S, RECONCILE_S
from meshd.errors import MeshdError
from meshd.model import Bridge, BridgePort
from meshd.plan.bridges import Card
from meshd.plan.objects import Finding
from meshd.shell import bridgeports
from meshd.shell.bridges import boottime_ms, brief, save
from meshd.shell.usecase import ClusterLike

log = structlog.get_logger("meshd.bridges")


class Keeper:
    """One of these a daemon."""

    def __init__(self, cluster: ClusterLike) -> None:
        self._cluster = cluster
        self._wake = trio.Event()
        self._waits: dict[str, tuple[float, float]] = {}  # card -> next time, and how long to wait then

    def changed(self) -> None:
        """Say that some device or address changed: look soon."""
        self._wake.set()

    async def run(self) -> None:
        """Look at once, after every change and every RECONCILE_S, for ever."""
        while True:
            self._wake = trio.Event()
            await self.look()
            now = trio.current_time()
            due = min([at for at, _ in self._waits.values() if at > now], default=now + RECONCILE_S)
            await trio.sleep(BRIDGE_KEEP_REST_S)
            with trio.move_on_at(min(due, now + RECONCILE_S)):
                await self._wake.wait()

    async def look(self) -> None:
        """Look at every port once."""
        for bridge_id, bridge in [*self._cluster.bridges.items()]:
            for port in bridge.ports:
                try:
                    await self._look(bridge_id, port.name)
                except MeshdError as error:
                    log.warning("bridge port", port=port.name, error=error.what)
                    self._cluster.alarm(f"bridge-port {port.name}", f"bridge port {port.name}: {error.what}")

    async def _look(self, bridge_id: bytes, name: str) -> None:
        cluster = self._cluster
        async with cluster.desk.bridging:
            bridge = cluster.bridges.get(bridge_id)
            port = next((port for port in bridge.ports if port.name == name), None) if bridge else None
            if bridge is None or port is None:
                return
            card, device = await brief(cluster, name), await brief(cluster, bridge.name)
            out = card.master != bridge.name
            if port.deadline_ms and not card.missing and (out or device.missing):
                cluster.background(bridgeports.revert, cluster, bridge_id, port, "it is no port any more")
                return
            trouble = wrong(bridge, card) if not port.deadline_ms else ""
            if trouble:
                cluster.alarm(f"bridge-port {name}", trouble)
            if card.missing or device.missing or (out and card.master):
                return
            had = await bridgeports.belongings(cluster, card.index)
            if not out and not had.count:
                cluster.calm(f"bridge-port {name}")
                return
            if self._may_repair(name):
                await self._join(bridge_id, bridge, port, card, device)

    def _may_repair(self, name: str) -> bool:
        """Tell whether a port may be put right now; each time in a row takes longer to come."""
        now = trio.current_time()
        at, wait = self._waits.get(name, (0.0, 0.0))
        if now < at:
            return False
        first = not wait or now - at > BRIDGE_KEEP_BACKOFF_MAX_S
        wait = BRIDGE_KEEP_BACKOFF_S if first else min(2 * wait, BRIDGE_KEEP_BACKOFF_MAX_S)
        self._waits[name] = now + wait, wait
        return True

    async def _join(
        self, bridge_id: bytes, bridge: Bridge, port: BridgePort, card: Card, device: Card
    ) -> None:
        """Have a card join again. What a bridge that was deleted took along is put on the new one."""
        cluster = self._cluster
        same_boot = port.boot_id == cluster.boot_id
        lost = same_boot and port.bridge_index != device.index
        now = boottime_ms()
        joined = msgspec.structs.replace(
            port, boot_id=cluster.boot_id, index=card.index, bridge_index=device.index
        )
        if not same_boot:
            had = await bridgeports.belongings(cluster, card.index)
            before = await bridgeports.belongings(cluster, device.index)
            joined = msgspec.structs.replace(joined, carried=had.packed, before=before.packed, moved_ms=now)
        changed = msgspec.structs.replace(
            bridge, ports=tuple(joined if p.name == port.name else p for p in bridge.ports)
        )
        with trio.CancelScope(shield=True):
            kernel, bridging = cluster.reconciler.in_kernel_thread, cluster.kernel.bridging
            await kernel(bridging.join, bridgeports.move(bridge, port, restore=lost))
            if changed != bridge:
                await save(cluster, bridge_id, changed)
        cluster.calm(f"bridge-port {port.name}")
        log.warning("bridge port put right", bridge=bridge.name, port=port.name)
        cluster.events.publish("bridge-port-repaired", bridge=bridge.name, port=port.name)


def wrong(bridge: Bridge, card: Card) -> str:
    """Say why a recorded port is none, "" where it is."""
    if card.missing:
        return f"{card.name}, a port of bridge {bridge.name}, does not exist on this host"
    if card.master and card.master != bridge.name:
        return f"{card.name} should be a port of bridge {bridge.name}, and another program gave it to {card.master}"
    return "" if card.master else f"{card.name} is no port of bridge {bridge.name} at the moment"


async def findings(cluster: ClusterLike) -> list[Finding]:
    """List recorded ports that are none, for ``diff``. Raises KernelError."""
    found = []
    for bridge in [*cluster.bridges.values()]:
        for port in bridge.ports:
            why = wrong(bridge, await brief(cluster, port.name))
            if why:
                found.append(Finding("port", f"dev {port.name} master {bridge.name}", why))
    return found
