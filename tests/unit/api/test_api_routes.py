"""The table of routes over a cluster in memory (tests/unit/shell/fake_cluster.py): who may do what, what is
answered, what is logged. Requests enter at Api.handle, behind the HTTP parser."""

import json

import pytest

from meshd import errors
from meshd.api import errors as api_errors
from meshd.api.exchange import Request, error_response
from meshd.api.peers import Access, Peer
from meshd.api.routes import ROUTES, Api, find
from meshd.errors import Forbidden, MeshdError
from meshd.model import Rank
from meshd.plan.objects import Finding
from meshd.shell.networks import ensure_default_bridge
from meshd.swim.members import Member
from tests.unit.shell.fake_cluster import BOOT, REFUSED_BY_KERNEL, World

OWN, GROUP = 64747, 4711
ROOT = Peer(0, 0, 99)
PEERS = {
    "root": (Peer(0, 0, 1), True, True),
    "the daemon's own user": (Peer(OWN, 5, 1), True, True),
    "a member by primary group": (Peer(1000, GROUP, 1, (GROUP,)), True, False),
    "a member by supplementary group": (Peer(1000, 1000, 1, (1000, 3, GROUP)), True, False),
    "anybody else": (Peer(1000, 1000, 1, (1000, 3)), False, False),
}


class Log:
    def __init__(self):
        self.lines = []

    def info(self, event, **fields):
        assert event == "audit"
        self.lines.append(fields)


class Site:
    def __init__(self, hosts=2):
        self.world = World(hosts)
        self.cluster = self.world.hosts[0]
        self.log = Log()
        self.api = Api(self.cluster, Access(OWN, GROUP), log=self.log)

    async def ask(self, method, path, body=None, peer=ROOT):
        """Ask as the HTTP server does, errors turned into answers; returns (status, document)."""
        path, _, query = path.partition("?")
        fields = dict(pair.split("=") for pair in query.split("&")) if query else {}
        raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            response = await self.api.handle(Request(peer, method, path, fields, raw))
        except MeshdError as error:
            response = error_response(error)
        if response.stream is not None:
            return response.status, response
        lines = response.body.splitlines()
        if response.content_type.startswith("text/plain"):
            return response.status, response.body.decode()
        if response.content_type == "application/json":
            assert len(lines) == 1
            return response.status, json.loads(lines[0])
        return response.status, [json.loads(line) for line in lines]


BLUE = {"name": "blue", "subnets": ["10.1.0.0/20"]}
WEB = {
    "network": "blue",
    "name": "web",
    "ifname": "eth0",
    "netns": {"cookie": 7, "boot_id": BOOT, "path": "/p"},
}


# --- authorisation --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("who", PEERS)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.pattern}")
async def test_who_may_call_what(who, route):
    peer, reads, changes = PEERS[who]
    site = Site()
    status, document = await site.ask(route.method, route.pattern.replace("{}", "nosuch"), peer=peer)
    allowed = changes or (reads and route.method == "GET" and route.pattern != "/v1/token")
    assert (status == 403) is not allowed
    if not allowed:
        assert document["code"] == "forbidden"
        assert ("it is a secret" in document["error"]) == (reads and route.pattern == "/v1/token")
        (line,) = site.log.lines
        assert (line["uid"], line["pid"], line["result"]) == (peer.uid, peer.pid, "forbidden")


def test_every_route_that_changes_or_shows_a_secret_needs_root_and_is_logged():
    for route in ROUTES:
        sensitive = route.method != "GET" or route.pattern == "/v1/token"
        assert route.needs_root == sensitive
        assert bool(route.verb) == sensitive


async def test_without_a_group_only_root_reads():
    site = Site()
    site.api.access = Access(OWN, None)
    assert (await site.ask("GET", "/v1/members", peer=Peer(1000, GROUP, 1, (GROUP,))))[0] == 403
    assert (await site.ask("GET", "/v1/members"))[0] == 200


