"""CNI by the specification's tables, over a cluster in memory (tests/unit/shell/fake_cluster.py): what each operation
answers in each version, and each error's code. Nothing is plumbed here; tests/lab/test_lab_cni.py does that."""

import json
from pathlib import Path

import pytest
import trio

from meshcni import plugin
from meshd.api import cnirecords
from meshd.api.cniconfig import VERSIONS
from meshd.errors import Conflict, KernelError, Unavailable
from meshd.kernel.sockets import Listener
from meshd.model import Kind
from meshd.plan.objects import Link
from meshd.plan.ops import PutLink
from meshd.shell import networks
from meshd.shell.attach import AttachRequest, Netns, attach
from meshd.state.networks import NetworkRequest
from tests.unit.api.cni_calls import NETNS, Runtime, address_dump, default_dump, link_answer
from tests.unit.shell.fake_cluster import BOOT, World, free_counts

V4, V6 = "10.1.0.0/24", "fd00:1::/64"


@pytest.fixture
async def world(nursery):
    world = World()
    world.nursery = nursery
    (host,) = world.hosts
    await networks.create_network(host, NetworkRequest("blue", "overlay", (V4, V6)))
    return world


@pytest.fixture
def host(world):
    return world.hosts[0]


@pytest.fixture
def runtime(host, tmp_path):
    (tmp_path / "cni-del").mkdir()
    return Runtime(host, tmp_path)


def mine(host):
    return [endpoint for endpoint in host.endpoints.values() if endpoint.host == host.me]


# --- ADD --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_result_has_its_versions_shape(host, runtime, version):
    told = await runtime.call("ADD", version=version)
    (endpoint,) = mine(host)
    assert told["cniVersion"] == version
    outside, inside = told["interfaces"]
    assert "sandbox" not in outside
    assert outside["name"].startswith("mh")
    assert (inside["name"], inside["sandbox"], inside["mac"]) == ("eth0", NETNS, endpoint.mac.hex(":"))
    assert [("mtu" in one) for one in (outside, inside)] == [version == "1.1.0"] * 2
    v4, v6 = told["ips"]
    assert (v4["address"], v4["gateway"], v4["interface"]) == ("10.1.0.2/24", "10.1.0.1", 1)
    assert (v6["address"], v6["gateway"], v6["interface"]) == ("fd00:1::2/64", "fd00:1::1", 1)
    families = ("4", "6") if version in ("0.3.1", "0.4.0") else (None, None)
    assert (v4.get("version"), v6.get("version")) == families
    assert told["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0", "gw": "fd00:1::1"}]
    assert told["dns"] == {}


async def test_the_network_is_the_configurations_unless_it_names_another(host, runtime):
    await networks.create_network(host, NetworkRequest("green", "overlay", ("10.2.0.0/24",)))
    assert (await runtime.call("ADD", {"network": "green"}))["ips"][0]["address"] == "10.2.0.2/24"


async def test_an_add_is_repeatable_and_gives_the_same(host, runtime):
    first = await runtime.call("ADD")
    (endpoint,) = mine(host)
    again = await runtime.call("ADD")  # its link waits outside: the first one's caller died
    runtime.link = link_answer(endpoint.mac)
    third = await runtime.call("ADD")
    assert first == again == third
    assert len(mine(host)) == 1


async def test_a_repeated_add_tells_that_it_made_nothing_and_moves_no_link_that_is_there(host, runtime):
    config = b'{"cniVersion":"1.1.0","name":"blue","type":"meshd"}'
    tags = [tag for tag, _ in await runtime.raw("ADD", config)]
    assert tags[:3] == [b"h", b"h", b"i"]
    assert [tag for tag, _ in await runtime.raw("ADD", config)][:2] == [b"n", b"h"]
    (endpoint,) = mine(host)
    runtime.link = link_answer(endpoint.mac)
    assert b"h" not in [tag for tag, _ in await runtime.raw("ADD", config)]


