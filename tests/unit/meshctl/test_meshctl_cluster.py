"""What the commands that ask and print do with an answer: JSON untouched, tables for people, diff's exit status."""

import json

import pytest

HOST1 = {
    "id": "a1" * 16, "name": "host1", "address": "192.0.2.1", "port": 7947, "state": "alive", "incarnation": 7,
    "self": True, "degraded": False, "restarting": False, "rtt_ms": None, "version": "0.1.0", "last_seen_s": 0.0,
}  # fmt: skip
HOST2 = {**HOST1, "id": "b2" * 16, "name": "host2", "address": "2001:db8::2", "self": False, "degraded": True,
         "restarting": True, "state": "suspect", "rtt_ms": 0.26, "last_seen_s": 1.25}  # fmt: skip
STATUS = {
    "ready": True, "host": {"id": "a1" * 16, "name": "host1", "address": "192.0.2.1"},
    "cluster": {"id": "c3" * 4, "alive": 2, "suspect": 1, "failed": 0, "left": 0}, "digest": "d4" * 16, "networks": 4,
    "endpoints": 9, "kernel": {"in_sync": False, "missing": 2, "stale": 1}, "keys": {"primary": "1f2e"},
    "health": ["host2 is reached by stream only"], "loop": {"lag_ms": 0.21, "lag_worst_ms": 31.5},
    "offload": [{"device": "eth0", "driver": "ixgbe", "computes": "card", "features": ["tx-checksum-ip-generic"],
                 "result": "right", "detail": "right at host2"}],
}  # fmt: skip
FINDING = {"object": "fdb", "what": "02:00:00:00:00:01 dev mv1", "why": "host2 says so"}