# --- the table ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "method, path, status, allow",
    [
        ("HEAD", "/v1/status", 405, "GET"),
        ("PUT", "/v1/networks", 405, "GET, POST"),
        ("PUT", "/v1/networks/blue", 405, "GET, PATCH, DELETE"),
        ("BREW", "/healthz", 405, "GET"),
        ("GET", "/", 404, None),
        ("GET", "/v1", 404, None),
        ("GET", "/v1/", 404, None),
        ("GET", "/v1/networks/", 404, None),
        ("GET", "/v1/networks/a/b", 404, None),
        ("GET", "/v1/status/", 404, None),
        ("POST", "/metrics", 405, "GET"),
        ("GET", "/v1/metrics", 404, None),
    ],
)
async def test_unknown_paths_and_methods(method, path, status, allow):
    site = Site()
    try:
        response = await site.api.handle(Request(ROOT, method, path, {}, b""))
    except MeshdError as error:
        response = error_response(error)
    assert response.status == status
    assert dict(response.headers).get("Allow") == allow


def test_a_quoted_slash_in_a_name_reaches_no_other_route():
    route, part = find("GET", "/v1/networks/a%2Fb")
    assert (route.pattern, part) == ("/v1/networks/{}", "a/b")


async def test_an_unknown_query_field_is_refused_naming_what_is_known():
    status, document = await Site().ask("GET", "/v1/endpoints?netwrk=a")
    assert status == 400
    assert document["error"] == "netwrk: unknown query field"
    assert "network" in document["hint"]


def test_every_error_class_has_the_status_of_the_contract():
    expected = {
        "BadRequest": 400, "Forbidden": 403, "NotFound": 404, "Conflict": 409, "Unavailable": 503, "KernelError": 500,
        "MeshdError": 500, "StateError": 500, "PeerError": 500, "ConfigError": 500,
    }  # fmt: skip
    for name, status in expected.items():
        assert api_errors.status_of(getattr(errors, name)("what")) == status


def test_an_error_is_one_line_whatever_words_it_carries():
    body = api_errors.body_of(errors.KernelError("device a\nb", "do\r\nthis", words="no\nway"))
    assert json.loads(body) == {"error": "device a b: no way", "hint": "do this", "code": "kernel"}


# --- shapes ---------------------------------------------------------------------------------------------------
async def test_members_have_the_contracts_fields():
    site = Site()
    other = site.world.hosts[1]
    site.cluster.members[other.me].last_seen = site.world.time - 1.5
    site.cluster.members[other.me].rtt_s = 0.000_25
    status, found = await site.ask("GET", "/v1/members")
    assert status == 200
    assert found[1] == {
        "id": other.me.hex(), "name": "host2", "address": "192.0.2.2", "port": 7947, "state": "alive",
        "incarnation": 1, "self": False, "degraded": False, "restarting": False, "rtt_ms": 0.25, "version": "0.1.0",
        "last_seen_s": 1.5,
        "path_mtu": None,
        "forgotten": False,
        "draining": False,
    }  # fmt: skip
    assert found[0]["self"] is True
    assert found[0]["last_seen_s"] == 0
    assert found[0]["rtt_ms"] is None


async def test_status_has_the_contracts_fields():
    site = Site()
    _, found = await site.ask("GET", "/v1/status")
    assert found["host"] == {
        "id": site.cluster.me.hex(),
        "name": "host1",
        "address": "192.0.2.1",
        "draining": False,
    }
    assert found["cluster"] == {"id": (b"c" * 16).hex(), "alive": 2, "suspect": 0, "failed": 0, "left": 0}
    assert found["digest"] == site.cluster.store.digest.hex()
    assert found["kernel"] == {"in_sync": True, "missing": 0, "stale": 0}
    assert found["keys"] == {"primary": "0001"}
    result = {"result": "right", "detail": "right at host2"}
    assert found["offload"] == [
        {"device": "eth0", "driver": "ixgbe", "computes": "card", "features": ["tx-checksum-ip-generic"]}
        | result,
        {"device": "vlan7", "driver": "", "computes": "kernel", "features": []} | result,
    ]
    assert (found["ready"], found["networks"], found["endpoints"], found["health"]) == (True, 0, 0, [])