async def test_a_link_is_born_in_the_namespace_of_the_executable_where_its_process_is_seen(host, runtime):
    runtime.pid = 4711
    config = b'{"cniVersion":"1.1.0","name":"blue","type":"meshd"}'
    assert b"h" not in [tag for tag, _ in await runtime.raw("ADD", config)]
    ((peer, mac, *_),) = host.kernel.links.values()
    assert (peer, host.kernel.moved) == ("eth0", {"eth0"})
    runtime.link = link_answer(mac)
    assert (await runtime.raw("ADD", config))[0] == (b"n", b"")
    assert len(mine(host)) == 1


async def test_a_container_that_comes_back_in_another_namespace_is_attached_anew(host, runtime):
    before = await runtime.call("ADD")
    runtime.cookie = 8
    after = await runtime.call("ADD")
    assert len(mine(host)) == 1
    assert before["ips"] != after["ips"]  # the address rests
    assert [a.netns_cookie for a in host.attachments.values()] == [8]


async def test_an_interface_that_is_not_ours_is_looked_at_twice_and_then_an_error(host, runtime):
    runtime.link = link_answer(b"\2strng")
    config = b'{"cniVersion":"1.1.0","name":"blue","type":"meshd"}'
    assert await runtime.raw("ADD", config) == [(b"a", b""), (b".", b"")]
    runtime.turn = 2
    code, said = await runtime.code("ADD")
    assert (code, mine(host)) == (101, [])
    assert "the container has an interface eth0 already" in said


async def test_what_an_attach_by_hand_holds_is_not_given_away(host, runtime):
    await attach(host, AttachRequest("blue", Netns(7, BOOT), name="web"))
    code, said = await runtime.code("ADD")
    assert code == 101
    assert "meshctl attach's, named web" in said
    assert len(mine(host)) == 1


async def test_a_port_that_a_socket_has_is_published_only_if_the_socket_is_the_containers_own(host, runtime):
    host.kernel.sockets = [Listener(6, (4, 6), None, 8080, 0, 55), Listener(17, (4, 6), None, 53, 0, 0)]
    config = {
        "runtimeConfig": {
            "portMappings": [{"hostPort": p, "containerPort": 80, "protocol": "tcp"} for p in (8080, 80)]
        }
    }
    said = json.dumps({"cniVersion": "1.1.0", "name": "blue", "type": "meshd", **config}).encode()
    assert await runtime.raw("ADD", said) == [(b"s", b"55"), (b".", b"")]
    assert mine(host) == []
    runtime.own_sockets = b"-"
    code, told = await runtime.code("ADD", config)
    assert (code, mine(host)) == (101, [])
    assert "port 8080/tcp of this host is taken by a socket of uid 0" in told
    runtime.own_sockets = b"55"
    await runtime.call("ADD", config)
    assert mine(host)[0].published == ("8080:80/tcp", "80:80/tcp")


async def test_a_container_on_two_networks_publishes_on_the_first(host, runtime):
    await networks.create_network(host, NetworkRequest("green", "overlay", ("10.2.0.0/24",)))
    ports = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}
    await runtime.call("ADD", ports)
    for _ in range(2):
        await runtime.call("ADD", {"network": "green", **ports}, ifname="eth1")
    first, second = mine(host)
    assert (first.published, second.published) == (("8080:80/tcp",), ())
    runtime.cookie = 8
    assert (await runtime.code("ADD", ports, container="c2"))[0] == 101


