"""What a new network becomes, and each request that is refused with its line."""

import ipaddress

import msgspec
import pytest

from meshd.config import PoolSettings
from meshd.errors import BadRequest, Conflict, MeshdError, Unavailable
from meshd.model import HostFacts, Item, Kind, Network, Removed, Subnet, Version
from meshd.state.lan import vlan_of
from meshd.state.layout import Layout
from meshd.state.networks import NetworkRequest, plan_network, taken_prefixes
from meshd.state.pools import ula48

ID, A, B = b"N" * 16, b"A" * 16, b"B" * 16
SECRET = b"s" * 32


def item(name, cidr, kind=Kind.NETWORK, **fields):
    gateway = str(ipaddress.ip_network(cidr).network_address + 1)
    body = Network(name, "overlay", (Subnet(cidr, gateway),), **fields)
    return Item(kind, name.encode().ljust(16, b"."), Version(1, 0, A), body)


HOSTS = {
    A: HostFacts("host1", bytes(4), 4789, 1500, routes=("192.168.0.0/24", "0.0.0.0/0")),
    B: HostFacts("host2", bytes(4), 4789, 1400, routes=("10.0.0.0/16", "192.168.5.0/24", "rubbish")),
}
BLUE = item("blue", "172.20.0.0/16", vni=77)
LOCAL = item("lan", "172.30.0.0/24", Kind.LOCAL_NETWORK)
YARD = Item(Kind.NETWORK, b"Y" * 16, Version(1, 0, A), Network(
    "yard", "macvlan", (Subnet("10.44.0.0/24", "10.44.0.1"),), options={"parent": "eth7", "mode": "bridge"}
))  # fmt: skip
LAN = {"driver": "macvlan", "subnets": ("10.45.0.0/24",)}
GONE = Item(Kind.NETWORK, b"G" * 16, Version(9, 0, A), Removed("grey"), dead=True)


def plan(
    name="green", builtin=False, networks=(BLUE, LOCAL, GONE), pools=None, routes=(), hosts=HOSTS, **request
):
    return plan_network(
        NetworkRequest(name, **request),
        ID,
        creator=A,
        created_ms=1234,
        networks=networks,
        hosts=hosts,
        pools=pools or PoolSettings(),
        secret=SECRET,
        routes=routes,
        builtin=builtin,
    )


def test_an_overlay_asked_for_by_name_alone_gets_everything_else_chosen():
    network = plan()
    (subnet,) = network.subnets
    assert ipaddress.ip_network(subnet.cidr).prefixlen == 20
    assert ipaddress.ip_network(subnet.cidr).subnet_of(ipaddress.ip_network("10.128.0.0/9"))
    assert network == Network(
        name="green",
        driver="overlay",
        subnets=(subnet,),
        vni=network.vni,
        mtu=1350,
        creator=A,
        created_ms=1234,
    )
    assert network.vni >= 4096
    assert network == plan()
    assert Layout.build(ID, network).spaces[0].size == 4096


def test_a_bridge_has_no_vni_and_its_own_hosts_mtu():
    network = plan(driver="bridge", ipv6=True, internal=True, labels={"team": "a"})
    assert (network.vni, network.mtu, network.internal, network.labels) == (0, 1500, True, {"team": "a"})
    v4, v6 = (ipaddress.ip_network(subnet.cidr) for subnet in network.subnets)
    assert (v4.prefixlen, v6.prefixlen) == (24, 64)
    assert v6.subnet_of(ula48(SECRET))