async def test_networks_are_made_shown_and_removed():
    site = Site()
    await ensure_default_bridge(site.cluster)
    status, made = await site.ask("POST", "/v1/networks", BLUE)
    assert status == 201
    _, listed = await site.ask("GET", "/v1/networks")
    assert [(n["name"], n["driver"], n["scope"]) for n in listed] == [
        ("none", "none", "host"), ("host", "host", "host"), ("blue", "overlay", "global"), ("bridge", "bridge", "host"),
    ]  # fmt: skip
    blue = listed[2]
    assert blue["subnets"] == ["10.1.0.0/20"]
    assert blue["gateways"] == ["10.1.0.1"]
    assert (blue["mtu"], blue["internal"], blue["endpoints"], blue["state"]) == (1450, False, 0, "up")
    assert blue["vni"] >= 4096
    assert blue.items() <= made.items()
    _, detail = await site.ask("GET", "/v1/networks/blue")
    assert detail == made
    assert {"options", "labels", "blocks"} <= detail.keys()
    assert {block["owner"] for block in detail["blocks"]} == {"host1", "host2"}
    status, wider = await site.ask(
        "PATCH", "/v1/networks/blue", {"add_subnets": ["10.9.0.0/24"], "labels": {"a": "b"}}
    )
    assert (status, wider["subnets"][-1], wider["gateways"][-1]) == (200, "10.9.0.0/24", "10.9.0.1")
    assert wider["labels"] == detail["labels"] | {"a": "b"}
    assert sum(b["free"] for b in wider["blocks"]) == sum(b["free"] for b in detail["blocks"]) + 253
    assert await site.ask("DELETE", "/v1/networks/blue") == (200, {"removed": True})
    assert (await site.ask("GET", "/v1/networks/blue"))[0] == 404
    assert (await site.ask("DELETE", "/v1/networks/blue"))[0] == 404


async def test_attach_answers_with_what_the_caller_has_to_do():
    site = Site()
    await site.ask("POST", "/v1/networks", BLUE | {"ipv6": True})
    status, made = await site.ask("POST", "/v1/endpoints", WEB)
    assert status == 201
    plumb = made.pop("plumb")
    assert made["ips"][0] == "10.1.0.2/20"
    assert made["ips"][1].endswith("::2/64")
    assert (made["network"], made["host"], made["name"], made["state"]) == ("blue", "host1", "web", "up")
    assert plumb["link"] == f"mp{made['id'][:8]}"
    assert plumb["addresses"] == made["ips"]
    assert plumb["routes"][0] == {"dst": "default", "via": "10.1.0.1"}
    assert plumb["routes"][1]["via"].endswith("::1")
    assert (plumb["ifname"], plumb["mac"], plumb["mtu"], plumb["ipv6"], plumb["existing"]) == (
        "eth0", made["mac"], 1450, True, False,
    )  # fmt: skip
    status, again = await site.ask("POST", "/v1/endpoints", WEB)
    assert (status, again["id"], again["plumb"]["existing"]) == (200, made["id"], True)
    assert await site.ask("GET", f"/v1/endpoints/{made['id']}") == (200, made)
    assert await site.ask("DELETE", f"/v1/endpoints/{made['id']}") == (200, {"removed": True})
    assert await site.ask("DELETE", f"/v1/endpoints/{made['id']}") == (200, {"removed": False})
    assert (await site.ask("GET", f"/v1/endpoints/{made['id']}"))[0] == 404


async def test_an_internal_network_gives_no_default_route_and_v4_alone_says_so():
    site = Site()
    await site.ask("POST", "/v1/networks", BLUE | {"internal": True})
    _, made = await site.ask("POST", "/v1/endpoints", WEB)
    assert made["plumb"]["routes"] == []
    assert made["plumb"]["ipv6"] is False