@pytest.mark.parametrize(
    "command, path, document",
    [
        (["members"], "members", [HOST1, HOST2]),
        (["status"], "status", STATUS),
        (["diff"], "diff", {"in_sync": True, "missing": [], "stale": [], "foreign": []}),
        (["network", "ls"], "networks", [{"name": "blue", "new-field": [1]}]),
        (["network", "inspect", "blue"], "networks/blue", {"name": "blue", "blocks": []}),
        (["endpoint", "ls"], "endpoints", []),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_json_is_the_daemon_s_document_in_one_line(daemon, meshctl, command, path, document, before):
    daemon.answers[f"GET /v1/{path}"] = (200, document)
    result = meshctl(*(["-o", "json", *command] if before else [*command, "-o", "json"]))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == document


def test_members_are_a_table_with_what_is_unusual_in_notes(daemon, meshctl):
    daemon.answers["GET /v1/members"] = (200, [HOST1, HOST2])
    assert meshctl("members").stdout.splitlines() == [
        "NAME   ID        ADDRESS             STATE    RTT     SEEN   VERSION  NOTES",
        "host1  a1a1a1a1  192.0.2.1:7947      alive    -       0.0 s  0.1.0    self",
        "host2  b2b2b2b2  [2001:db8::2]:7947  suspect  0.3 ms  1.2 s  0.1.0    degraded,restarting",
    ]


def test_a_name_with_control_characters_is_shown_escaped(daemon, meshctl):
    daemon.answers["GET /v1/members"] = (200, [{**HOST1, "name": "\x1b]0;owned\x07"}])
    assert "\\x1b]0;owned\\x07" in meshctl("members").stdout


def test_status_says_what_is_out_of_step(daemon, meshctl):
    daemon.answers["GET /v1/status"] = (200, STATUS)
    lines = dict(line.split(":", 1) for line in meshctl("status").stdout.splitlines())
    assert lines["loop"].strip() == "woke 0.2 ms late, at worst 31.5 ms within a minute"
    assert lines["checksums"].strip() == "right: eth0 (ixgbe), computed by the card; right at host2"
    assert lines["kernel"].strip() == "2 missing, 1 stale"
    assert lines["cluster"].strip() == f"2 alive, 1 suspect, 0 failed, 0 left; id {'c3' * 4}"
    assert lines["health"].strip() == "host2 is reached by stream only"


@pytest.mark.parametrize(
    "missing, stale, foreign, status",
    [
        ([], [], [], 0),
        ([], [], [FINDING], 0),
        ([FINDING], [], [], 1),
        ([], [FINDING], [], 1),
        ([FINDING],) * 3 + (1,),
    ],
)
@pytest.mark.parametrize("output", ["table", "json"])
def test_diff_fails_for_what_is_missing_or_stale_alone(
    daemon, meshctl, missing, stale, foreign, status, output
):
    document = {"in_sync": not missing + stale, "missing": missing, "stale": stale, "foreign": foreign}
    daemon.answers["GET /v1/diff"] = (200, document)
    result = meshctl("-o", output, "diff")
    assert (result.exit_code, result.stderr) == (status, "")
    if output == "json":
        assert json.loads(result.stdout) == document


def test_diff_lists_every_finding_and_its_kind(daemon, meshctl):
    daemon.answers["GET /v1/diff"] = (200, {"missing": [FINDING], "stale": [], "foreign": [FINDING]})
    head, first, second = meshctl("diff").stdout.splitlines()
    assert head.split() == ["STATE", "OBJECT", "WHAT", "WHY"]
    assert first == "missing  fdb     02:00:00:00:00:01 dev mv1  host2 says so"
    assert second.startswith("foreign ")


def ndjson(*documents: object) -> bytes:
    body = "".join(json.dumps(document) + "\n" for document in documents).encode()
    chunk = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n"


EVENTS = [
    {"time": 1767225600.25, "kind": "member-alive", "host": "host2", "address": "192.0.2.2"},
    {"time": 1767225601.9996, "kind": "endpoint-added", "ips": ["10.1.0.2/20"], "new": True},
]


def test_events_are_one_json_document_a_line(daemon, meshctl):
    daemon.answers["GET /v1/events?follow=0"] = ndjson(*EVENTS)
    result = meshctl("events", "-o", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [json.loads(line) for line in result.stdout.splitlines()] == EVENTS


def test_events_are_one_line_each_for_people(daemon, meshctl):
    daemon.answers["GET /v1/events?follow=0"] = ndjson(*EVENTS)
    assert meshctl("events").stdout.splitlines() == [
        "2026-01-01T00:00:00.250Z  member-alive  host=host2 address=192.0.2.2",
        "2026-01-01T00:00:02.000Z  endpoint-added  ips=10.1.0.2/20 new=yes",
    ]


def test_following_a_daemon_that_stops_is_status_3_after_the_events(daemon, meshctl):
    daemon.answers["GET /v1/events?follow=1"] = ndjson(EVENTS[0])
    result = meshctl("-o", "json", "events", "--follow")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == EVENTS[0]
    assert result.stderr.splitlines()[0] == f"error: meshd at {daemon.path} ended the event stream"


def test_leave_asks_once_and_prints_the_answer(daemon, meshctl):
    daemon.answers["POST /v1/leave"] = (200, {})
    result = meshctl("-o", "json", "leave")
    assert (result.exit_code, result.stdout, daemon.asked()) == (0, "{}\n", ["POST /v1/leave"])


def test_leave_says_what_was_handed_on_and_who_did_not_confirm(daemon, meshctl):
    handed = [{"network": "blue", "block": "10.1.0.128 to 10.1.0.255", "to": "host1"}]
    daemon.answers["POST /v1/leave"] = (200, {"handed_on": handed, "unconfirmed": ["host1"]})
    assert meshctl("leave").stdout.splitlines() == [
        "handed on: blue: 10.1.0.128 to 10.1.0.255 to host1",
        "not confirmed by host1: they learn of it from the others",
        "this host has left the cluster and its daemon stops",
        "where systemd starts it at boot: systemctl disable meshd",
    ]


def test_forget_says_where_the_blocks_go(daemon, meshctl):
    blocks = [{"network": "blue", "block": "10.1.0.7", "to": "host1"}]
    daemon.answers["POST /v1/forget"] = (200, {"id": "ab", "name": "host2", "blocks": blocks})
    assert meshctl("forget", "host2", "--fenced").stdout.splitlines() == [
        "host host2 is forgotten",
        "goes on: blue: 10.1.0.7 to host1",
    ]
    assert meshctl("forget").exit_code == 2


def test_reload_says_what_is_used_now_and_what_needs_a_restart(daemon, meshctl):
    daemon.answers["POST /v1/reload"] = (
        200,
        {
            "changed": [{"key": "pools.v4", "before": ["10.0.0.0/8"], "after": []}],
            "restart": [{"key": "host.name", "before": None, "after": "a"}],
            "notes": ["mind this"],
        },
    )
    assert meshctl("reload").stdout.splitlines() == [
        "changed: pools.v4: 10.0.0.0/8 -> -",
        "needs a restart: host.name: (default) -> a",
        "note: mind this",
    ]


def test_version_works_without_a_daemon(meshctl):
    result = meshctl("-o", "json", "version")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["daemon"] is None


def test_version_names_the_daemon_s_too(daemon, meshctl):
    daemon.answers["GET /v1/version"] = (200, {"version": "9.9"})
    assert json.loads(meshctl("-o", "json", "version").stdout)["daemon"] == "9.9"


METRICS = b"""# HELP meshd_members Hosts.
# TYPE meshd_members gauge
meshd_members{state="alive"} 3.0
meshd_refused_total{reason="tag of \\"x\\", no",host="a"} 1e+06
meshd_networks 2.0
"""


def test_metrics_are_the_page_as_it_is_and_in_json_a_list(daemon, meshctl):
    daemon.answers["GET /metrics"] = b"HTTP/1.1 200 X\r\ncontent-length: %d\r\n\r\n%s" % (
        len(METRICS),
        METRICS,
    )
    assert meshctl("metrics").stdout.encode() == METRICS
    assert json.loads(meshctl("-o", "json", "metrics").stdout) == [
        {"name": "meshd_members", "labels": {"state": "alive"}, "value": 3},
        {
            "name": "meshd_refused_total",
            "labels": {"reason": 'tag of \\"x\\", no', "host": "a"},
            "value": 1e6,
        },
        {"name": "meshd_networks", "labels": {}, "value": 2},
    ]


def test_metrics_of_a_daemon_that_refuses_are_its_error(daemon, meshctl):
    daemon.answers["GET /metrics"] = (403, {"error": "no", "hint": "", "code": "forbidden"})
    result = meshctl("metrics")
    assert (result.exit_code, result.stderr) == (1, "error: no\n")
