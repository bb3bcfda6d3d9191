"""What `meshctl network` and `meshctl endpoint` ask of the daemon, field by field."""

import json

import pytest

PLAIN = {
    "name": "blue", "driver": "overlay", "subnets": [], "gateways": [], "ip_range": [], "exclude": [], "ipv6": False,
    "internal": False, "mtu": None, "vni": None, "options": {}, "labels": {},
    "host_access": False, "broadcast": False,
}  # fmt: skip
MADE = {"name": "blue", "id": "aa" * 16, "driver": "overlay", "scope": "global", "vni": 4097, "subnets": ["10.1.0.0/20"],
        "gateways": ["10.1.0.1"], "mtu": 1450, "internal": False, "endpoints": 0}  # fmt: skip


@pytest.mark.parametrize(
    "flags, differs",
    [
        ([], {}),
        (["-d", "bridge"], {"driver": "bridge"}),
        (["--subnet", "10.1.0.0/20", "--subnet", "FD00::/64"], {"subnets": ["10.1.0.0/20", "fd00::/64"]}),
        (["--gateway", "10.1.0.1"], {"gateways": ["10.1.0.1"]}),
        (["--ip-range", "10.1.4.0/22"], {"ip_range": ["10.1.4.0/22"]}),
        (["--exclude", "10.1.0.9", "--exclude", "10.1.0.10"], {"exclude": ["10.1.0.9", "10.1.0.10"]}),
        (["--ipv6", "--internal"], {"ipv6": True, "internal": True}),
        (["--host-access", "--broadcast"], {"host_access": True, "broadcast": True}),
        (["--mtu", "1400", "--vni", "5000"], {"mtu": 1400, "vni": 5000}),
        (
            ["-d", "macvlan", "--parent", "eth0.10", "--mode", "vepa"],
            {"driver": "macvlan", "parent": "eth0.10", "mode": "vepa"},
        ),
        (["--opt", "encrypted=", "--label", "a=b=c"], {"options": {"encrypted": ""}, "labels": {"a": "b=c"}}),
    ],
)
def test_create_sends_what_was_asked_and_every_default(daemon, meshctl, flags, differs):
    daemon.answers["POST /v1/networks"] = (201, MADE)
    result = meshctl("-o", "json", "network", "create", "blue", *flags)
    assert (result.exit_code, json.loads(result.stdout)) == (0, MADE)
    (asked,) = daemon.requests
    assert asked.body == {**PLAIN, **differs}
    assert asked.headers["content-type"] == "application/json"


def test_whoever_makes_a_network_on_the_lan_is_told_what_the_kernel_keeps_apart(daemon, meshctl):
    daemon.answers["POST /v1/networks"] = (201, MADE)
    line = (
        "warning: a host and its own endpoints on blue do not reach each other: the kernel keeps them apart\n"
    )
    assert meshctl("network", "create", "blue", "-d", "ipvlan").stderr == line
    assert meshctl("network", "create", "blue").stderr == ""


def test_networks_are_a_table(daemon, meshctl):
    daemon.answers["GET /v1/networks"] = (200, [MADE, {**MADE, "name": "bridge", "vni": 0, "internal": True}])
    assert meshctl("network", "ls").stdout.splitlines() == [
        "NAME    DRIVER   SCOPE   VNI   SUBNETS      GATEWAYS  MTU   INTERNAL  ENDPOINTS",
        "blue    overlay  global  4097  10.1.0.0/20  10.1.0.1  1450  no        0",
        "bridge  overlay  global  -     10.1.0.0/20  10.1.0.1  1450  yes       0",
    ]


def test_inspect_shows_who_owns_which_block(daemon, meshctl):
    blocks = [{"block": "10.1.0.0/26", "owner": "host1", "free": 60}]
    daemon.answers["GET /v1/networks/blue"] = (200, {**MADE, "labels": {"team": "a"}, "blocks": blocks})
    lines = meshctl("network", "inspect", "blue").stdout.splitlines()
    assert "labels:    team=a" in lines
    assert lines[-2:] == ["BLOCK        OWNER  FREE", "10.1.0.0/26  host1  60"]


def test_rm_prints_nothing_for_people_and_the_answer_as_json(daemon, meshctl):
    daemon.answers["DELETE /v1/networks/blue"] = (200, {"removed": True})
    assert meshctl("network", "rm", "blue").stdout == ""
    assert json.loads(meshctl("network", "rm", "blue", "-o", "json").stdout) == {"removed": True}


ENDPOINTS = [
    {
        "id": "abcd" * 8,
        "network": "blue",
        "host": "host1",
        "name": "web",
        "ips": ["10.1.0.2/20"],
        "state": "up",
    },
    {
        "id": "abff" * 8,
        "network": "blue",
        "host": "host2",
        "name": "db",
        "ips": ["10.1.0.3/20"],
        "state": "stale",
    },
]


def test_endpoint_ls_filters_at_the_daemon(daemon, meshctl):
    daemon.answers["GET /v1/endpoints"] = (200, ENDPOINTS)
    meshctl("endpoint", "ls")
    meshctl("endpoint", "ls", "--network", "b&b", "--host", "host1")
    assert daemon.asked() == ["GET /v1/endpoints", "GET /v1/endpoints?network=b%26b&host=host1"]


@pytest.mark.parametrize(
    "wanted, status, said",
    [
        ("abcd" * 8, 0, ""),
        ("ABCD", 0, ""),
        ("ab", 1, "error: ab is the start of 2 endpoints' ids\nhint: give more of the id\n"),
        ("99", 1, "error: no such endpoint: 99\nhint: meshctl endpoint ls\n"),
    ],
)
def test_an_endpoint_is_found_by_the_start_of_its_id(daemon, meshctl, wanted, status, said):
    daemon.answers["GET /v1/endpoints"] = (200, ENDPOINTS)
    result = meshctl("-o", "json", "endpoint", "inspect", wanted)
    assert (result.exit_code, result.stderr) == (status, said)
    if status == 0:
        assert json.loads(result.stdout) == ENDPOINTS[0]


@pytest.mark.parametrize(
    "flags, asked",
    [
        (["--add-subnet", "10.9.0.0/24", "--gateway", "10.9.0.9"], {"add_subnets": ["10.9.0.0/24"], "gateways": ["10.9.0.9"]}),
        (["--label", "a=b", "--label-rm", "c"], {"labels": {"a": "b"}, "remove_labels": ["c"]}),
    ],
)  # fmt: skip
def test_update_sends_what_is_to_change(daemon, meshctl, flags, asked):
    daemon.answers["PATCH /v1/networks/blue"] = (200, MADE)
    result = meshctl("-o", "json", "network", "update", "blue", *flags)
    assert (result.exit_code, json.loads(result.stdout)) == (0, MADE)
    nothing = {"add_subnets": [], "gateways": [], "labels": {}, "remove_labels": []}
    assert daemon.requests[0].body == nothing | asked


@pytest.mark.parametrize("flags", [[], ["--add-subnet", "ten"], ["--gateway", "x"]])
def test_update_with_nothing_or_nonsense_is_wrong_usage(daemon, meshctl, flags):
    assert meshctl("network", "update", "blue", *flags).exit_code == 2
    assert daemon.requests == []