async def test_what_comes_before_in_the_chain_is_passed_through_and_ours_is_behind_it(runtime):
    before = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "x0", "sandbox": NETNS}],
        "ips": [{"address": "192.0.2.7/24", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"]},
        "extra": {"kept": True},
    }
    told = await runtime.call(
        "ADD", {"prevResult": before, "dns": {"nameservers": ["10.0.0.1"]}}, version="1.0.0"
    )
    assert told["interfaces"][0] == before["interfaces"][0]
    assert [one["interface"] for one in told["ips"]] == [0, 2, 2]
    assert told["interfaces"][2]["name"] == "eth0"
    assert told["routes"][0] == {"dst": "192.0.2.0/24"}
    assert (told["dns"], told["extra"]) == (before["dns"], before["extra"])


async def test_a_second_networks_default_route_comes_after_the_first_ones(host, runtime):
    runtime.routes = default_dump((bytes((192, 0, 2, 1)), 3, 0), (bytes(15) + b"\1", 3, 1024))
    told = await runtime.call("ADD")
    assert [route["priority"] for route in told["routes"]] == [1, 1025]


async def test_what_the_runtime_says_reaches_the_endpoint(host, runtime):
    asked = {
        "runtimeConfig": {
            "portMappings": [
                {"HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP", "HostIP": ""},
                {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.0.2.1"},
                {"hostPort": 0, "containerPort": 81, "protocol": "tcp"},
            ],
            "ips": ["10.1.0.9/24"],
            "mac": "02:00:00:00:00:09",
            "aliases": {"blue": ["web", "web1"], "green": ["other"]},
            "dns": {"Servers": ["10.0.0.53"], "Searches": ["a.test"], "Options": ["ndots:5"]},
        },
        "args": {"cni": {"ips": ["10.1.0.7"]}},
    }
    told = await runtime.call("ADD", asked, args="IgnoreUnknown=1;K8S_POD_NAME=web-0;IP=10.1.0.8;FOO=bar")
    (endpoint,) = mine(host)
    assert endpoint.name == "web-0"
    assert endpoint.aliases == ("web", "web1")
    assert endpoint.published == ("8080:80/tcp", "192.0.2.1:53:5353/udp")
    assert endpoint.mac.hex(":") == "02:00:00:00:00:09"
    assert told["ips"][0]["address"] == "10.1.0.9/24"
    assert told["dns"] == {"nameservers": ["10.0.0.53"], "search": ["a.test"], "options": ["ndots:5"]}


async def test_bandwidth_becomes_two_limits(runtime):
    limits = {
        "runtimeConfig": {"bandwidth": {"IngressRate": 8_000_000, "IngressBurst": 0, "EgressRate": 4_000_000}}
    }
    config = b'{"cniVersion":"1.1.0","name":"blue","type":"meshd"}'
    plain = await runtime.raw("ADD", config)
    await runtime.call("DEL")
    shaped = await runtime.raw("ADD", json.dumps({**json.loads(config), **limits}).encode())
    assert len(shaped) == len(plain) + 3
    assert sum(b"tbf\0" in said for _, said in shaped) == 2


@pytest.mark.parametrize(
    ("runtime_ips", "args_ips", "cni_args", "index"),
    [
        (["10.1.0.9"], ["10.1.0.8"], "IP=10.1.0.7", 9),
        ([], ["10.1.0.8"], "IP=10.1.0.7", 8),
        ([], [], "IP=10.1.0.7/24", 7),
        ([], [], "MAC=02:00:00:00:00:01;IP=10.1.0.6", 6),
    ],
)
async def test_who_may_say_an_address_first(runtime, runtime_ips, args_ips, cni_args, index):
    asked = {"runtimeConfig": {"ips": runtime_ips}, "args": {"cni": {"ips": args_ips}}}
    told = await runtime.call("ADD", asked, args=cni_args)
    assert told["ips"][0]["address"] == f"10.1.0.{index}/24"


ERRORS = [
    ({"cniVersion": "2.0.0"}, {}, 1, "cniVersion: '2.0.0' is not one of 0.3.1"),
    ({"cniVersion": None}, {}, 1, "cniVersion"),
    ({"ipam": {"type": "host-local"}}, {}, 2, 'ipam: {"type":"host-local"}'),
    ({"nework": "blue"}, {}, 2, "nework: 'blue'"),
    ({"ipMasq": False}, {}, 2, "ipMasq: false"),
    ({}, {"container": ""}, 4, "CNI_CONTAINERID"),
    ({}, {"container": "../x"}, 4, "CNI_CONTAINERID"),
    ({}, {"container": "x" * 256}, 4, "CNI_CONTAINERID"),
    ({}, {"ifname": ""}, 4, "CNI_IFNAME"),
    ({}, {"ifname": "eth/0"}, 4, "CNI_IFNAME"),
    ({}, {"ifname": "lo"}, 4, "CNI_IFNAME"),
    ({}, {"ifname": "e" * 16}, 4, "CNI_IFNAME"),
    ({}, {"args": "IP"}, 4, "CNI_ARGS"),
    ({}, {"args": "FOO=bar"}, 4, "FOO is unknown"),
    ({"name": ""}, {}, 7, "name"),
    ({"name": "a/b"}, {}, 7, "name"),
    ({"network": "nowhere"}, {}, 7, "nowhere"),
    ({"network": "none"}, {}, 7, "network none"),
    ({"network": "host"}, {}, 7, "network host"),
    ({"network": 5}, {}, 7, "network: 5"),
    ({"runtimeConfig": []}, {}, 7, "runtimeConfig"),
    ({"runtimeConfig": {"ips": ["10.9.9.9"]}}, {}, 7, "10.9.9.9"),
    ({"runtimeConfig": {"ips": ["ten"]}}, {}, 7, "'ten' is not an address"),
    ({"runtimeConfig": {"ips": "10.1.0.9"}}, {}, 7, "runtimeConfig.ips"),
    ({"runtimeConfig": {"mac": "01:00:00:00:00:01"}}, {}, 7, "unicast"),
    ({"runtimeConfig": {"portMappings": [{"hostPort": 70000, "containerPort": 1}]}}, {}, 7, "runtimeConfig.portMappings[0]"),
    ({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]}}, {}, 7, "icmp"),
    ({"runtimeConfig": {"portMappings": {}}}, {}, 7, "runtimeConfig.portMappings"),
    ({"runtimeConfig": {"aliases": ["-"]}}, {}, 7, "runtimeConfig.aliases[0]"),
    ({"runtimeConfig": {"bandwidth": {"ingressRate": -1}}}, {}, 7, "runtimeConfig.bandwidth"),
    ({"prevResult": []}, {}, 7, "prevResult"),
    ({"prevResult": {"ips": {}}}, {}, 7, "prevResult.ips"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "where", "code", "says"), ERRORS)