@pytest.mark.parametrize(
    ("subnets", "ipv6", "versions"),
    [
        ((), False, [4]),
        ((), True, [4, 6]),
        (("172.16.0.0/24",), True, [4, 6]),
        (("fd00:1::/64",), False, [6]),
        (("fd00:1::/64",), True, [6]),
        (("fd00:1::/64", "172.16.0.0/24"), False, [4, 6]),
    ],
)
def test_families_follow_from_what_was_asked(subnets, ipv6, versions):
    network = plan(subnets=subnets, ipv6=ipv6)
    prefixes = [ipaddress.ip_network(subnet.cidr) for subnet in network.subnets]
    assert [prefix.version for prefix in prefixes] == versions
    assert {str(prefix) for prefix in prefixes} >= set(subnets)
    assert network.subnets == plan(subnets=subnets[::-1], ipv6=ipv6).subnets


def test_defaults_keep_clear_of_networks_of_all_hosts_routes_and_of_this_hosts_own():
    pools = PoolSettings(v4=("10.0.0.0/15",))
    half = ipaddress.ip_network("10.1.0.0/16")
    chosen = ipaddress.ip_network(plan(pools=pools).subnets[0].cidr)
    assert chosen.subnet_of(half)
    other = ipaddress.ip_network(plan(pools=pools, networks=[item("x", str(chosen))]).subnets[0].cidr)
    assert other.subnet_of(half)
    assert not other.overlaps(chosen)
    with pytest.raises(Unavailable, match="no subnet is free: all 32 prefixes"):
        plan(pools=pools, routes=["10.1.0.0/16"])


def test_a_bridge_may_use_what_another_host_routes_but_not_what_its_own_does():
    assert plan(driver="bridge", subnets=("192.168.5.0/24",)).subnets[0].cidr == "192.168.5.0/24"
    with pytest.raises(Conflict, match=r"overlaps route 192\.168\.0\.0/24 of host1"):
        plan(driver="bridge", subnets=("192.168.0.0/25",))


def test_the_daemon_itself_makes_the_built_in_bridge():
    assert plan("bridge", builtin=True, driver="bridge").name == "bridge"


def test_a_removed_network_no_longer_holds_its_name():
    assert plan("grey").name == "grey"


def test_a_host_that_tells_nothing_leaves_the_defaults():
    assert plan(hosts={}).mtu == 1450
    assert plan(hosts={}, driver="bridge").mtu == 1500


def test_names_may_have_every_allowed_sign():
    for name in ("a", "0", "a.b-c_d", "x" * 63):
        assert plan(name).name == name