async def test_endpoints_are_filtered_and_stale_while_their_host_is_failed():
    site = Site()
    one, two = site.world.hosts
    await site.ask("POST", "/v1/networks", BLUE)
    await site.ask("POST", "/v1/networks", {"name": "red"})
    await site.ask("POST", "/v1/endpoints", WEB)
    await site.ask("POST", "/v1/endpoints", WEB | {"network": "red", "name": "db", "ifname": "eth1"})
    api_two = Api(two, Access(OWN, GROUP), log=Log())
    body = json.dumps(WEB | {"name": "far"}).encode()
    await api_two.handle(Request(ROOT, "POST", "/v1/endpoints", {}, body))

    async def names(query):
        return [(e["name"], e["state"]) for e in (await site.ask("GET", f"/v1/endpoints{query}"))[1]]

    assert await names("") == [("far", "up"), ("web", "up"), ("db", "up")]
    assert await names("?network=blue") == [("far", "up"), ("web", "up")]
    assert await names("?host=host2") == [("far", "up")]
    assert await names(f"?host={one.me.hex()}") == [("web", "up"), ("db", "up")]
    assert await names(f"?host={one.me.hex()[:8]}") == [("web", "up"), ("db", "up")]
    assert await names(f"?netns_cookie=7&boot_id={BOOT}") == [("web", "up"), ("db", "up")]
    assert await names("?netns_cookie=7") == [("web", "up"), ("db", "up")]
    assert await names("?netns_cookie=8") == []
    assert (await site.ask("GET", "/v1/endpoints?network=nosuch"))[0] == 404
    assert (await site.ask("GET", "/v1/endpoints?netns_cookie=-1"))[0] == 400
    known = one.members[two.me]
    one.members[two.me] = Member(two.me, known.version._replace(counter=Rank.FAILED), known.facts)
    assert await names("") == [("far", "stale"), ("web", "up"), ("db", "up")]


async def test_diff_events_token_version_and_health():
    site = Site()
    site.cluster.reconciler.found["missing"].append(Finding("link", "mo12345678", "not in the kernel"))
    assert (await site.ask("GET", "/v1/diff"))[1] == {
        "in_sync": False, "stale": [], "foreign": [],
        "missing": [{"object": "link", "what": "mo12345678", "why": "not in the kernel"}],
    }  # fmt: skip
    site.cluster.events.publish("member-alive", host="host2")
    assert (await site.ask("GET", "/v1/events"))[1] == [
        {"time": 1234.5, "kind": "member-alive", "host": "host2"}
    ]
    assert (await site.ask("GET", "/v1/events?follow=2"))[0] == 400
    assert (await site.ask("GET", "/v1/token"))[1] == {
        "seeds": ["192.0.2.1:7947", "[2001:db8::1]:7947"], "key": "0001:c2VjcmV0", "v6": [],
    }  # fmt: skip
    assert (await site.ask("GET", "/v1/version"))[1] == {"version": "0.1.0"}
    assert await site.ask("GET", "/healthz") == (200, {"ready": True})
    site.cluster.ready = False
    assert await site.ask("GET", "/healthz") == (503, {"ready": False})


async def test_following_events_gives_history_then_news_and_lets_go_at_the_end():
    site = Site()
    site.cluster.events.publish("a")
    _, response = await site.ask("GET", "/v1/events?follow=1")
    site.cluster.events.publish("b")
    lines = [json.loads(await anext(response.stream)) for _ in range(2)]
    assert [line["kind"] for line in lines] == ["a", "b"]
    response.done()
    assert not site.cluster.events._watchers


@pytest.mark.parametrize("body", [None, {}])
async def test_leave_takes_an_empty_body_or_none(body):
    site = Site()
    assert await site.ask("POST", "/v1/leave", body) == (200, {"handed_on": [], "unconfirmed": []})
    assert site.cluster.left
    assert (await site.ask("POST", "/v1/leave", {"now": True}))[0] == 400


async def test_drain_and_undrain_say_how_many_endpoints_are_here():
    site = Site()
    assert await site.ask("POST", "/v1/drain") == (200, {"draining": True, "endpoints": 0})
    assert (await site.ask("GET", "/v1/status"))[1]["host"]["draining"] is True
    assert await site.ask("POST", "/v1/undrain", {}) == (200, {"draining": False, "endpoints": 0})
    assert (await site.ask("POST", "/v1/drain", {"now": True}))[0] == 400