async def test_what_the_caller_gets_wrong_has_the_specifications_code(
    host, runtime, config, where, code, says
):
    found, said = await runtime.code("ADD", config, **where)
    assert found == code, said
    assert says in said
    assert (mine(host), free_counts(host)) == ([], {})


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", 6),
        (b"{", 6),
        (b"[]", 6),
        (b'"x"', 6),
        (b"\xff", 6),
        (b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", 7),
    ],
)
async def test_what_is_no_configuration_is_told_apart_from_a_wrong_one(runtime, raw, code):
    with pytest.raises(plugin.Fail) as caught:
        plugin.output_of(await runtime.raw("ADD", raw))
    assert caught.value.code == code


async def test_keys_that_runtimes_add_are_no_error(runtime):
    await runtime.call(
        "ADD", {"cni.dev/attachments": [], "x-note": 1, "capabilities": {"ips": True}, "disableCheck": True}
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("no address is free"), 11),
        (KernelError("device", errno=95, words="not supported"), 100),
        (Conflict("taken"), 101),
        (RuntimeError("a fault"), 102),
    ],
)
async def test_what_is_not_the_callers_fault_has_its_code_and_leaves_nothing(host, runtime, error, code):
    host.kernel.fail_create = error
    found, said = await runtime.code("ADD")
    assert found == code, said
    assert (mine(host), free_counts(host), host.kernel.links) == ([], {}, {})


