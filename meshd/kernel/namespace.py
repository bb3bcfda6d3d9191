"""The kernel of one network namespace, as the shell sees it. It ties the parts together and decides nothing.

All methods block (deleting a device takes 20-40 ms): the shell calls them from one worker thread at a time.
The sockets stay in the namespace in which the object was made, whatever thread uses them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from meshd.config import VXLAN_PORT
from meshd.errors import KernelError
from meshd.kernel import (
    actual,
    addresses,
    forwarding,
    neighlimits,
    netlink,
    nexthops,
    offload,
    sockets,
    underlay,
    vxlans,
)
from meshd.kernel.ahead import Ahead
from meshd.kernel.apply import Applier, Failures
from meshd.kernel.bridging import Bridging
from meshd.kernel.echoes import Echoes
from meshd.kernel.gates import Gates
from meshd.kernel.guests import Guests
from meshd.kernel.lan import Lan
from meshd.kernel.links import Birth, Links
from meshd.kernel.nft import Elsewhere, Firewall
from meshd.kernel.underlay import Underlay
from meshd.kernel.vxlans import ForeignVxlan
from meshd.kernel.watch import Watch
from meshd.plan import names
from meshd.plan.forwarding import Forwarding
from meshd.plan.objects import Dump
from meshd.plan.ops import Op


class Namespace:
    """``vxlan_port``: the cluster's, which tells its objects from another cluster's on this host. ``port_id``: the
    netlink port that the kernel names in notifications of what we caused. ``lan``: devices on the LAN itself;
    ``bridging``: operators' bridges."""

    def __init__(self, vxlan_port: int = VXLAN_PORT) -> None:
        self._vxlan_port = vxlan_port
        try:
            self._netlink = netlink.Netlink()
        except OSError as error:
            raise KernelError(
                "opening a netlink socket", errno=error.errno or 0, words=error.strerror or str(error)
            ) from None
        self.port_id = self._netlink.port_id
        self._echoes = Echoes()
        self._echoes.port(self.port_id)
        self._guests = Guests(self._netlink)
        self._links = Links(self._netlink, self._echoes, self._guests)
        self.lan = Lan(self._netlink, self._guests)
        self.bridging = Bridging(self._netlink)
        self._table = names.table(vxlan_port)
        self._firewall = Firewall(self._echoes, self._table)
        self._gates = Gates(self._echoes, self._firewall.generation, self._table)
        self._applier = Applier(self._netlink, self._links, self._firewall, self._gates, self._echoes)
        self._nexthops: bool | None = None
        self._ahead: Ahead | None = None

    def close(self) -> None:
        """Close the sockets; the kernel keeps what was programmed."""
        self._netlink.close()
        self._firewall.close()
        self._applier.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def dump(self, cluster_mark: str, firewall: str = "") -> Dump:
        """Read what is ours and what is foreign. ``cluster_mark``: names.cluster_mark; ``firewall``: the text
        that the table should have been set from. Raises KernelError."""
        ahead, self._ahead = self._ahead, None
        return actual.dump(
            self._netlink, self._firewall, self._gates, cluster_mark, firewall, self._guests, self._vxlan_port,
            None if ahead is None else ahead.take(),
        )  # fmt: skip

    def read_ahead(self) -> None:
        """Begin to read for the next dump what takes longest, on another thread. Call after ``watch``."""
        self._ahead = Ahead()

    def apply(self, ops: Sequence[Op], births: Mapping[str, Birth] | None = None) -> Failures:
        """Carry out ops in order; return those that failed. ``births``: how an endpoint's veth pair is made whose host
        end, by name, is not there yet. Raises KernelError if nothing can be asked."""
        return self._applier.apply(ops, births)

    def delete_link(self, name: str) -> None:
        """Delete a device of ours (of a veth pair, both ends); one that is gone is a success. Raises
        KernelError."""
        (error,) = self._links.delete([name])
        if error is not None:
            raise error

    def links_exist(self, names: Iterable[str]) -> set[str]:
        """Return those of ``names`` that are devices in this namespace. Raises KernelError."""
        return set(self._links.indices([*names]))

    def foreign_vxlans(self, cluster_mark: str) -> list[ForeignVxlan]:
        """List VXLAN devices that are not this cluster's. Raises KernelError."""
        return vxlans.foreign(self._netlink, cluster_mark)

    def local_addresses(self) -> set[bytes]:
        """Return every address of this namespace, packed. Raises KernelError."""
        return {seen.ip for seen in addresses.parse(self._netlink.dump(addresses.dump_request()))}

    def published_elsewhere(self) -> list[Elsewhere]:
        """Return which ports other clusters' daemons publish on this host. Raises KernelError."""
        return self._firewall.elsewhere()

    def listeners(self) -> list[sockets.Listener]:
        """Return which ports sockets of this namespace have. Raises KernelError."""
        return sockets.listeners()

    def underlay(self, bind: str | None, cluster_mark: str, family: int = 0) -> Underlay:
        """Find what carries the overlay, by an address of ``family`` (4, 6, 0: any) where ``bind`` is None; what ``cluster_mark``'s devices route is left out. Raises ConfigError naming
        ``bind``, KernelError."""
        return underlay.read_underlay(self._netlink, bind, cluster_mark, family)

    def forwarding(self) -> Forwarding:
        """Read what is forwarded, and which devices learn routes by advertisement. Raises KernelError."""
        return forwarding.read_forwarding(self._netlink)

    def offload(self, names: Iterable[str]) -> list[offload.Device]:
        """Read which checksums these devices are left to compute; what ethtool knows nothing of is left out."""
        return offload.read(names)

    def neighbour_limits(self) -> dict[int, neighlimits.NeighLimit]:
        """Return how many neighbours the kernel learns, by address family. Raises KernelError."""
        return neighlimits.read(self._netlink)

    def supports_fdb_nexthops(self) -> bool:
        """Tell whether FDB rows can name nexthop groups (>= 5.8); asked of the kernel once."""
        if self._nexthops is None:
            self._nexthops = nexthops.supports_fdb_nexthops(self._netlink, self._vxlan_port)
        return self._nexthops

    def watch(self, *, own: bool = False) -> Watch:
        """Start to collect events of what others change, or with ``own`` of everything. To be called and used
        on the loop's thread, which must be in this namespace; one at a time. Raises KernelError."""
        return Watch(self._echoes, own=own, port_id=self.port_id, table=self._table)
