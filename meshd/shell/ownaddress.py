"""Keeps what this host says of its own address true: when the underlay's address is replaced under the running
daemon, its sockets move, then every peer is told (calico #8700: a host whose address changed never recovered).

Decides when to look and in which order things move: sockets first, so that the news leaves by the new address.
The kernel follows from the records: here the vxlan devices' own address, at each peer one nexthop. An address
that is gone without another in its place changes nothing but the host's health: it may come back.
"""

import socket
from collections.abc import Callable

import structlog
import trio

from meshd.config import EVENT_SETTLE_S, UNDERLAY_CHECK_S, UNDERLAY_RETRY_S
from meshd.errors import MeshdError
from meshd.kernel.underlay import Underlay
from meshd.model import Address, HostFacts
from meshd.shell.cluster import Cluster
from meshd.shell.gossip import bind, keep_junk_out

log = structlog.get_logger()

ALARM = "underlay"


class OwnAddress:
    """One of these a daemon. ``facts``: what the host says of itself with a given underlay."""

    def __init__(self, cluster: Cluster, address: Address, facts: Callable[[Underlay], HostFacts]) -> None:
        self._cluster = cluster
        self._address = address
        self._facts = facts
        self._wake = trio.Event()

    def changed(self) -> None:
        """Say that some device or address changed: look soon."""
        self._wake.set()

    async def run(self) -> None:
        """Look after every change and every UNDERLAY_CHECK_S, for ever."""
        while True:
            lost = ALARM in self._cluster.alarms
            with trio.move_on_after(UNDERLAY_RETRY_S if lost else UNDERLAY_CHECK_S):
                await self._wake.wait()
                await trio.sleep(EVENT_SETTLE_S)  # an address is replaced in several steps
            self._wake = trio.Event()
            await self._look()

    async def _look(self) -> None:
        """Read the underlay and follow it."""
        cluster = self._cluster
        try:
            underlay = await cluster.reconciler.in_kernel_thread(
                cluster.kernel.underlay, cluster.settings.gossip.bind, cluster.mark, self._family()
            )
            if underlay.address != self._address.host:
                self._move(Address(underlay.address, self._address.port))
            await cluster.publish_facts(self._facts(underlay))
            cluster.gossip.underlay(underlay.mtu)
            cluster.offload.devices = await cluster.reconciler.in_kernel_thread(
                cluster.kernel.offload, underlay.cards
            )
            cluster.forwarding = await cluster.reconciler.in_kernel_thread(cluster.kernel.forwarding)
        except MeshdError as error:
            cluster.alarm(ALARM, f"peers cannot reach this host: {error.what}")
            return
        cluster.calm(ALARM)

    def _family(self) -> int:
        """Return the family that this host is reached by. It stays: a vxlan device has one, and while a DHCP client
        renews its lease the default route of the other is all there is for a moment."""
        return 6 if ":" in self._address.host else 4

    def _move(self, address: Address) -> None:
        """Bind the new address, then tell the peers. Raises ConfigError with nothing moved."""
        udp = bind(address, socket.SOCK_DGRAM)
        try:
            tcp = bind(address, socket.SOCK_STREAM)
        except MeshdError:
            udp.close()
            raise
        cluster = self._cluster
        keep_junk_out(udp, cluster.node.sealer.tag)
        cluster.gossip.rebind(udp)
        cluster.streams.rebind(trio.SocketListener(trio.socket.from_stdlib_socket(tcp)))
        log.warning("the underlay's address changed", before=str(self._address), now=str(address))
        cluster.events.publish("address-changed", before=self._address.host, address=address.host)
        self._address = address
        cluster.node.move(address, cluster.now())
        cluster.gossip.pump()