async def test_a_published_port_that_is_taken_is_a_sentence(runtime):
    ports = {"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80}]}}
    await runtime.call("ADD", ports)
    runtime.cookie = 8
    code, said = await runtime.code("ADD", ports, container="c2")
    assert code == 101
    assert "port 80/tcp of this host is endpoint" in said


async def test_nothing_is_left_where_the_answer_cannot_be_made(host, runtime, monkeypatch):
    def broken(*_):
        raise ValueError("a fault")

    monkeypatch.setattr("meshd.api.cni.result", broken)
    assert (await runtime.code("ADD"))[0] == 102
    assert (mine(host), host.kernel.links) == ([], {})


async def test_while_meshd_starts_add_and_check_are_to_be_tried_again_and_a_del_is_done(host, runtime):
    told = await runtime.call("ADD")
    host.ready = False
    assert (await runtime.code("ADD", container="c2"))[0] == 11
    assert (await runtime.code("CHECK", {"prevResult": told}))[0] == 11
    assert (await runtime.code("STATUS"))[0] == 50
    await runtime.call("DEL")
    assert mine(host) == []


# --- DEL --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"prevResult": {}},
        {"prevResult": None},
        {"nework": "x"},
        {"network": "gone"},
        {"ipam": {"type": "x"}},
    ],
)
async def test_a_del_needs_neither_namespace_nor_prevresult_and_may_come_again(host, runtime, config):
    await runtime.call("ADD")
    for _ in range(2):
        assert await runtime.call("DEL", config, netns="") is None
    assert (mine(host), host.attachments) == ([], {})
    await trio.testing.wait_all_tasks_blocked()
    assert host.kernel.links == {}


async def test_a_del_of_what_nobody_knows_succeeds_and_ends_nothing_else(host, runtime):
    await runtime.call("ADD")
    for other in ({"container": "c2"}, {"ifname": "eth1"}):
        assert await runtime.call("DEL", **other) is None
    assert await runtime.call("DEL", {"name": "green"}) is None
    assert len(mine(host)) == 1


async def test_a_del_answers_before_the_link_is_gone_and_the_place_stays_taken_until_then(host, runtime):
    await runtime.call("ADD")
    (attachment,) = host.attachments.values()
    may_go = trio.Event()
    real = host.reconciler.in_kernel_thread

    async def slow(function, *args):
        if function == host.kernel.delete_link:
            await may_go.wait()
        return await real(function, *args)

    host.reconciler.in_kernel_thread = slow
    await runtime.call("DEL")
    assert attachment.host_if in host.kernel.links
    assert host.journal[-1][0].dead
    added = []
    async with trio.open_nursery() as nursery:

        async def add():
            added.append(await runtime.call("ADD"))

        nursery.start_soon(add)
        await trio.testing.wait_all_tasks_blocked()
        assert added == []
        may_go.set()
    assert attachment.host_if not in host.kernel.links
    assert len(mine(host)) == 1


async def test_a_del_that_the_disk_refuses_is_to_be_tried_again(host, runtime):
    await runtime.call("ADD")
    host.disk_full = True
    assert (await runtime.code("DEL"))[0] == 11
    assert len(mine(host)) == 1


async def test_what_was_left_for_the_daemon_is_done_before_anything_else(host, runtime, tmp_path):
    await runtime.call("ADD")
    environment = b"CNI_COMMAND=DEL\0CNI_CONTAINERID=c1\0CNI_IFNAME=eth0"
    config = b'{"cniVersion":"1.0.0","name":"blue","type":"meshd"}'
    queued = tmp_path / "cni-del" / "00000000000000000001-7"
    queued.write_bytes(plugin.pack([(b"V", b"1"), (b"E", environment), (b"C", config)]))
    (tmp_path / "cni-del" / "2-7").write_bytes(b"rubbish")
    runtime.cookie = 8
    await runtime.call("ADD")  # of the same container: the old DEL must not end it
    assert len(mine(host)) == 1
    assert [a.netns_cookie for a in host.attachments.values()] == [8]
    assert list((tmp_path / "cni-del").iterdir()) == []


async def test_what_was_left_stays_while_the_disk_refuses(host, runtime, tmp_path):
    await runtime.call("ADD")
    environment = b"CNI_COMMAND=DEL\0CNI_CONTAINERID=c1\0CNI_IFNAME=eth0"
    config = b'{"cniVersion":"1.0.0","name":"blue","type":"meshd"}'
    (tmp_path / "cni-del" / "1-7").write_bytes(
        plugin.pack([(b"V", b"1"), (b"E", environment), (b"C", config)])
    )
    host.disk_full = True
    await runtime.cni.catch_up()
    assert len(list((tmp_path / "cni-del").iterdir())) == 1
    host.disk_full = False
    await runtime.cni.catch_up()
    assert (mine(host), list((tmp_path / "cni-del").iterdir())) == ([], [])


