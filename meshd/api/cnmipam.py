"""Docker's IpamDriver calls. A pool is one subnet of a network; its addresses are those that attach gives out, so that
they are unique in the cluster whichever engine asks. Decides which network a pool means; what an address is given by
is shell/held.py's business.

A pool's id says all there is to it, so nothing is kept of pools: ``NETWORK|SUBNET|RANGE``, NETWORK in hex, or empty for
the network that has this subnet, which may be made later: Docker asks for the pool before it creates the network.
"""

import ipaddress
from typing import NamedTuple

from meshd.api import cnmshapes as cnm
from meshd.api.cnmdriver import ADDRESS_SPACE
from meshd.errors import BadRequest, Conflict, NotFound
from meshd.model import ID_BYTES, Item
from meshd.plan import names
from meshd.shell import docker, held, networks
from meshd.shell.detach import detach
from meshd.shell.usecase import ClusterLike
from meshd.state.layout import EXCLUDED, Ip, Layout, Prefix, parse_address
from meshd.state.networks import taken_prefixes
from meshd.state.pools import default_v4, default_v6
from meshd.state.subnets import parse_prefix


class Pool(NamedTuple):
    """What a pool's id says. ``network``: b"" where it follows from the subnet."""

    network: bytes
    subnet: Prefix
    range: Prefix | None

    def __str__(self) -> str:
        return f"{self.network.hex()}|{self.subnet}|{self.range or ''}"

    @classmethod
    def parse(cls, text: str) -> "Pool":
        """Read a pool's id. Raises BadRequest."""
        network, _, rest = text.partition("|")
        subnet, _, part = rest.partition("|")
        try:
            return cls(
                bytes.fromhex(network),
                ipaddress.ip_network(subnet),
                ipaddress.ip_network(part) if part else None,
            )
        except ValueError:
            raise BadRequest(f"no pool of meshd's has the id {text[:80]!r}") from None

    async def item(self, cluster: ClusterLike) -> Item | None:
        """Find the network, made anew if it was Docker's and has gone; None where none has the subnet yet. Raises
        NotFound where it was removed."""
        if not self.network:
            return await docker.ensure_subnet(cluster, str(self.subnet))
        return networks.by_id(cluster, self.network)


async def capabilities(_cluster: ClusterLike, _ask: cnm.Nothing) -> cnm.IpamCapabilities:
    """Say what Docker need not do."""
    return cnm.IpamCapabilities()


async def address_spaces(_cluster: ClusterLike, _ask: cnm.Nothing) -> cnm.AddressSpaces:
    """Name the one address space."""
    return cnm.AddressSpaces(ADDRESS_SPACE, ADDRESS_SPACE)


async def request_pool(cluster: ClusterLike, ask: cnm.RequestPool) -> cnm.PoolGiven:
    """Say which subnet a Docker network has: that of a network that exists, the one asked for, or a free one."""
    options = {
        key: value for key, value in (ask.Options or {}).items() if not key.startswith(cnm.DOCKERS_OWN)
    }
    unknown = sorted(options.keys() - {"network"})
    if unknown:
        raise BadRequest(f"ipam-opt {unknown[0][:80]} means nothing to meshd", "known: network")
    wanted = parse_prefix(ask.Pool, "subnet") if ask.Pool else None
    part = parse_prefix(ask.SubPool, "ip-range") if ask.SubPool else None
    name = options.get("network")
    if name is not None:
        found: Item | None = networks.resolve(cluster, name)
        subnet = _subnet(networks.resolve(cluster, name), wanted, 6 if ask.V6 else 4)
    else:
        subnet = wanted or _free(cluster, ask.V6)
        found = docker.with_subnets(cluster, [str(subnet)])
    if part is not None and (part.version != subnet.version or not part.subnet_of(subnet)):  # type: ignore[arg-type]
        raise BadRequest(f"ip-range {part} is outside subnet {subnet}", "it must lie in it")
    network = found.id if found is not None and name is not None else b""
    data = {} if found is None else {cnm.GATEWAY: f"{_gateway(found, subnet)}/{subnet.prefixlen}"}
    return cnm.PoolGiven(str(Pool(network, subnet, part)), str(subnet), data)


def _subnet(item: Item, wanted: Prefix | None, family: int) -> Prefix:
    """Return the subnet of a network that is wanted, or the first of a family. Raises BadRequest, Conflict."""
    name, subnets = networks.facts(item).name, [subnet.prefix for subnet in Layout.of(item).subnets]
    if wanted in subnets:
        return wanted
    if wanted is not None:
        told = ", ".join(map(str, subnets))
        raise Conflict(
            f"network {name} has subnet {told}, not {wanted}", "leave --subnet out, or give that one"
        )
    for prefix in subnets:
        if prefix.version == family:
            return prefix
    if family == 6:
        raise BadRequest(f"network {name} has no IPv6 subnet", "leave --ipv6 out")
    raise BadRequest(
        f"network {name} has no IPv4 subnet, and this Docker asks for one",
        "Docker 28 or later makes a network without: --ipv4=false --ipv6",
    )


