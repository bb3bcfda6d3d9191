"""Docker's plugin methods over a cluster in memory (tests/unit/shell/fake_cluster.py): each in the order in which dockerd
calls them, and each with what dockerd would never send."""

import ipaddress
import json

import pytest
import trio.testing

from meshd import config
from meshd.api import cnm
from meshd.api.cnm import METHODS, CnmApi
from meshd.api.exchange import Request
from meshd.api.peers import Access, Peer
from meshd.daemon import _never_moved
from meshd.errors import KernelError
from meshd.kernel.sockets import Listener
from meshd.model import Kind, text_ip
from meshd.plan.elements import element
from meshd.plan.ops import PutElement
from meshd.shell import amend, held, networks
from meshd.shell.docker import keep_all_aux
from meshd.state.networks import NetworkRequest
from tests.unit.shell.fake_cluster import World, free_counts
from tests.unit.shell.test_shell_lan import OTHERS, FakeLan

OWN = 64747
ROOT = Peer(0, 0, 99)
NET, NET2 = "a1b2c3d4e5f6" + "0" * 52, "b1b2c3d4e5f6" + "0" * 52
EP, EP2, EP3 = "e" * 64, "f" * 64, "d" * 64
GENERIC = "com.docker.network.generic"
GATEWAY = {"RequestAddressType": "com.docker.network.gateway"}


class Log:
    def __init__(self):
        self.lines = []

    def info(self, event, **fields):
        assert event == "audit"
        self.lines.append(fields)