# --- GC ---------------------------------------------------------------------------------------------------------
async def test_gc_frees_exactly_what_is_not_in_the_list(host, runtime):
    for number in range(1, 5):
        runtime.cookie = number
        await runtime.call("ADD", container=f"c{number}")
    runtime.cookie = 4
    await runtime.call("ADD", container="c4", ifname="eth1")
    runtime.cookie = 9
    await runtime.call("ADD", {"name": "other", "network": "blue"}, container="c9")
    await attach(host, AttachRequest("blue", Netns(10, BOOT), name="by-hand"))
    kept = [
        {"containerID": "c2", "ifname": "eth0"},
        {"containerID": "c4", "ifname": "eth1"},
        {"containerID": "zz", "ifname": "eth0"},
    ]
    assert (
        await runtime.call(
            "GC", {"cni.dev/valid-attachments": kept, "cni.dev/attachments": []}, container="", ifname=""
        )
        is None
    )
    left = sorted(a.owner for a in host.attachments.values())
    assert left == ["", "cni/blue/c2/eth0", "cni/blue/c4/eth1", "cni/other/c9/eth0"]
    assert len(mine(host)) == 4


async def test_gc_of_an_empty_list_frees_all_of_that_configuration_alone(host, runtime):
    await runtime.call("ADD")
    await attach(host, AttachRequest("blue", Netns(10, BOOT), name="by-hand"))
    await runtime.call("GC", {"cni.dev/valid-attachments": []}, container="", ifname="")
    assert [endpoint.name for endpoint in mine(host)] == ["by-hand"]


@pytest.mark.parametrize(
    "said", [{}, {"cni.dev/valid-attachments": None}, {"cni.dev/valid-attachments": [{"ifname": "eth0"}]}]
)
async def test_gc_without_a_good_list_frees_nothing(host, runtime, said):
    await runtime.call("ADD")
    assert (await runtime.code("GC", said, container="", ifname=""))[0] == 7
    assert len(mine(host)) == 1


# --- CHECK ------------------------------------------------------------------------------------------------------
async def attached(host, runtime):
    told = await runtime.call("ADD")
    (endpoint,) = mine(host)
    runtime.link = link_answer(endpoint.mac)
    runtime.addresses = address_dump((endpoint.ips[0], 24), (endpoint.ips[1], 64))
    v6 = bytes.fromhex("fd000001") + bytes(11) + b"\1"
    runtime.routes = default_dump((bytes((10, 1, 0, 1)), 4, 0), (v6, 4, 1024))
    host.kernel.moved = {a.peer_if for a in host.attachments.values()}
    return told, endpoint


async def test_check_finds_nothing_wrong_right_after_an_add(host, runtime):
    told, _ = await attached(host, runtime)
    assert await runtime.call("CHECK", {"prevResult": told}) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("no link", "there is no interface eth0"),
        ("mac", "has MAC 02:61:61:61:61:61, not"),
        ("down", "eth0 is down"),
        ("address", "eth0 does not have fd00:1::2/64"),
        ("route", "the default route by 10.1.0.1 is missing"),
        ("cookie", "another namespace"),
        ("host end", "is gone"),
        ("refused", "operation not supported"),
        ("prevResult", "prevResult does not say 10.1.0.2/24"),
    ],
)
async def test_check_says_what_is_wrong(host, runtime, change, says):
    told, endpoint = await attached(host, runtime)
    (attachment,) = host.attachments.values()
    match change:
        case "no link":
            runtime.link = b""
        case "mac":
            runtime.link = link_answer(b"\2aaaaa")
        case "down":
            runtime.link = link_answer(endpoint.mac, up=False)
        case "address":
            runtime.addresses = address_dump((endpoint.ips[0], 24))
        case "route":
            runtime.routes = default_dump((bytes((10, 1, 0, 99)), 4, 0))
        case "cookie":
            runtime.cookie = 99
        case "host end":
            host.kernel.links.clear()
        case "refused":
            op = PutLink(Link(attachment.host_if, "veth", "x", 1450))
            host.reconciler.refused = {op: KernelError("device", errno=95, words="operation not supported")}
        case "prevResult":
            told["ips"][0]["address"] = "10.1.0.99/24"
    code, said = await runtime.code("CHECK", {"prevResult": told})
    assert code == 103
    assert says in said


