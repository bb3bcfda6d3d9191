"""Docker's NetworkDriver calls: from what dockerd posts to the use cases and back. Answers from this host's own state;
never a call to Docker, whose daemon waits for the answer.

Order of one container's life (dockerd 20.10 to 28): CreateEndpoint, Join, ProgramExternalConnectivity, EndpointOperInfo
now and then; at its end RevokeExternalConnectivity, Leave (dockerd puts the peer back into the host's namespace),
DeleteEndpoint. Each of the last three may never come, and any may come twice.
"""

import ipaddress
from typing import Any

import msgspec

from meshd.api import cnmshapes as cnm
from meshd.api.body import decode
from meshd.api.views import default_routes, routes_inside
from meshd.config import DOCKER_PORTS, PUBLISHED_PORTS_MAX
from meshd.errors import BadRequest, Conflict, NotFound
from meshd.model import UNKNOWN_NETNS, EndpointId, Item, Subnet, text_id, text_mac
from meshd.plan.publish import Publication
from meshd.shell import amend, docker, held, networks, publish
from meshd.shell.attach import AttachRequest, Netns, attach, detach
from meshd.shell.detach import detach_ahead
from meshd.shell.usecase import ClusterLike
from meshd.state.docker import SHORT_ID, Wanted
from meshd.state.layout import Layout
from meshd.state.subnets import parse_prefix

ADDRESS_SPACE = "meshd"
ANY_POOLS = ("0.0.0.0/0", "::/0")
"""What Docker's ``--ipam-driver null`` gives: no address of its own."""

PREFIX = "eth"
PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
ENDPOINT_OPTIONS = ("name", "alias")
"""What ``--driver-opt`` of an endpoint may say: Docker tells a driver no names."""


async def activate(_cluster: ClusterLike, _ask: cnm.Nothing) -> cnm.Activated:
    """Say what this plugin is; may be asked again at any time."""
    return cnm.Activated(("NetworkDriver", "IpamDriver"))


async def capabilities(_cluster: ClusterLike, _ask: cnm.Nothing) -> cnm.DriverCapabilities:
    """Say how Docker is to keep our networks."""
    return cnm.DriverCapabilities()


async def nothing(_cluster: ClusterLike, _ask: cnm.Nothing) -> cnm.Nothing:
    """Take note of what gossip knows better: which hosts there are."""
    return cnm.Nothing()


async def not_in_swarm(_cluster: ClusterLike, _ask: cnm.Nothing) -> cnm.Nothing:
    """Refuse what only Swarm's managers ask, of drivers with scope global."""
    raise BadRequest(
        "meshd's networks have scope local: Swarm does not manage them",
        "docker network create on each engine, with the same -o network=NAME",
    )


# --- networks -----------------------------------------------------------------------------------------------
async def create_network(cluster: ClusterLike, ask: cnm.CreateNetwork) -> cnm.Nothing:
    """Decide which network this Docker network is, once and for all."""
    await docker.bind(cluster, _wanted(ask))
    return cnm.Nothing()


def _wanted(ask: cnm.CreateNetwork) -> Wanted:
    options = ask.Options or {}
    generic = _as(options.get(cnm.GENERIC) or {}, cnm.Strings, "-o")
    pools = [
        pool for pool in [*(ask.IPv4Data or []), *(ask.IPv6Data or [])] if pool.Pool not in ("", *ANY_POOLS)
    ]
    aux = [address for pool in pools for address in (pool.AuxAddresses or {}).values()]
    return Wanted(
        docker_id=ask.NetworkID,
        options=generic,
        subnets=tuple(Subnet(str(parse_prefix(pool.Pool, "subnet")), _bare(pool.Gateway)) for pool in pools),
        aux=tuple(map(_bare, aux)),
        internal=options.get(cnm.INTERNAL) is True,
        ipv6=options.get(cnm.IPV6) is True,
        ours=all(pool.AddressSpace == ADDRESS_SPACE for pool in pools),
    )


def _as(value: object, form: Any, where: str) -> Any:
    try:
        return msgspec.convert(value, form)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{where}: {str(error)[:1].lower()}{str(error)[1:]}") from None


def _bare(text: str) -> str:
    """Leave the prefix length of an address out."""
    return text.partition("/")[0]


async def delete_network(cluster: ClusterLike, ask: cnm.OfNetwork) -> cnm.Nothing:
    """Forget a Docker network; one that is not known is gone already."""
    await docker.unbind(cluster, ask.NetworkID)
    return cnm.Nothing()


