"""Other people's VXLAN devices on this host. Decides which numbers a new network must keep clear of, and what to tell
whoever attaches where one is in the way: the network's number was chosen elsewhere, and is the same everywhere.
"""

import errno

from meshd.errors import Conflict, KernelError
from meshd.kernel.vxlans import ForeignVxlan
from meshd.model import Network
from meshd.shell.usecase import ClusterLike


async def taken(cluster: ClusterLike) -> dict[int, str]:
    """Return the numbers that devices of this host have which are not this cluster's, each with words for it. Raises
    KernelError."""
    return {found.vni: f"device {found.name} of this host" for found in await _at_our_port(cluster)}


async def _at_our_port(cluster: ClusterLike) -> list[ForeignVxlan]:
    me = cluster.hosts.get(cluster.me)
    port, family = cluster.settings.vxlan.port, 6 if me is not None and len(me.vtep) > 4 else 4
    found = await cluster.reconciler.in_kernel_thread(cluster.kernel.foreign_vxlans, cluster.mark)
    return [one for one in found if one.has_port(port, family)]


async def explain(cluster: ClusterLike, network: Network, error: KernelError) -> Conflict | KernelError:
    """Say why the kernel refused a network's VXLAN device, naming what is in the way; ``error`` if nothing is."""
    port = cluster.settings.vxlan.port
    if error.hint:
        return error  # it says already what to do: a stranger has the device's name
    if error.errno == errno.EEXIST:
        culprits = [one.name for one in await _at_our_port(cluster) if one.vni == network.vni]
        holder = (
            f"device {culprits[0]} of this host"
            if culprits
            else "a device that was moved out of this namespace"
        )
        return Conflict(
            f"vni {network.vni} of network {network.name} is in use on UDP port {port}, by {holder}",
            "delete that device, or make the network anew with another --vni",
        )
    if error.errno == errno.EADDRINUSE:
        names = [one.name for one in await _at_our_port(cluster)]
        holder = f"device {names[0]} of this host, set up otherwise" if names else "another program"
        return Conflict(
            f"UDP port {port}, which VXLAN needs, is in use by {holder}",
            "delete or stop that, or set another [vxlan] port on all hosts",
        )
    return error