REFUSED = [
    ({"name": ""}, BadRequest, "network name '' is not allowed"),
    ({"name": "Blue"}, BadRequest, "network name 'Blue' is not allowed"),
    ({"name": "a\n"}, BadRequest, "network name 'a\\n' is not allowed"),
    ({"name": "-a"}, BadRequest, "network name '-a' is not allowed"),
    ({"name": "blue~ab12"}, BadRequest, "network name 'blue~ab12' is not allowed"),
    ({"name": "x" * 64}, BadRequest, f"network name '{'x' * 64}' is not allowed"),
    ({"name": "0a" * 16}, BadRequest, f"network name {'0a' * 16} has the form of an id"),
    ({"name": "none"}, BadRequest, "network name none is reserved: it always exists"),
    ({"name": "host"}, BadRequest, "network name host is reserved: it always exists"),
    ({"name": "bridge", "driver": "bridge"}, BadRequest, "network name bridge is reserved: it always exists"),
    ({"name": "blue"}, Conflict, "network blue exists"),
    ({"name": "lan"}, Conflict, "network lan exists"),
    ({"name": "old"}, Conflict, "network old is being removed"),
    ({"driver": "macvlan"}, BadRequest, "a macvlan network needs the LAN's own subnet"),
    ({"driver": "ipvlan"}, BadRequest, "an ipvlan network needs the LAN's own subnet"),
    ({"parent": "eth0"}, BadRequest, "an overlay network has no parent"),
    ({"driver": "bridge", "mode": "l2"}, BadRequest, "a bridge network has no mode"),
    (LAN | {"mode": "l2"}, BadRequest, "macvlan has no mode 'l2'"),
    (LAN | {"driver": "ipvlan", "mode": "bridge"}, BadRequest, "ipvlan has no mode 'bridge'"),
    (LAN | {"parent": "lo"}, BadRequest, "parent lo is the loopback device, which is on no LAN"),
    (LAN | {"parent": "a-very-long-name"}, BadRequest, "parent 'a-very-long-name' cannot be an interface's name"),
    (LAN | {"parent": "et/h0"}, BadRequest, "parent 'et/h0' cannot be an interface's name"),
    (LAN | {"parent": "eth7", "mode": "vepa"}, Conflict,
     "parent eth7 is used in macvlan mode bridge by network yard"),
    (LAN | {"parent": "eth7", "driver": "ipvlan"}, Conflict,
     "parent eth7 is used in macvlan mode bridge by network yard"),
    (LAN | {"subnets": ("10.44.0.0/25",)}, Conflict, "subnet 10.44.0.0/25 overlaps network yard (10.44.0.0/24)"),
    (LAN | {"vni": 9}, BadRequest, "a macvlan network has no vni"),
    (LAN | {"options": {"default-route": "maybe"}}, BadRequest, "option default-route cannot be 'maybe'"),
    ({"options": {"check-subnet": "no"}}, BadRequest, "unknown option 'check-subnet' of an overlay network"),
    ({"driver": "foo"}, BadRequest, "unknown driver 'foo'"),
    ({"options": {"encrypted": ""}}, BadRequest,
     "option encrypted is refused: encryption of the data plane is not available in this version"),
    ({"options": {"speed": "9"}}, BadRequest, "unknown option 'speed' of an overlay network"),
    ({"driver": "bridge", "vni": 9}, BadRequest, "a bridge network has no vni"),
    ({"vni": 77}, Conflict, "vni 77 is used by network blue"),
    ({"mtu": 1400}, BadRequest, "mtu 1400 does not fit: host2's underlay has 1400 bytes, of which VXLAN takes 50"),
    ({"mtu": 1000, "ipv6": True}, BadRequest, "mtu 1000 is too small: IPv6 (RFC 8200) needs 1280"),
    ({"subnets": ("172.20.1.0/24",)}, Conflict, "subnet 172.20.1.0/24 overlaps network blue (172.20.0.0/16)"),
    ({"subnets": ("172.0.0.0/8",)}, Conflict, "subnet 172.0.0.0/8 overlaps network blue (172.20.0.0/16)"),
    ({"subnets": ("10.0.3.0/24",)}, Conflict, "subnet 10.0.3.0/24 overlaps route 10.0.0.0/16 of host2"),
    ({"subnets": ("172.31.0.0/24",), "routes": ("172.31.0.0/20",)}, Conflict,
     "subnet 172.31.0.0/24 overlaps route 172.31.0.0/20 of this host"),
    ({"subnets": ("172.16.0.5/24",)}, BadRequest, "subnet 172.16.0.5/24 has host bits set"),
    ({"subnets": ("172.16.0.0/24",), "gateways": ("172.17.0.1",)}, BadRequest,
     "gateway 172.17.0.1 is outside the subnets (172.16.0.0/24)"),
    ({"gateways": ("203.0.113.1",), "pools": PoolSettings(v4=("172.16.0.0/24",))}, BadRequest,
     "gateway 203.0.113.1 is outside the subnets (172.16.0.0/24)"),
    ({"labels": {"": "x"}}, BadRequest, "label '' is not allowed"),
    ({"labels": {"a\nb": "x"}}, BadRequest, "label 'a\\nb' is not allowed"),
    ({"labels": {"k" * 256: "x"}}, BadRequest, f"label '{'k' * 80}' is not allowed"),
    ({"labels": {"k": "v" * 1025}}, BadRequest, "label k: its value has 1025 characters"),
    ({"labels": {str(n): "" for n in range(65)}}, BadRequest, "65 labels; at most 64"),
    ({"labels": {str(n): "v" * 1024 for n in range(17)}}, BadRequest, "labels take 17432 bytes; at most 16384 together"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "error", "line"), REFUSED)