# --- endpoints ----------------------------------------------------------------------------------------------
async def create_endpoint(cluster: ClusterLike, ask: cnm.CreateEndpoint) -> cnm.Made:
    """Make the endpoint of a container that starts or is connected; all of it stands when this is answered."""
    network = await docker.ensure(cluster, ask.NetworkID)
    given = ask.Interface or cnm.Addresses()
    ips = tuple(_bare(ip) for ip in (given.Address, given.AddressIPv6) if ip)
    name: str | None
    name, aliases = _names(ask)
    there = docker.endpoint_of(cluster, ask.NetworkID, ask.EndpointID)
    if there is not None and there in cluster.endpoints:  # asked again, and perhaps named otherwise meanwhile
        name, aliases = None, ()
    said = AttachRequest(
        network=networks.shown(cluster)[network.id],
        netns=Netns(UNKNOWN_NETNS, cluster.boot_id),
        ifname=PREFIX,
        name=name,
        aliases=aliases,
        ips=ips,
        mac=given.MacAddress or None,
    )
    request = decode(msgspec.json.encode(said), AttachRequest)  # names and MACs are the user's words
    want = Layout.of(network).index_of_all(ips)
    kept = None
    if want is not None:
        await _replace(cluster, network, want, ask)
        kept = held.take(cluster, network.id, want)
    try:
        found = await attach(cluster, request, docker.owner(ask.NetworkID, ask.EndpointID), kept)
    except Conflict as error:
        raise _explained(cluster, ask, error) from None
    finally:
        if kept is not None:
            held.free(cluster, kept.endpoint)
    has = {4: "", 6: ""}
    for text in Layout.of(network).texts(found.endpoint.index):
        has[ipaddress.ip_interface(text).version] = text
    return cnm.Made(
        cnm.Addresses(
            Address="" if given.Address else has[4],
            AddressIPv6="" if given.AddressIPv6 else has[6],
            MacAddress="" if given.MacAddress else text_mac(found.endpoint.mac),
        )
    )


def _names(ask: cnm.CreateEndpoint) -> tuple[str, tuple[str, ...]]:
    """Read the endpoint's own options. Raises BadRequest for one that means nothing."""
    options = {
        key: value for key, value in (ask.Options or {}).items() if not key.startswith(cnm.DOCKERS_OWN)
    }
    unknown = sorted(options.keys() - set(ENDPOINT_OPTIONS))
    if unknown:
        raise BadRequest(
            f"driver-opt {unknown[0][:80]} means nothing to meshd", f"known: {', '.join(ENDPOINT_OPTIONS)}"
        )
    texts = _as(options, cnm.Strings, "--driver-opt")
    aliases = tuple(alias for alias in texts.get("alias", "").split(",") if alias)
    return texts.get("name", ask.EndpointID[:SHORT_ID]), aliases


async def _replace(cluster: ClusterLike, network: Item, want: int, ask: cnm.CreateEndpoint) -> None:
    """Detach an endpoint of the same Docker network that has the address: dockerd was killed, and knows it no more."""
    others = docker.owner(ask.NetworkID)
    mine = docker.owner(ask.NetworkID, ask.EndpointID)
    for id_ in cluster.usage.of(network.id).holders.get(want, ()):
        attachment = cluster.attachments.get(id_)
        if attachment is not None and attachment.owner.startswith(others) and attachment.owner != mine:
            await detach(cluster, id_, force=True)


def _explained(cluster: ClusterLike, ask: cnm.CreateEndpoint, error: Conflict) -> Conflict:
    """Say more where it is Docker's own IPAM that gave the address."""
    binding = docker.bound(cluster, ask.NetworkID)
    if binding is None or binding.ours or "in use" not in error.what:
        return error
    return Conflict(
        f"{error.what}, and Docker's own IPAM, which counts the addresses of this engine alone, gave it again",
        "create the Docker network with --ipam-driver meshd, or with another --ip-range on each engine",
    )


async def delete_endpoint(cluster: ClusterLike, ask: cnm.OfEndpoint) -> cnm.Nothing:
    """Detach: answered once its end is on disk, since removing the link takes the kernel tens of milliseconds."""
    id_ = docker.endpoint_of(cluster, ask.NetworkID, ask.EndpointID)
    if id_ is None:
        return cnm.UNCHANGED
    cluster.desk.left.discard(id_)
    await detach_ahead(cluster, id_)
    return cnm.Nothing()


