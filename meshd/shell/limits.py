"""Which limits of the kernel this host comes near, said before they bite: ports of a bridge, neighbours that are
learned. What meshd programs itself is permanent and not limited (kernel/rows.py); the hosts of the underlay and
this host's endpoints are learned, by whoever talks to them, in tables that all of the machine shares.
"""

import socket
from collections import Counter
from collections.abc import Mapping

from meshd.config import BRIDGE_PORTS_MAX, NEIGH_ALARM
from meshd.errors import Unavailable
from meshd.kernel.neighlimits import NeighLimit
from meshd.model import NetworkId
from meshd.shell.usecase import ClusterLike
from meshd.state.lan import LAN_DRIVERS

_SYSCTL: dict[int, str] = {
    socket.AF_INET: "net.ipv4.neigh.default.gc_thresh3",
    socket.AF_INET6: "net.ipv6.neigh.default.gc_thresh3",
}


def check_ports(cluster: ClusterLike, network: NetworkId, name: str, driver: str) -> None:
    """Refuse an endpoint that the network's bridge has no port for. Raises Unavailable."""
    if driver in LAN_DRIVERS:
        return  # no bridge, no ports
    used = sum(1 for e in cluster.endpoints.at(network, cluster.me) if e in cluster.attachments)
    room = BRIDGE_PORTS_MAX - (1 if driver == "overlay" else 0)  # the VXLAN device is a port too
    if used >= room:
        raise Unavailable(
            f"network {name} has {used} endpoints on this host, and its bridge has no port for another: Linux allows"
            f" {BRIDGE_PORTS_MAX}; nothing was changed",
            "attach it on another host, or to another network",
        )


def neighbours_needed(cluster: ClusterLike) -> dict[int, int]:
    """Count by family whom this host may have to learn: other hosts, and its own endpoints."""
    needed = Counter(len(facts.vtep) for host, facts in cluster.hosts.items() if host != cluster.me)
    for endpoint in cluster.attachments:
        found = cluster.endpoints.get(endpoint)
        needed.update({len(ip) for ip in found.ips} if found is not None else ())
    return {socket.AF_INET: needed[4], socket.AF_INET6: needed[16]}


def neighbour_trouble(
    needed: Mapping[int, int], limits: Mapping[int, NeighLimit], before: Mapping[int, NeighLimit]
) -> str:
    """Say what is wrong with the kernel's limits, or "". ``before``: what they were when the daemon started."""
    for family, limit in limits.items():
        name = _SYSCTL.get(family)
        if name is None:
            continue
        since = limit.refused - before.get(family, limit).refused
        if since > 0:
            return (
                f"the kernel's table of learned neighbours was full {since} times since meshd started:"
                f" raise {name} from {limit.most} (the package's sysctl.d sets 32768)"
            )
        count = needed.get(family, 0)
        if count >= NEIGH_ALARM * limit.most:
            return (
                f"{count} hosts and endpoints may have to be learned and the kernel keeps {limit.most} neighbours:"
                f" raise {name} (the package's sysctl.d sets 32768)"
            )
    return ""