def _free(cluster: ClusterLike, v6: bool) -> Prefix:
    """Draw a prefix that nobody uses. Raises Unavailable."""
    taken = taken_prefixes(networks.live(cluster), cluster.hosts.values())
    pools, draw = cluster.settings.pools, cluster.entropy(ID_BYTES)
    if v6:
        return default_v6(draw, pools.v6, cluster.secret, taken)
    return default_v4(draw, "overlay", pools.v4, taken)


def _gateway(item: Item, subnet: Prefix) -> str:
    return next(s.gateway for s in networks.facts(item).subnets if s.cidr == str(subnet))


async def release_pool(_cluster: ClusterLike, _ask: cnm.ReleasePool) -> cnm.Nothing:
    """Nothing is kept of pools: a network's addresses live as long as it."""
    return cnm.Nothing()


async def request_address(cluster: ClusterLike, ask: cnm.RequestAddress) -> cnm.AddressGiven:
    """Give an address: the gateway's, or one that is kept for the endpoint that comes in a moment."""
    pool = Pool.parse(ask.PoolID)
    wanted = _wanted(ask.Address, pool.subnet)
    gateway = (ask.Options or {}).get(cnm.REQUEST_TYPE) == cnm.GATEWAY
    try:
        item = await pool.item(cluster)
    except NotFound:
        raise NotFound(
            f"the network that had subnet {pool.subnet} was removed",
            "docker network rm this one; meshctl network create and meshctl docker create make one anew",
        ) from None
    if gateway:
        given = _as_gateway(item, pool.subnet, wanted)
    elif item is None:  # --aux-address of a network that is made in a moment, which leaves it out
        if wanted is None:
            raise NotFound(
                f"no network has subnet {pool.subnet}", "docker network rm this one, and create it anew"
            )
        given = wanted
    else:
        layout = Layout.of(item)
        want = None if wanted is None else layout.index_of(wanted.packed)
        if want is not None and _reason(layout, want) == EXCLUDED:  # --aux-address, on a second engine
            return cnm.AddressGiven(f"{wanted}/{pool.subnet.prefixlen}")
        if want is not None:
            await _give_up(cluster, item, want)
        found = await held.hold(cluster, item, pool.subnet, want, pool.range)
        texts = layout.texts(found.index)  # of another subnet than the pool's, where that one is full
        return cnm.AddressGiven(next(text for text in texts if (":" in text) is (pool.subnet.version == 6)))
    return cnm.AddressGiven(f"{given}/{pool.subnet.prefixlen}")


def _reason(layout: Layout, index: int) -> str | None:
    space = layout.space_at(index)
    return None if space is None else space.why_reserved(index)


def _wanted(text: str, subnet: Prefix) -> Ip | None:
    if not text:
        return None
    address = parse_address(text.partition("/")[0], "address ")
    if address.version != subnet.version or address not in subnet:
        raise BadRequest(f"address {address} is outside subnet {subnet}", "choose one inside")
    return address


def _as_gateway(item: Item | None, subnet: Prefix, wanted: Ip | None) -> Ip:
    """Return the gateway; of a network that is not made yet, the one wanted or the first address."""
    if item is None:
        return wanted or subnet.network_address + 1
    there = parse_address(_gateway(item, subnet))
    if wanted not in (None, there):
        raise Conflict(
            f"the gateway of network {networks.facts(item).name} is {there} on every host, not {wanted}",
            f"leave --gateway out, or give --gateway {there}",
        )
    return there


async def _give_up(cluster: ClusterLike, item: Item, index: int) -> None:
    """Detach what Docker has lost of its own: an endpoint here that has the address, and whose link is gone with its
    container or was put back. dockerd was killed, or meshd was away when it said so."""
    for id_ in cluster.usage.of(item.id).holders.get(index, ()):
        attachment = cluster.attachments.get(id_)
        if attachment is None or not attachment.owner.startswith(f"{docker.OWNER}/"):
            continue
        link = attachment.host_if
        if link.startswith(names.GUEST) and id_ not in cluster.desk.left:
            continue  # it is in the container's namespace, where it cannot be looked for so quickly
        there = await cluster.reconciler.in_kernel_thread(cluster.kernel.links_exist, [link])
        if link not in there or id_ in cluster.desk.left:
            await detach(cluster, id_, force=True)


async def release_address(cluster: ClusterLike, ask: cnm.ReleaseAddress) -> cnm.Nothing:
    """Take an address back, and what of Docker's still has it: Docker gives it up after its endpoint. One without a pool
    was our network driver's own addition to an endpoint, and went with it."""
    if not ask.PoolID:
        return cnm.Nothing()
    pool = Pool.parse(ask.PoolID)
    address = parse_address(ask.Address.partition("/")[0], "address ")
    try:
        item = await pool.item(cluster)
    except NotFound:
        item = None
    if item is None:
        return cnm.Nothing()
    index = Layout.of(item).index_of(address.packed)
    held.drop(cluster, item.id, index)
    await _give_up(cluster, item, index)
    return cnm.Nothing()