async def oper_info(cluster: ClusterLike, ask: cnm.OfEndpoint) -> cnm.OperInfo:
    """Say what meshd calls the endpoint."""
    id_ = docker.endpoint_of(cluster, ask.NetworkID, ask.EndpointID)
    endpoint = cluster.endpoints.get(id_) if id_ is not None else None
    if id_ is None or endpoint is None:
        return cnm.OperInfo({})
    network = networks.shown(cluster).get(endpoint.network, text_id(endpoint.network))
    return cnm.OperInfo({"meshd.endpoint": text_id(id_), "meshd.network": network})


async def join(cluster: ClusterLike, ask: cnm.Join) -> cnm.Joined:
    """Say what dockerd is to move into the container, and which way is out of it."""
    id_ = _endpoint(cluster, ask.NetworkID, ask.EndpointID)
    cluster.desk.left.discard(id_)
    endpoint = cluster.endpoints[id_]
    network = networks.facts(networks.by_id(cluster, endpoint.network))
    gateway = {4: "", 6: ""}
    direct = []
    for route in (*routes_inside(network, endpoint), *default_routes(network, endpoint)):
        if route.via is None:
            direct.append(cnm.StaticRoute(route.dst, 1))
        else:
            gateway[ipaddress.ip_address(route.via).version] = route.via
    return cnm.Joined(
        cnm.Moved(cluster.attachments[id_].peer_if, PREFIX),
        Gateway=gateway[4],
        GatewayIPv6=gateway[6],
        StaticRoutes=tuple(direct),
        DisableGatewayService=not gateway[4],
    )


def _endpoint(cluster: ClusterLike, docker_network: str, docker_endpoint: str) -> EndpointId:
    """Find a live endpoint by Docker's ids. Raises NotFound."""
    id_ = docker.endpoint_of(cluster, docker_network, docker_endpoint)
    if id_ is None or id_ not in cluster.endpoints:
        raise NotFound(
            f"meshd has no endpoint {docker_endpoint[:SHORT_ID]}: it was released, since its link had gone",
            "docker restart the container, or disconnect and connect it",
        )
    return id_


async def leave(cluster: ClusterLike, ask: cnm.OfEndpoint) -> cnm.Nothing:
    """Note that the peer comes back: should DeleteEndpoint never follow, housekeeping finds it here."""
    id_ = docker.endpoint_of(cluster, ask.NetworkID, ask.EndpointID)
    if id_ is not None:
        cluster.desk.left.add(id_)
    return cnm.Nothing()


# --- published ports ----------------------------------------------------------------------------------------
async def program(cluster: ClusterLike, ask: cnm.External) -> cnm.Nothing:
    """Publish a container's ports, now that this network is its way out."""
    bindings = _as((ask.Options or {}).get(cnm.PORTMAP) or [], list[cnm.Binding], "-p")
    if len(bindings) > PUBLISHED_PORTS_MAX:
        raise BadRequest(
            f"{len(bindings)} published ports of one container are more than {PUBLISHED_PORTS_MAX}",
            "an address of the underlay on the container (a macvlan network) serves all ports",
        )
    if bindings:
        id_ = _endpoint(cluster, ask.NetworkID, ask.EndpointID)
        endpoint = cluster.endpoints[id_]
        if not endpoint.published:
            published = await publish.choose(cluster, [_port(binding) for binding in bindings])
            await amend.publish_ports(cluster, id_, published)
            return cnm.Nothing()
    return cnm.UNCHANGED


def _port(said: cnm.Binding) -> publish.Choice:
    """Read one -p. Raises BadRequest."""
    protocol = PROTOCOLS.get(said.Proto)
    if protocol is None:
        raise BadRequest(f"-p: protocol {said.Proto} is not one of tcp, udp, sctp")
    first, last = DOCKER_PORTS
    if said.HostPort:
        first, last = said.HostPort, max(said.HostPort, said.HostPortEnd)
    where = f"[{said.HostIP}]:" if ":" in said.HostIP else f"{said.HostIP}:" if said.HostIP else ""
    one = Publication.parse(f"{where}{first}:{said.Port}/{protocol}")
    return publish.Choice(one, last, anywhere=not said.HostPort)


async def revoke(cluster: ClusterLike, ask: cnm.OfEndpoint) -> cnm.Nothing:
    """Publish nothing any more."""
    id_ = docker.endpoint_of(cluster, ask.NetworkID, ask.EndpointID)
    if id_ is None or id_ not in cluster.endpoints or not cluster.endpoints[id_].published:
        return cnm.UNCHANGED
    await amend.publish_ports(cluster, id_, ())
    return cnm.Nothing()