async def test_a_later_plugin_may_have_taken_the_default_route_away(host, runtime):
    told, _ = await attached(host, runtime)
    told["routes"] = []
    runtime.routes = b""
    assert await runtime.code("CHECK", {"prevResult": told}) == (0, "")


async def test_check_of_what_is_not_attached(host, runtime):
    assert (await runtime.code("CHECK", {"prevResult": {}}))[0] == 3
    await runtime.call("ADD")
    assert (await runtime.code("CHECK"))[0] == 7  # no prevResult
    code, said = await runtime.code("CHECK", {"name": "green", "prevResult": {"ips": []}})
    assert code == 3
    assert "it is attached by blue" in said


# --- versions, STATUS -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("command", "since"),
    [("ADD", "0.3.1"), ("DEL", "0.3.1"), ("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")],
)
async def test_an_operation_that_a_version_does_not_have_is_incompatible(runtime, command, since):
    for version in VERSIONS:
        config = {"cniVersion": version, "cni.dev/valid-attachments": []}
        has = VERSIONS.index(version) >= VERSIONS.index(since)
        assert ((await runtime.code(command, config))[0] == 1) is not has, version


async def test_status_is_true(host, runtime):
    assert await runtime.code("STATUS", container="", ifname="") == (0, "")
    assert (await runtime.code("STATUS", {"network": "nowhere"}))[0] == 50
    host.allocation_stopped = "its state was lost"
    assert (await runtime.code("STATUS"))[0] == 50
    host.allocation_stopped = ""
    host.reconciler.refused = {
        PutLink(Link("mo1", "bridge", "x", 1450)): KernelError("device mo1", errno=95, words="not supported")
    }
    assert (await runtime.code("STATUS"))[0] == 51


async def test_status_knows_when_no_address_is_left(host, runtime):
    await networks.create_network(host, NetworkRequest("tiny", "overlay", ("10.3.0.0/30",)))
    tiny = {"name": "tiny"}
    assert (await runtime.code("STATUS", tiny))[0] == 0
    await runtime.call("ADD", tiny)
    code, said = await runtime.code("STATUS", tiny)
    assert code == 50
    assert "no free address" in said


# --- the records ------------------------------------------------------------------------------------------------
async def test_another_protocol_or_path_is_refused(runtime):
    with pytest.raises(Exception, match="different versions"):
        cnirecords.read(plugin.pack([(b"V", b"2"), (b"E", b""), (b"C", b"")]))
    for cut in (b"V", b"V\0\0\0\5a"):
        with pytest.raises(Exception, match="cut off"):
            cnirecords.read(cut)
    with pytest.raises(plugin.Fail) as caught:
        plugin.output_of(await runtime.raw("FOO", b"{}"))
    assert caught.value.code == 4


async def test_the_journal_keeps_whose_endpoint_it_is(host, runtime):
    await runtime.call("ADD")
    (record,) = [item for item in host.journal[-1] if item.kind == Kind.ATTACHMENT]
    assert record.body.owner == "cni/blue/c1/eth0"


async def test_the_documented_list_is_one_that_works(host, runtime):
    said = json.loads((Path(__file__).parents[3] / "configs" / "10-meshd.conflist").read_text())
    (ours,) = said["plugins"]
    assert ours.pop("type") == "meshd"
    assert ours["socket"] == plugin.SOCKET
    assert (await runtime.call("ADD", ours, version=said["cniVersion"]))["ips"]
