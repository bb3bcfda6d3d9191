"""VXLAN devices in this namespace that are not ours: whose VNI or UDP port is in our way. It decides what a device
occupies; what to do about it is its caller's business.

The kernel has one device for each (VNI, port, address family), whatever its local address, and one socket a port and
family, which devices share only if they agree on its settings (drivers/net/vxlan, vxlan_config_validate, vxlan_sock_add).
"""

from typing import NamedTuple

from meshd.kernel import linkdump, netlink
from meshd.plan import names

IFLA_VXLAN_ID, IFLA_VXLAN_PORT, IFLA_VXLAN_GROUP6, IFLA_VXLAN_LOCAL6 = 1, 15, 16, 17
IFLA_VXLAN_COLLECT_METADATA = 25


class ForeignVxlan(NamedTuple):
    """``external``: takes every VNI of its port. ``family``: 4 or 6; 0 where it has both."""

    name: str
    vni: int
    port: int
    family: int
    external: bool

    def has_port(self, port: int, family: int) -> bool:
        """Tell whether it is on that UDP port, in that family."""
        return self.port == port and self.family in (0, family)


def foreign(link: netlink.Netlink, mark: str) -> list[ForeignVxlan]:
    """List them by name. ``mark``: names.cluster_mark; another cluster's devices are foreign. Raises KernelError."""
    found, ours = [], linkdump.alias_bytes(names.alias_head(mark))
    for chunk, start, end in linkdump.messages(link.dump(linkdump.dump_kind("vxlan"))):
        if chunk.find(ours, start, end) >= 0:
            continue  # most are, and to read one takes 15 us
        seen = linkdump.parse(chunk, start, end)
        if seen.kind != "vxlan" or names.alias_network(seen.alias, mark) is not None:
            continue
        external = seen.data.get(IFLA_VXLAN_COLLECT_METADATA, b"\0") != b"\0"
        v6 = any(any(seen.data.get(number, b"")) for number in (IFLA_VXLAN_GROUP6, IFLA_VXLAN_LOCAL6))
        found.append(
            ForeignVxlan(
                name=seen.name,
                vni=linkdump.number(seen.data.get(IFLA_VXLAN_ID)),
                port=int.from_bytes(seen.data.get(IFLA_VXLAN_PORT, b""), "big"),
                family=0 if external else 6 if v6 else 4,
                external=external,
            )
        )
    return sorted(found)