async def test_reload_tells_what_changed_and_a_wrong_file_is_an_error_that_names_it():
    site = Site()
    status, body = await site.ask("POST", "/v1/reload")
    assert status == 200
    assert body == {
        "changed": [{"key": "log.level", "before": "info", "after": "debug"}], "restart": [], "notes": [],
    }  # fmt: skip

    def broken():
        raise errors.ConfigError("f: log.level: wrong")

    site.cluster.reload = broken
    assert (await site.ask("POST", "/v1/reload"))[1]["code"] == "config"


# --- bodies ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "path, body, line",
    [
        ("/v1/networks", {}, "name: missing"),
        ("/v1/networks", BLUE | {"mtu": "big"}, "mtu: expected `int | null`, got `str`"),
        ("/v1/networks", BLUE | {"subnet": []}, "subnet: unknown field"),
        ("/v1/networks", BLUE | {"options": {"encrypted": ""}}, "option encrypted is refused"),
        (
            "/v1/endpoints",
            WEB | {"netns": {"cookie": 0, "boot_id": "x"}},
            "netns.cookie: expected `int` >= 1",
        ),
        ("/v1/endpoints", WEB | {"aliases": ["ok", "not ok"]}, "aliases[1]: not 1 to 63 of A-Z, a-z, 0-9,"),
        (
            "/v1/endpoints",
            WEB | {"published": ["80"]},
            "published: '80' is not of the form [IP:]HOSTPORT:PORT",
        ),
        ("/v1/endpoints", WEB | {"publish": ["80:80"]}, "publish: unknown field"),
        ("/v1/endpoints", {"network": "blue"}, "netns: missing"),
    ],
)
async def test_a_bad_body_is_one_line_that_names_the_field(path, body, line):
    site = Site()
    status, document = await site.ask("POST", path, body)
    assert status == 400
    assert document["error"].startswith(line)


# --- the audit log --------------------------------------------------------------------------------------------
async def test_every_change_and_every_failed_change_is_one_line_without_the_body():
    site = Site()
    peer = Peer(0, 0, 4242)
    await site.ask("POST", "/v1/networks", BLUE | {"labels": {"password": "hunter2"}}, peer)
    await site.ask("POST", "/v1/networks", BLUE, peer)
    await site.ask("POST", "/v1/endpoints", WEB, peer)
    site.cluster.kernel.fail_create = REFUSED_BY_KERNEL
    await site.ask("POST", "/v1/endpoints", WEB | {"ifname": "eth1"}, peer)
    await site.ask("GET", "/v1/networks", peer=peer)
    await site.ask("DELETE", "/v1/networks/blue", peer=peer)
    await site.ask("GET", "/v1/token", peer=peer)
    await site.ask("POST", "/v1/endpoints", b"{not json", peer)
    assert [(line["verb"], line["object"], line["result"]) for line in site.log.lines] == [
        ("network-create", "blue", "ok"),
        ("network-create", "blue", "conflict"),
        ("attach", "blue web /p", "ok"),
        ("attach", "blue web /p", "kernel"),
        ("network-remove", "blue", "conflict"),
        ("token-read", "", "ok"),
        ("attach", "", "bad-request"),
    ]
    for line in site.log.lines:
        assert (line["uid"], line["pid"]) == (0, 4242)
        assert line["ms"] >= 0
        assert "hunter2" not in str(line)
        assert "c2VjcmV0" not in str(line)


async def test_a_fault_of_ours_during_a_change_is_logged_too():
    site = Site()

    async def broken():
        raise ZeroDivisionError

    site.cluster.leave = broken
    with pytest.raises(ZeroDivisionError):
        await site.ask("POST", "/v1/leave")
    assert [(line["verb"], line["result"]) for line in site.log.lines] == [("leave", "failed")]


def test_forbidden_is_the_only_code_for_403():
    assert [code for code, status in api_errors.STATUS.items() if status == 403] == [Forbidden.code]
