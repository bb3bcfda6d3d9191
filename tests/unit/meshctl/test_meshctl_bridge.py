"""What `meshctl bridge` asks of the daemon, and what it prints."""

import json

import pytest

BR0 = {"name": "br0", "id": "aa" * 16, "state": "up", "mac": "02:00:00:00:00:01", "mtu": 1500, "ports": [],
       "others": ["tap0"], "created": 1.5}  # fmt: skip
UNCONFIRMED = {**BR0, "ports": [{"name": "eth0", "state": "unconfirmed", "seconds_left": 59.6}]}
CONFIRMED = {**BR0, "ports": [{"name": "eth0", "state": "up", "seconds_left": None},
                              {"name": "eth1", "state": "missing", "seconds_left": None}]}  # fmt: skip


def test_bridges_are_a_table(daemon, meshctl):
    daemon.answers["GET /v1/bridges"] = (200, [UNCONFIRMED, {**CONFIRMED, "name": "lan", "others": []}])
    assert meshctl("bridge", "ls").stdout.splitlines() == [
        "NAME  STATE  MAC                MTU   PORTS                             OTHERS",
        "br0   up     02:00:00:00:00:01  1500  eth0 (unconfirmed, back in 60 s)  tap0",
        "lan   up     02:00:00:00:00:01  1500  eth0,eth1 (missing)               -",
    ]


@pytest.mark.parametrize(
    "flags, seconds",
    [
        ([], 60),
        (["--confirm-within", "5m"], 300),
        (["--confirm-within=1.5s"], 1.5),
        (["--confirm-within", "90"], 90),
    ],
)
def test_port_add_sends_seconds_and_says_what_happens_without_confirmation(daemon, meshctl, flags, seconds):
    daemon.answers["POST /v1/bridges/ports"] = (201, {**UNCONFIRMED, "warnings": ["mind the gap"]})
    result = meshctl("-o", "json", "bridge", "port", "add", "br0", "eth0", *flags)
    assert (result.exit_code, json.loads(result.stdout)["ports"][0]["state"]) == (0, "unconfirmed")
    (asked,) = daemon.requests
    assert asked.body == {"bridge": "br0", "interface": "eth0", "confirm_within_s": seconds}
    assert result.stderr.splitlines() == [
        "warning: mind the gap",
        f"warning: eth0 goes back in {seconds:g} s unless `meshctl bridge confirm` comes first",
    ]


@pytest.mark.parametrize("time", ["", "soon", "-5s", "1d", "5 s", "1e3"])
def test_what_is_no_time_is_wrong_usage(daemon, meshctl, time):
    result = meshctl("bridge", "port", "add", "br0", "eth0", f"--confirm-within={time}")
    assert (result.exit_code, daemon.requests) == (2, [])
    assert "is not a time, e.g. 60s, 5m or 1h" in result.stderr


def test_the_rest_asks_for_what_it_says(daemon, meshctl):
    daemon.answers |= {
        "POST /v1/bridges": (201, BR0), "POST /v1/bridges/confirm": (200, CONFIRMED),
        "DELETE /v1/bridges/br0": (200, {"removed": True}),
        "DELETE /v1/bridges/ports/eth0?bridge=br0": (200, {"removed": True}),
    }  # fmt: skip
    for command in (("create", "br0"), ("confirm",), ("port", "rm", "br0", "eth0"), ("rm", "br0")):
        assert meshctl("bridge", *command).exit_code == 0
    assert daemon.requests[0].body == {"name": "br0"}
    assert len(daemon.requests) == 4


def test_lines_for_a_file_are_a_hint_each(daemon, meshctl):
    said = {
        "error": "networkd looks after eth0",
        "hint": "do:",
        "lines": [r"printf 'a\nb' >c", "x"],
        "code": "conflict",
    }
    daemon.answers["POST /v1/bridges/ports"] = (409, said)
    result = meshctl("bridge", "port", "add", "br0", "eth0")
    told = ["error: networkd looks after eth0", "hint: do:", r"hint: printf 'a\nb' >c", "hint: x"]
    assert result.stderr.splitlines() == told