def test_a_bad_request_is_refused_in_one_line(request_, error, line):
    old = item("old", "172.29.0.0/24", removing=True)
    with pytest.raises(MeshdError) as caught:
        plan(networks=[BLUE, LOCAL, GONE, YARD, old], **request_)
    assert type(caught.value) is error
    assert caught.value.what == line
    assert "\n" not in caught.value.what + caught.value.hint


def test_a_peers_unreadable_network_does_not_keep_this_host_from_making_one():
    strange = msgspec.structs.replace(
        BLUE.body, name="odd", subnets=(Subnet("rubbish", ""), Subnet("::/0", ""))
    )
    assert plan(networks=[msgspec.structs.replace(BLUE, body=strange)]).name == "green"


def test_the_body_of_a_request_is_strict():
    body = msgspec.json.decode(
        b'{"name":"x","subnets":["10.1.0.0/24"],"mtu":null,"labels":{}}', type=NetworkRequest
    )
    assert body == NetworkRequest("x", subnets=("10.1.0.0/24",))
    for bad in (b'{"name":"x","speed":1}', b"{}", b'{"name":"x","mtu":"9"}', b'{"name":1}'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(bad, type=NetworkRequest)


def test_taken_prefixes_say_whose_they_are():
    assert [t.what for t in taken_prefixes([BLUE, GONE], HOSTS.values(), ["10.9.0.0/16"])] == [
        "network blue (172.20.0.0/16)",
        "route 192.168.0.0/24 of host1",
        "route 10.0.0.0/16 of host2",
        "route 192.168.5.0/24 of host2",
        "route 10.9.0.0/16 of this host",
    ]


@pytest.mark.parametrize(("driver", "mode"), [("macvlan", "bridge"), ("ipvlan", "l2")])
def test_a_network_that_is_the_lan_may_have_the_subnet_that_hosts_route_and_says_how_it_is_on_it(
    driver, mode
):
    lan = {"subnets": ("192.168.0.0/24",), "gateways": ("192.168.0.254",), "ip_range": ("192.168.0.64/26",)}
    network = plan(driver=driver, routes=("192.168.0.0/24",), **lan)
    assert network.options == {"mode": mode}, "without --parent each host finds its own"
    assert (network.vni, network.subnets) == (0, (Subnet("192.168.0.0/24", "192.168.0.254"),))
    space = Layout.build(ID, network).spaces[0]
    assert space.why_reserved(254) == "the gateway", "the LAN's router is nobody else's"
    named = plan(driver=driver, parent="eth0.10", options={"default-route": "no"}, **lan)
    assert named.options == {"mode": mode, "parent": "eth0.10", "default-route": "no"}


@pytest.mark.parametrize(
    ("driver", "flag", "words"),
    [("bridge", "host_access", "of a bridge network: its host reaches its endpoints anyway"),
     ("ipvlan", "host_access", "of an ipvlan network: the kernel keeps a host and its own endpoints apart"),
     ("ipvlan", "broadcast", "of an ipvlan network: the LAN carries what it carries")],
)  # fmt: skip
def test_what_only_an_overlay_can_have_is_refused_elsewhere_with_the_reason(driver, flag, words):
    with pytest.raises(BadRequest, match=words):
        plan(driver=driver, subnets=("192.168.0.0/24",), **{flag: True})


@pytest.mark.parametrize(
    ("name", "read"),
    [("eth0.10", ("eth0", 10)), ("bond0.4094", ("bond0", 4094)), ("a.b.7", ("a.b", 7)), ("eth0", None),
     ("eth0.0", None), ("eth0.4095", None), ("eth0.x", None), (".7", None)],
)  # fmt: skip
def test_a_parent_with_a_number_behind_a_dot_is_a_vlan_sub_interface(name, read):
    assert vlan_of(name) == read