class Engine:
    """A dockerd's side of the socket of one host."""

    def __init__(self, cluster):
        self.cluster = cluster
        cluster.kernel.lan = FakeLan(cluster)
        cluster.background = trio.lowlevel.spawn_system_task
        self.log = Log()
        self.api = CnmApi(cluster, Access(OWN, None), log=self.log)
        self.status = 0

    async def post(self, method, body=None, peer=ROOT):
        raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        response = await self.api.handle(Request(peer, "POST", f"/{method}", {}, raw))
        self.status = response.status
        assert response.content_type == "application/vnd.docker.plugins.v1.2+json"
        return json.loads(response.body)

    async def well(self, method, body=None):
        answer = await self.post(method, body)
        assert "Err" not in answer, answer
        assert self.status == 200
        return answer

    async def refused(self, method, body=None):
        answer = await self.post(method, body)
        assert set(answer) == {"Err", "Error"}  # a network driver's key, an IPAM driver's
        assert answer["Err"] == answer["Error"]
        assert self.status == 200  # else dockerd puts the method's name before it
        assert "\n" not in answer["Err"]
        return answer["Err"]

    # --- what `docker` commands come to -----------------------------------------------------------------------
    async def create(
        self, docker_id=NET, options=None, ipam=None, pool="", gateway="", v6=None, aux=None, **labels
    ):
        """docker network create --ipam-driver meshd; ``ipam`` None: with Docker's own IPAM."""
        data = []
        for family6, given in ((False, pool), (True, v6)):
            if given is None:
                continue
            if ipam is None:
                data.append(
                    {"AddressSpace": "LocalDefault", "Pool": given, "Gateway": gateway, "AuxAddresses": aux}
                )
                continue
            got = await self.well(
                "IpamDriver.RequestPool",
                {"AddressSpace": "meshd", "Pool": given, "SubPool": "", "Options": ipam, "V6": family6},
            )
            told = got["Data"].get("com.docker.network.gateway")
            if told is None or gateway:
                asked = {"PoolID": got["PoolID"], "Address": gateway, "Options": GATEWAY}
                told = (await self.well("IpamDriver.RequestAddress", asked))["Address"]
            for address in (aux or {}).values():
                await self.well("IpamDriver.RequestAddress", {"PoolID": got["PoolID"], "Address": address})
            length = got["Pool"].partition("/")[2]
            told_aux = {name: f"{address}/{length}" for name, address in (aux or {}).items()}
            data.append(
                {"AddressSpace": "meshd", "Pool": got["Pool"], "Gateway": told, "AuxAddresses": told_aux}
            )
            self.pools = {**getattr(self, "pools", {}), (docker_id, 6 if family6 else 4): got["PoolID"]}
        body = {
            "NetworkID": docker_id,
            "Options": {"com.docker.network.enable_ipv6": v6 is not None, GENERIC: options or {}, **labels},
            "IPv4Data": [each for each in data if ":" not in each["Pool"]],
            "IPv6Data": [each for each in data if ":" in each["Pool"]] or None,
        }
        return await self.post("NetworkDriver.CreateNetwork", body)

    async def run(
        self, endpoint=EP, docker_id=NET, ip="", ip6="", mac="", ports=(), families=(4,), **options
    ):
        """docker run, as far as the driver sees it; the answer to CreateEndpoint."""
        interface = {"Address": "", "AddressIPv6": "", "MacAddress": mac}
        for family, field, asked in ((4, "Address", ip), (6, "AddressIPv6", ip6)):
            if family in families:
                body = {"PoolID": self.pools[docker_id, family], "Address": asked, "Options": None}
                interface[field] = (await self.well("IpamDriver.RequestAddress", body))["Address"]
        self.given = dict(interface)
        ids = {"NetworkID": docker_id, "EndpointID": endpoint}
        portmap = [{"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080, **p}
                   for p in ports]  # fmt: skip
        labels = {"com.docker.network.endpoint.exposedports": [], "com.docker.network.portmap": portmap}
        made = await self.post(
            "NetworkDriver.CreateEndpoint", {**ids, "Interface": interface, "Options": {**labels, **options}}
        )
        if "Err" not in made:
            joined = await self.well("NetworkDriver.Join", {**ids, "SandboxKey": "/var/run/docker/netns/1"})
            programmed = await self.post(
                "NetworkDriver.ProgramExternalConnectivity", {**ids, "Options": labels}
            )
            made = {**made, **joined, **programmed}
        return made

    async def stop(self, endpoint=EP, docker_id=NET, release=True):
        ids = {"NetworkID": docker_id, "EndpointID": endpoint}
        for method in ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint"):
            assert await self.well(f"NetworkDriver.{method}", ids) == {}
        if release:
            body = {"PoolID": self.pools[docker_id, 4], "Address": self.given["Address"].partition("/")[0]}
            assert await self.well("IpamDriver.ReleaseAddress", body) == {}

    def endpoints(self):
        return sorted(
            (endpoint.name, [text_ip(ip) for ip in endpoint.ips])
            for endpoint in self.cluster.endpoints.values()
        )


async def blue(cluster, name="blue", driver="overlay", subnets=("10.1.0.0/20",), **more):
    return await networks.create_network(cluster, NetworkRequest(name, driver, subnets, **more))


async def site(hosts=1, **network):
    """Hosts with a network blue, and an engine on the first one that has joined it."""
    world = World(hosts)
    await blue(world.hosts[0], **network)
    engine = Engine(world.hosts[0])
    v6 = "" if any(":" in subnet for subnet in network.get("subnets", ())) else None
    assert await engine.create(options={"network": "blue"}, ipam={"network": "blue"}, v6=v6) == {}
    return engine


# --- activation -----------------------------------------------------------------------------------------------
async def test_activation_may_come_twice_and_has_no_body():
    engine = Engine(World().hosts[0])
    for _ in range(2):
        assert await engine.well("Plugin.Activate") == {"Implements": ["NetworkDriver", "IpamDriver"]}
        assert await engine.well("NetworkDriver.GetCapabilities") == {
            "Scope": "local",
            "ConnectivityScope": "global",
        }
        assert await engine.well("IpamDriver.GetCapabilities") == {
            "RequiresMACAddress": False,
            "RequiresRequestReplay": False,
        }
        spaces = await engine.well("IpamDriver.GetDefaultAddressSpaces")
        assert spaces == {"LocalDefaultAddressSpace": "meshd", "GlobalDefaultAddressSpace": "meshd"}
    assert engine.log.lines == []


async def test_what_swarm_tells_and_asks():
    engine = Engine(World().hosts[0])
    peer = {"DiscoveryType": 1, "DiscoveryData": {"Address": "192.0.2.2", "Self": False}}
    assert await engine.well("NetworkDriver.DiscoverNew", peer) == {}
    assert await engine.well("NetworkDriver.DiscoverDelete", peer) == {}
    for method in ("AllocateNetwork", "FreeNetwork"):
        assert "scope local" in await engine.refused(f"NetworkDriver.{method}", {"NetworkID": NET})


async def test_a_method_that_is_not_here_is_said_to_be_so_in_dockers_words():
    engine = Engine(World().hosts[0])
    answer = await engine.post("VolumeDriver.Create", {})
    assert engine.status == 404
    assert answer["Err"].startswith("404 page not found")


async def test_only_root_and_the_daemons_own_user_may_call():
    engine = Engine(World().hosts[0])
    for method in METHODS:
        answer = await engine.post(method[1:], {}, peer=Peer(1000, 1000, 7))
        assert "uid 1000 may not use this socket" in answer["Err"]
    assert {line["result"] for line in engine.log.lines} == {"forbidden"}
    assert "Implements" in await engine.post("Plugin.Activate", peer=Peer(OWN, OWN, 7))


# --- bad input ------------------------------------------------------------------------------------------------
WITH_BODY = {path[1:]: method for path, method in METHODS.items() if method.form is not cnm.cnm.Nothing}


@pytest.mark.parametrize("method", WITH_BODY)
@pytest.mark.parametrize(
    "body, words",
    [
        (b"", "the request has no body"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "expected `object`"),
        (b"null", "expected `object`"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested deeper"),
        (b"{}", "missing"),
        (b'{"NetworkID": 7, "PoolID": 7}', "expected `str`"),
        (b'{"NetworkID": "", "PoolID": ""}', ""),
        (b'{"NetworkID": "../../etc", "EndpointID": "e", "PoolID": "../etc", "Address": ""}', ""),
    ],
    ids=["empty", "cut", "binary", "array", "null", "deep", "no keys", "wrong type", "empty ids", "odd ids"],
)
async def test_every_method_refuses_what_is_not_a_request_of_dockers(method, body, words):
    engine = await site()
    before = len(engine.cluster.journal)
    answer = await engine.post(method, body)
    if method == "IpamDriver.RequestPool" and words in ("missing", "expected `str`", ""):
        assert answer["Pool"]  # each of its fields may be missing
        return
    if method == "IpamDriver.ReleasePool" and not words:
        assert answer == {}  # pools are not kept
        return
    assert words in answer["Err"]
    assert "\n" not in answer["Err"]
    assert len(engine.cluster.journal) == before


@pytest.mark.parametrize("method", [m for m in WITH_BODY if m.startswith("NetworkDriver")])
async def test_of_a_docker_network_that_is_not_known_what_ends_succeeds_and_what_begins_says_what_to_do(
    method,
):
    engine = Engine(World().hosts[0])
    body = {
        "NetworkID": NET,
        "EndpointID": EP,
        "Options": {"com.docker.network.portmap": [{"Proto": 6, "Port": 80}]},
    }
    answer = await engine.post(method, body)
    begins = {
        "NetworkDriver.CreateEndpoint": "docker network rm a1b2c3d4e5f6",
        "NetworkDriver.Join": "docker restart the container",
        "NetworkDriver.ProgramExternalConnectivity": "docker restart the container",
    }
    if method == "NetworkDriver.CreateNetwork":
        assert answer == {}  # without options: a network of its own
    elif method in begins:
        assert begins[method] in answer["Err"]
    else:
        assert answer in ({}, {"Value": {}})


# --- networks -------------------------------------------------------------------------------------------------
async def test_a_docker_network_joins_the_network_that_it_names_and_that_is_kept_on_disk():
    engine = await site()
    (item,) = engine.cluster.store.live(Kind.DOCKER_NETWORK)
    assert (item.body.docker_id, item.body.name) == (NET, "blue")
    assert engine.cluster.journal[-1] == [item]
    assert engine.log.lines[-1]["verb"] == "docker-network-create"
    assert await engine.create(options={"network": "blue"}, ipam={"network": "blue"}) == {}  # the same again
    assert len(list(engine.cluster.store.live(Kind.DOCKER_NETWORK))) == 1
    assert await engine.well("NetworkDriver.DeleteNetwork", {"NetworkID": NET}) == {}
    assert await engine.well("NetworkDriver.DeleteNetwork", {"NetworkID": NET}) == {}
    assert list(engine.cluster.store.live(Kind.DOCKER_NETWORK)) == []
    assert [network.name for network in engine.cluster.networks.values()] == ["blue"]  # it is not Docker's


async def test_the_pool_and_the_gateway_are_the_networks():
    engine = await site(gateways=("10.1.0.9",))
    body = {"AddressSpace": "meshd", "Pool": "", "SubPool": "", "Options": {"network": "blue"}, "V6": False}
    got = await engine.well("IpamDriver.RequestPool", body)
    assert got["Pool"] == "10.1.0.0/20"
    assert got["Data"] == {"com.docker.network.gateway": "10.1.0.9/20"}
    assert await engine.well("IpamDriver.RequestPool", body) == got
    asked = {"PoolID": got["PoolID"], "Address": "10.1.0.9", "Options": GATEWAY}
    assert (await engine.well("IpamDriver.RequestAddress", asked))["Address"] == "10.1.0.9/20"
    assert "--gateway 10.1.0.9" in await engine.refused(
        "IpamDriver.RequestAddress", {**asked, "Address": "10.1.0.1"}
    )
    assert await engine.well("IpamDriver.ReleaseAddress", asked) == {}
    assert await engine.well("IpamDriver.ReleasePool", {"PoolID": got["PoolID"]}) == {}


@pytest.mark.parametrize(
    "options, kw, words",
    [
        ({"network": "nosuch"}, {}, "no network 'nosuch'"),
        ({"network": "none"}, {}, "nothing to attach to"),
        ({"network": "host"}, {}, "host's own namespace"),
        ({"network": "blue", "driver": "overlay"}, {}, "option driver says nothing of network blue"),
        ({"network": "blue"}, {"pool": "172.18.0.0/16"}, "--ipam-opt network=blue"),
        ({"network": "blue"}, {"gateway": "10.1.0.2/20"}, "give --gateway 10.1.0.1"),
        ({"network": "blue"}, {"com.docker.network.internal": True}, "leave --internal out"),
        ({"network": "blue"}, {"v6": ""}, "leave --ipv6 out"),
        ({"colour": "red"}, {}, "option colour means nothing to meshd; known: network, driver, parent, mode"),
        ({"encrypted": "true"}, {}, "encryption"),
        ({"driver": "nosuch"}, {"pool": "10.9.0.0/24"}, "unknown driver 'nosuch'; one of overlay"),
        ({"mode": "bridge"}, {"pool": "10.9.0.0/24"}, "an overlay network has no mode"),
        ({"driver": "macvlan", "mode": "l2"}, {"pool": "10.9.0.0/24"}, "macvlan has no mode 'l2'"),
        ({"broadcast": "maybe"}, {"pool": "10.9.0.0/24"}, "option broadcast cannot be 'maybe'; yes or no"),
        ({"mtu": "big"}, {"pool": "10.9.0.0/24"}, "option mtu cannot be 'big'; a whole number"),
        ({"driver": "bridge"}, {}, "its driver is overlay, not bridge; choose another --subnet"),
        ({}, {"pool": "10.1.0.0/24"}, "overlaps network blue"),
        ({}, {"pool": "10.9.0.0"}, "host bits|prefix"),
        ({}, {"pool": "10.9.0.0/24", "aux": {"x": "10.8.0.1/24"}}, "outside the subnets"),
        ({"network": 7}, {}, "-o: expected `str`"),
    ],
)
async def test_a_docker_network_that_cannot_be_is_refused_and_nothing_is_kept(options, kw, words):
    engine = Engine(World().hosts[0])
    await blue(engine.cluster)
    before = len(engine.cluster.journal)
    answer = await engine.create(**{"options": options, "pool": "10.1.0.0/20", **kw})
    assert any(part in answer["Err"] for part in words.split("|")), answer["Err"]
    assert len(engine.cluster.journal) == before
    assert [network.name for network in engine.cluster.networks.values()] == ["blue"]


async def test_without_a_name_it_is_a_network_of_its_own_which_the_other_engine_joins_by_its_subnet():
    world = World(2)
    one, two = map(Engine, world.hosts)
    options = {"mtu": "1400"}
    assert await one.create(NET, ipam={}, pool="10.9.0.0/24", options=options, aux={"r": "10.9.0.9"}) == {}
    (network,) = one.cluster.networks.values()
    assert (network.name, network.driver, network.mtu) == (NET[:12], "overlay", 1400)
    assert await two.create(NET2, ipam={}, pool="10.9.0.0/24", aux={"r": "10.9.0.9"}) == {}
    assert len(two.cluster.networks) == 1
    await one.run(EP, NET)
    await two.run(EP2, NET2)
    addresses = {ip for _, (ip,) in two.endpoints()}
    assert len(addresses) == 2
    # who made it removes its own: the other still has an endpoint, and makes it anew when it has none
    await one.stop(EP, NET)
    assert await one.well("NetworkDriver.DeleteNetwork", {"NetworkID": NET}) == {}
    assert len(two.cluster.networks) == 1
    await two.stop(EP2, NET2)
    assert await one.create(NET, ipam={}, pool="10.9.0.0/24") == {}
    assert await one.well("NetworkDriver.DeleteNetwork", {"NetworkID": NET}) == {}
    assert len(two.cluster.networks) == 0
    assert "Err" not in await two.run(EP2, NET2)
    (network,) = one.cluster.networks.values()
    assert (network.name, network.mtu) == (NET2[:12], 1450)
    await two.stop(EP2, NET2)
    assert await two.well("NetworkDriver.DeleteNetwork", {"NetworkID": NET2}) == {}
    assert len(one.cluster.networks) == 0


async def test_two_networks_made_at_once_for_one_subnet_become_one_when_the_hosts_know_both():
    world = World(2)
    one, two = map(Engine, world.hosts)
    world.gossip = False
    await one.create(NET, ipam={}, pool="10.9.0.0/24")
    await two.create(NET2, ipam={}, pool="10.9.0.0/24")
    world.heal()
    await one.run(EP, NET)
    await two.run(EP2, NET2)
    assert len({endpoint.network for endpoint in one.cluster.endpoints.values()}) == 1


async def test_a_free_subnet_is_drawn_where_none_is_given():
    engine = Engine(World().hosts[0])
    await blue(engine.cluster)
    assert await engine.create(ipam={}, v6="") == {}
    made = next(n for n in engine.cluster.networks.values() if n.name == NET[:12])
    assert [subnet.cidr.partition("/")[2] for subnet in made.subnets] == ["20", "64"]
    await engine.run(families=(4, 6))


async def test_dockers_own_ipam_gives_an_address_twice_and_the_error_says_what_to_do():
    world = World(2)
    one, two = map(Engine, world.hosts)
    for engine, docker_id in ((one, NET), (two, NET2)):
        assert await engine.create(docker_id, pool="10.9.0.0/24", gateway="10.9.0.1/24") == {}
    interface = {"Address": "10.9.0.2/24", "AddressIPv6": "", "MacAddress": ""}
    body = {"NetworkID": NET, "EndpointID": EP, "Interface": interface, "Options": {}}
    assert set((await one.well("NetworkDriver.CreateEndpoint", body))["Interface"]) >= {"MacAddress"}
    said = await two.refused("NetworkDriver.CreateEndpoint", {**body, "NetworkID": NET2, "EndpointID": EP2})
    assert "10.9.0.2 of network" in said
    assert "--ipam-driver meshd" in said


async def test_an_address_that_the_network_leaves_out_is_no_containers():
    engine = await site(exclude=("10.1.0.9",))
    assert "it is excluded" in (await engine.run(ip="10.1.0.9"))["Err"]


async def test_aux_addresses_are_given_to_nobody_as_long_as_the_docker_network_is_there():
    engine = Engine(World().hosts[0])
    await blue(engine.cluster)
    said = {"options": {"network": "blue"}, "ipam": {"network": "blue"}, "aux": {"router": "10.1.0.2"}}
    assert await engine.create(**said) == {}
    assert engine.cluster.desk.held == {}
    await engine.run()
    assert engine.endpoints() == [("e" * 12, ["10.1.0.3"])]
    engine.cluster.usage.unreserve(
        next(iter(engine.cluster.usage.of(next(iter(engine.cluster.networks))).holders[2]))
    )
    keep_all_aux(engine.cluster)  # as after a restart
    await engine.run(EP2)
    assert engine.endpoints()[-1][1] == ["10.1.0.4"]
    await engine.stop(EP, release=False)
    await engine.stop(EP2)
    await engine.well("NetworkDriver.DeleteNetwork", {"NetworkID": NET})
    assert free_counts(engine.cluster) == {}


async def test_a_network_removed_under_dockers_hands_is_said_to_be_and_one_made_anew_is_found():
    engine = await site()
    await networks.remove_network(engine.cluster, "blue")
    body = {"NetworkID": NET, "EndpointID": EP, "Interface": {"Address": "10.1.0.2/20"}}
    assert (
        "network blue, which this Docker network is, was removed; docker network rm a1b2c3d4e5f6"
        in await engine.refused("NetworkDriver.CreateEndpoint", body)
    )
    await blue(engine.cluster)
    assert "Err" not in await engine.post("NetworkDriver.CreateEndpoint", body)


async def test_a_full_disk_leaves_neither_docker_network_nor_network():
    engine = Engine(World().hosts[0])
    commit, calls = engine.cluster.commit, []

    async def second_fails(items, forget=()):
        calls.append(items)
        engine.cluster.disk_full = len(calls) == 2
        await commit(items, forget)

    engine.cluster.commit = second_fails
    answer = await engine.create(pool="10.9.0.0/24")
    assert "the disk is full" in answer["Err"]
    assert engine.cluster.networks == {}
    assert list(engine.cluster.store.live(Kind.DOCKER_NETWORK)) == []


# --- endpoints ------------------------------------------------------------------------------------------------
async def test_a_container_from_run_to_stop():
    engine = await site()
    made = await engine.run()
    ((id_, endpoint),) = engine.cluster.endpoints.items()
    attachment = engine.cluster.attachments[id_]
    assert made["Interface"] == {"Address": "", "AddressIPv6": "", "MacAddress": endpoint.mac.hex(":")}
    assert engine.given["Address"] == f"{text_ip(endpoint.ips[0])}/20"
    assert made["InterfaceName"] == {"SrcName": attachment.peer_if, "DstPrefix": "eth"}
    assert made["Gateway"] == "10.1.0.1"
    assert "DisableGatewayService" not in made
    assert attachment.owner == f"docker/{NET}/{EP}"
    assert endpoint.name == EP[:12]
    ids = {"NetworkID": NET, "EndpointID": EP}
    assert (await engine.well("NetworkDriver.EndpointOperInfo", ids))["Value"] == {
        "meshd.endpoint": id_.hex(),
        "meshd.network": "blue",
    }
    again = await engine.well(
        "NetworkDriver.CreateEndpoint", {**ids, "Interface": {"Address": engine.given["Address"]}}
    )
    assert again["Interface"]["MacAddress"] == endpoint.mac.hex(":")  # the same endpoint
    await engine.stop()
    await engine.stop()  # each of these may come twice
    assert engine.cluster.endpoints == {}
    await trio.testing.wait_all_tasks_blocked()
    assert engine.cluster.kernel.links == {}
    assert free_counts(engine.cluster) == {}
    assert engine.cluster.desk.held == {}


async def test_an_endpoint_that_was_renamed_meanwhile_is_the_same_when_docker_asks_again():
    engine = await site()
    await engine.run()
    (id_,) = engine.cluster.endpoints
    assert await amend.rename(engine.cluster, id_, "web", ("www",))
    body = {
        "NetworkID": NET,
        "EndpointID": EP,
        "Interface": {"Address": engine.given["Address"]},
        "Options": {},
    }
    await engine.well("NetworkDriver.CreateEndpoint", body)
    assert [name for name, _ in engine.endpoints()] == ["web"]


async def test_a_restarted_container_with_a_fixed_address_keeps_its_mac():
    engine = await site()
    first = await engine.run(EP, ip="10.1.0.77")
    await engine.stop(EP)
    second = await engine.run(EP2, ip="10.1.0.77")
    assert second["Interface"]["MacAddress"] == first["Interface"]["MacAddress"]
    assert engine.endpoints() == [(EP2[:12], ["10.1.0.77"])]


async def test_names_that_docker_does_not_tell_may_be_given_as_options():
    engine = await site()
    await engine.run(EP, name="web", alias="www,front")
    (endpoint,) = engine.cluster.endpoints.values()
    assert (endpoint.name, endpoint.aliases) == ("web", ("www", "front"))


@pytest.mark.parametrize(
    "kw, words",
    [
        ({"colour": "red"}, "driver-opt colour means nothing to meshd; known: name, alias"),
        ({"name": "-x"}, "name: not 1 to 63 of"),
        ({"name": 7}, "--driver-opt"),
        ({"mac": "03:00:00:00:00:01"}, "not a unicast address"),
        ({"mac": "no mac"}, "not of the form"),
    ],
)
async def test_an_endpoint_that_cannot_be_leaves_nothing_once_docker_gives_its_address_back(kw, words):
    engine = await site()
    before = len(engine.cluster.journal)
    assert words in (await engine.run(**kw))["Err"]
    await engine.well(
        "IpamDriver.ReleaseAddress",
        {"PoolID": engine.pools[NET, 4], "Address": engine.given["Address"].partition("/")[0]},
    )
    assert free_counts(engine.cluster) == {}
    assert (len(engine.cluster.journal), engine.cluster.kernel.links) == (before, {})


async def test_a_mac_that_is_given_is_used_and_not_answered():
    engine = await site()
    made = await engine.run(mac="02:42:ac:11:00:02")
    assert made["Interface"]["MacAddress"] == ""  # Docker takes an answer to what it said itself for an error
    (endpoint,) = engine.cluster.endpoints.values()
    assert endpoint.mac.hex(":") == "02:42:ac:11:00:02"


async def test_what_the_kernel_refuses_is_undone_and_told_in_its_words():
    engine = await site()
    engine.cluster.kernel.fail_create = KernelError("veth", errno=12, words="out of memory")
    assert "out of memory" in (await engine.run())["Err"]
    assert engine.cluster.endpoints == {}
    assert free_counts(engine.cluster) == {}


async def test_both_families_of_an_endpoint_are_one_index_also_when_two_ask_in_turn():
    engine = await site(subnets=("10.1.0.0/20", "fd00:1::/64"))
    await engine.run(EP, families=(4, 6))
    await engine.run(EP2, families=(4, 6))
    assert [ips for _, ips in engine.endpoints()] == [["10.1.0.2", "fd00:1::2"], ["10.1.0.3", "fd00:1::3"]]


async def test_where_docker_asks_for_one_family_the_other_is_answered():
    engine = await site(subnets=("10.1.0.0/20", "fd00:1::/64"))
    made = await engine.run(EP)
    assert made["Interface"]["AddressIPv6"] == "fd00:1::2/64"
    assert made["GatewayIPv6"] == "fd00:1::1"


async def test_addresses_that_do_not_go_together_are_told_which_do():
    engine = await site(subnets=("10.1.0.0/20", "fd00:1::/64"))
    said = (await engine.run(EP, ip="10.1.0.7", ip6="fd00:1::9", families=(4, 6)))["Err"]
    assert "10.1.0.7 goes 10.1.0.7, fd00:1::7" in said


async def test_no_address_from_docker_is_an_address_from_meshd():
    engine = Engine(World().hosts[0])
    await blue(engine.cluster)
    assert await engine.create(options={"network": "blue"}, pool="0.0.0.0/0") == {}  # --ipam-driver null
    engine.pools = {}
    made = await engine.run(families=())
    assert made["Interface"]["Address"] == "10.1.0.2/20"


@pytest.mark.parametrize(
    "address, words",
    [
        ("10.2.0.1", "outside subnet 10.1.0.0/20"),
        ("10.1.0.1", "it is the gateway"),
        ("10.1.0.0", "subnet's own address"),
        ("fd00::1", "outside subnet"),
        ("no address", "not an IPv4 or IPv6 address"),
        ("10.1.0.2", "in use by endpoint"),
    ],
)
async def test_an_address_that_cannot_be_given_is_refused_in_words(address, words):
    engine = await site()
    await engine.run()
    body = {"PoolID": engine.pools[NET, 4], "Address": address, "Options": {}}
    assert words in await engine.refused("IpamDriver.RequestAddress", body)


async def test_a_full_subnet_is_followed_by_the_networks_next_with_its_gateway_and_the_way_to_the_first():
    engine = await site(subnets=("10.1.0.0/29", "10.2.0.0/24"))
    for number in range(5):
        await engine.run(f"{number:064x}")
    made = await engine.run(EP)
    assert engine.given["Address"] == "10.2.0.2/24"
    assert made["Gateway"] == "10.2.0.1"
    assert made["StaticRoutes"] == [{"Destination": "10.1.0.0/29", "RouteType": 1}]
    await engine.stop(EP)
    assert len(engine.endpoints()) == 5
    second = {"Options": {"network": "blue"}, "Pool": "10.2.0.0/24"}
    got = await engine.well("IpamDriver.RequestPool", second)
    assert got["Data"] == {"com.docker.network.gateway": "10.2.0.1/24"}
    given = await engine.well("IpamDriver.RequestAddress", {"PoolID": got["PoolID"]})
    assert given["Address"] == "10.2.0.3/24"  # .2 rests


@pytest.mark.parametrize("pool", ["", "x", "||", "zz|10.1.0.0/20|", "|10.1.0.0/20|x", "|10.1.0.5/20|"])
async def test_a_pool_that_meshd_has_not_made_up_is_refused(pool):
    engine = await site()
    assert "no pool of meshd's" in await engine.refused("IpamDriver.RequestAddress", {"PoolID": pool})


@pytest.mark.parametrize(
    "body, words",
    [
        ({"Options": {"network": "nosuch"}}, "no network 'nosuch'"),
        ({"Options": {"colour": "red"}}, "ipam-opt colour means nothing to meshd; known: network"),
        ({"Options": {"network": "blue"}, "Pool": "10.9.0.0/24"}, "network blue has subnet 10.1.0.0/20"),
        ({"Options": {"network": "blue"}, "V6": True}, "leave --ipv6 out"),
        ({"Options": {"network": "six"}}, "Docker 28 or later"),
        ({"Pool": "10.9.0.1/24"}, "host bits set"),
        ({"Pool": "10.9.0.0/24", "SubPool": "10.8.0.0/25"}, "outside subnet 10.9.0.0/24"),
        ({"Pool": "10.9.0.0/24", "SubPool": "fd00::/100"}, "outside subnet 10.9.0.0/24"),
    ],
)
async def test_a_pool_that_cannot_be_is_refused(body, words):
    engine = await site()
    await blue(engine.cluster, "six", subnets=("fd00:6::/64",))
    assert words in await engine.refused("IpamDriver.RequestPool", body)


async def test_an_ip_range_is_this_engines_part_of_the_network_wherever_its_addresses_are_owned():
    world = World(2)
    await blue(world.hosts[0])
    engine = Engine(world.hosts[1])
    for part in ("10.1.0.128/25", "10.1.15.0/28"):
        body = {"SubPool": part, "Pool": "10.1.0.0/20", "Options": {"network": "blue"}}
        pool = (await engine.well("IpamDriver.RequestPool", body))["PoolID"]
        for _ in range(3):
            given = (await engine.well("IpamDriver.RequestAddress", {"PoolID": pool}))["Address"]
            assert ipaddress.ip_interface(given).ip in ipaddress.ip_network(part)
    assert len(engine.cluster.desk.held) == 6


async def test_an_address_whose_endpoint_never_comes_is_free_again():
    engine = await site()
    pool = engine.pools[NET, 4]
    first = await engine.well("IpamDriver.RequestAddress", {"PoolID": pool})
    assert first["Address"] == "10.1.0.2/20"
    held.expire(engine.cluster)
    assert len(engine.cluster.desk.held) == 1
    engine.cluster.world.time += config.HELD_S
    held.expire(engine.cluster)
    assert engine.cluster.desk.held == {}
    assert free_counts(engine.cluster) == {}
    assert (await engine.well("IpamDriver.RequestAddress", {"PoolID": pool}))["Address"] == "10.1.0.2/20"


# --- what dockerd forgets -------------------------------------------------------------------------------------
async def test_a_new_endpoint_with_the_address_of_one_that_docker_forgot_takes_its_place():
    """dockerd with its own IPAM was killed: no Leave, no DeleteEndpoint, the same address again."""
    engine = Engine(World().hosts[0])
    await engine.create(pool="10.9.0.0/24", gateway="10.9.0.1/24")
    body = {"NetworkID": NET, "EndpointID": EP, "Interface": {"Address": "10.9.0.2/24"}, "Options": {}}
    first = await engine.well("NetworkDriver.CreateEndpoint", body)
    second = await engine.well("NetworkDriver.CreateEndpoint", {**body, "EndpointID": EP2})
    assert first == second  # with the address goes the MAC
    assert engine.endpoints() == [(EP2[:12], ["10.9.0.2"])]
    assert len(engine.cluster.kernel.links) == 1
    assert await engine.well("NetworkDriver.DeleteEndpoint", {"NetworkID": NET, "EndpointID": EP}) == {}
    assert engine.endpoints() == [(EP2[:12], ["10.9.0.2"])]


async def test_another_docker_networks_endpoint_is_never_replaced():
    engine = await site()
    await engine.run(EP, ip="10.1.0.7")
    await engine.create(NET2, options={"network": "blue"}, pool="10.1.0.0/20")
    body = {"NetworkID": NET2, "EndpointID": EP2, "Interface": {"Address": "10.1.0.7/20"}, "Options": {}}
    assert "in use" in await engine.refused("NetworkDriver.CreateEndpoint", body)
    assert engine.endpoints() == [(EP[:12], ["10.1.0.7"])]


async def test_an_address_is_given_again_when_the_link_of_who_had_it_is_gone_and_not_before():
    engine = await site()
    await engine.run(EP, ip="10.1.0.7")
    body = {"PoolID": engine.pools[NET, 4], "Address": "10.1.0.7"}
    assert "in use" in await engine.refused("IpamDriver.RequestAddress", body)
    await engine.well(
        "IpamDriver.ReleaseAddress", body
    )  # of an endpoint long gone: this one is somebody else's
    assert len(engine.endpoints()) == 1
    engine.cluster.kernel.links.clear()
    await engine.run(EP2, ip="10.1.0.7")
    assert engine.endpoints() == [(EP2[:12], ["10.1.0.7"])]


async def test_a_peer_that_was_put_back_and_an_address_that_was_given_up_end_the_endpoint():
    engine = await site()
    await engine.run(EP, ip="10.1.0.7")
    await engine.well("NetworkDriver.Leave", {"NetworkID": NET, "EndpointID": EP})
    (id_,) = engine.cluster.endpoints
    assert engine.cluster.desk.left == {id_}
    await engine.well("IpamDriver.ReleaseAddress", {"PoolID": engine.pools[NET, 4], "Address": "10.1.0.7"})
    assert engine.endpoints() == []


async def test_housekeeping_asks_for_a_peer_again_once_its_runtime_has_said_that_it_leaves():
    """dockerd was killed between Leave and DeleteEndpoint: the peer lies in the host's namespace again."""
    engine = await site()
    await engine.run(EP)
    (id_,), here = engine.cluster.endpoints, set()
    moved, since = set(), {}
    (attachment,) = engine.cluster.attachments.values()
    engine.cluster.kernel.links_exist = lambda names: {name for name in names if name in here}
    assert await _never_moved(engine.cluster, moved, since) == []
    engine.cluster.world.time += config.VANISHED_GRACE_S
    assert await _never_moved(engine.cluster, moved, since) == []
    here.add(attachment.peer_if)
    assert await _never_moved(engine.cluster, moved, since) == []  # it was seen to be gone: asked for no more
    await engine.well("NetworkDriver.Leave", {"NetworkID": NET, "EndpointID": EP})
    assert await _never_moved(engine.cluster, moved, since) == [id_]


@pytest.mark.parametrize("jump_ms", [-(10**12), 10**12])
async def test_a_peer_that_nobody_took_is_found_after_the_grace_however_the_wall_clock_jumps(jump_ms):
    engine = await site()
    await engine.run(EP)
    (id_,), cluster, since = engine.cluster.endpoints, engine.cluster, {}
    cluster.kernel.links_exist = set
    wall_ms = cluster.wall_ms
    cluster.wall_ms = lambda: wall_ms() + jump_ms
    assert await _never_moved(cluster, set(), since) == []
    cluster.world.time += config.VANISHED_GRACE_S - 1
    assert await _never_moved(cluster, set(), since) == []
    cluster.world.time += 1
    assert await _never_moved(cluster, set(), since) == [id_]


async def test_a_host_that_drains_gives_docker_no_address():
    engine = await site()
    engine.cluster.draining = True
    assert "draining" in await engine.refused("IpamDriver.RequestAddress", {"PoolID": engine.pools[NET, 4]})
    assert free_counts(engine.cluster) == {}


async def test_deleting_a_docker_network_ends_what_docker_forgot_on_it_and_nothing_else():
    engine = await site()
    await engine.run(EP)
    await engine.create(NET2, options={"network": "blue"}, ipam={"network": "blue"})
    await engine.run(EP2, NET2)
    await engine.well("NetworkDriver.DeleteNetwork", {"NetworkID": NET})
    assert [name for name, _ in engine.endpoints()] == [EP2[:12]]


# --- the way out and published ports --------------------------------------------------------------------------
@pytest.mark.parametrize(
    "more, way",
    [
        ({"internal": True}, {"DisableGatewayService": True}),
        ({"options": {"default-route": "no"}}, {"DisableGatewayService": True}),
        ({}, {"Gateway": "10.1.0.1"}),
    ],
)
async def test_a_network_without_a_way_out_gets_no_hidden_second_one(more, way):
    engine = await site(**more)
    made = await engine.run()
    assert {key: made[key] for key in ("Gateway", "DisableGatewayService") if key in made} == way


async def test_ports_are_published_once_the_network_is_the_way_out():
    engine = await site()
    ports = [
        {"HostPort": 8080, "Port": 80},
        {"HostPort": 8000, "HostPortEnd": 8000, "Port": 90},
        {"HostPort": 8001, "HostPortEnd": 8001, "Port": 91},
        {"HostPort": 53, "HostPortEnd": 53, "Port": 53, "Proto": 17, "HostIP": "192.0.2.1"},
    ]
    assert "Err" not in await engine.run(ports=ports)
    (endpoint,) = engine.cluster.endpoints.values()
    assert endpoint.published == ("8000-8001:90-91/tcp", "8080:80/tcp", "192.0.2.1:53:53/udp")
    again = {
        "NetworkID": NET,
        "EndpointID": EP,
        "Options": {"com.docker.network.portmap": [{"Proto": 6, "Port": 80, "HostPort": 8080}]},
    }
    before = len(engine.cluster.journal)
    assert await engine.well("NetworkDriver.ProgramExternalConnectivity", again) == {}
    assert len(engine.cluster.journal) == before
    await engine.well("NetworkDriver.RevokeExternalConnectivity", {"NetworkID": NET, "EndpointID": EP})
    (endpoint,) = engine.cluster.endpoints.values()
    assert endpoint.published == ()


async def test_a_port_that_is_left_to_meshd_is_a_free_one():
    engine = await site()
    engine.cluster.kernel.sockets.append(Listener(6, (4, 6), None, 8001, 0))
    await engine.run(EP, ports=[{"HostPort": 8000, "HostPortEnd": 8002}])
    await engine.run(EP2, ports=[{"HostPort": 8000, "HostPortEnd": 8002}])
    await engine.run(EP3, ports=[{"HostPort": 0, "HostPortEnd": 0}])
    published = {endpoint.name: endpoint.published for endpoint in engine.cluster.endpoints.values()}
    assert published[EP[:12]] == ("8000:80/tcp",)
    assert published[EP2[:12]] == ("8002:80/tcp",)
    low, high = config.DOCKER_PORTS
    assert low <= int(published[EP3[:12]][0].partition(":")[0]) <= high


@pytest.mark.parametrize(
    "port, words",
    [
        ({"HostPort": 22, "HostPortEnd": 22}, "port 22/tcp of this host is taken by a socket of uid 0"),
        ({"HostPort": 8000, "HostPortEnd": 8000}, "port 8000/tcp of this host is endpoint"),
        ({"HostIP": "198.51.100.1"}, "not an address of this host"),
        ({"Proto": 47}, "protocol 47 is not one of tcp, udp, sctp"),
        ({"Port": 0}, "-p: expected"),
        ({"HostIP": "::1"}, "publish on 127.0.0.1 instead"),
    ],
)
async def test_a_port_that_cannot_be_published_is_told_and_the_endpoint_goes_with_its_container(port, words):
    engine = await site()
    engine.cluster.kernel.sockets.append(Listener(6, (4, 6), None, 22, 0))
    await engine.run(EP3, ports=[{"HostPort": 8000, "HostPortEnd": 8000}])
    assert words in (await engine.run(EP, ports=[port]))["Err"]
    await engine.stop(EP)
    assert [name for name, _ in engine.endpoints()] == [EP3[:12]]


async def test_ports_that_the_firewall_refuses_are_not_published():
    engine = await site()
    await engine.run()
    full = KernelError("set", errno=28, words="no room")
    engine.cluster.reconciler.refused = {PutElement(element("everywhere4", b"\x06", b"\x1f\x90"), b""): full}
    port = {"Proto": 6, "Port": 80, "HostPort": 8080}
    body = {"NetworkID": NET, "EndpointID": EP, "Options": {"com.docker.network.portmap": [port]}}
    assert "no room" in await engine.refused("NetworkDriver.ProgramExternalConnectivity", body)
    (endpoint,) = engine.cluster.endpoints.values()
    assert endpoint.published == ()


async def test_an_internal_network_publishes_nothing():
    engine = await site(internal=True)
    assert "nothing leads into it" in (await engine.run(ports=[{}]))["Err"]


# --- the LAN itself -------------------------------------------------------------------------------------------
@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


async def test_on_a_macvlan_network_an_address_that_a_stranger_has_is_passed_over_before_docker_hears_it(
    autojump_clock,
):
    engine = Engine(World().hosts[0])
    options = {"driver": "macvlan", "parent": "eth0", "mode": "private"}
    assert await engine.create(ipam={}, pool="10.44.0.0/24", gateway="10.44.0.254", options=options) == {}
    engine.cluster.kernel.lan.held = {bytes((10, 44, 0, last)): mac for last, mac in OTHERS}
    made = await engine.run()
    assert engine.endpoints() == [(EP[:12], ["10.44.0.2"])]
    assert made["Gateway"] == "10.44.0.254"
    assert set(engine.cluster.kernel.links) == {made["InterfaceName"]["SrcName"]}
    assert (await engine.run(EP2))["InterfaceName"] != made["InterfaceName"]
    assert [ips for _, ips in engine.endpoints()] == [
        ["10.44.0.2"],
        ["10.44.0.5"],
    ]  # .3 and .4 are strangers'
    assert "is the LAN itself" in (await engine.run(EP3, ports=[{}]))["Err"]
    for endpoint in (EP, EP2, EP3):
        await engine.stop(endpoint)
    await trio.testing.wait_all_tasks_blocked()
    assert engine.cluster.kernel.links == {}


async def test_an_ipvlan_network_in_a_routed_mode_has_the_device_itself_as_way_out(autojump_clock):
    engine = Engine(World().hosts[0])
    await engine.create(ipam={}, pool="10.44.0.0/24", options={"driver": "ipvlan", "mode": "l3"})
    made = await engine.run(ip="10.44.0.9")
    assert made["StaticRoutes"] == [{"Destination": "0.0.0.0/0", "RouteType": 1}]
    assert "Gateway" not in made
