"""What users' scripts rest on: every command's JSON, field by field, on real daemons, and the same over HTTP.

Fields may be added; those here keep their name and meaning. A shape is a type, a set of allowed values, a pattern,
a one-element list (every element has that shape), a dict (these fields at least) or a tuple (any of these).
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for

ID = re.compile(r"[0-9a-f]{32}")
IP = re.compile(r"[0-9.]+|[0-9a-f:]+")
CIDR = re.compile(rf"({IP.pattern})/[0-9]+")
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
TOKEN = re.compile(r"meshd1\.[A-Za-z0-9_-]+")
NULL = type(None)
NUMBER = (int, float, NULL)

MEMBER = {
    "id": ID, "name": str, "address": IP, "port": int, "state": {"alive", "suspect", "failed", "left"},
    "incarnation": int, "self": bool, "degraded": bool, "restarting": bool, "rtt_ms": NUMBER, "version": str,
    "last_seen_s": NUMBER,
}  # fmt: skip
STATUS = {
    "ready": bool, "host": {"id": ID, "name": str, "address": IP},
    "cluster": {"id": ID, "alive": int, "suspect": int, "failed": int, "left": int},
    "digest": re.compile("[0-9a-f]+"), "networks": int, "endpoints": int,
    "kernel": {"in_sync": bool, "missing": int, "stale": int},
    "keys": {"primary": re.compile("[0-9a-f]{4}")}, "health": [str],
}  # fmt: skip
NETWORK = {
    "name": str, "id": (ID, {""}), "driver": {"overlay", "bridge", "none", "host"}, "scope": {"global", "host"},
    "vni": int, "subnets": [CIDR], "gateways": [IP], "mtu": int, "internal": bool, "endpoints": int,
}  # fmt: skip
DETAIL = NETWORK | {
    "options": {}, "labels": {}, "blocks": [{"block": CIDR, "owner": (str, NULL), "free": int}],
}  # fmt: skip
ENDPOINT = {
    "id": ID, "network": str, "host": str, "name": str, "aliases": [str], "ips": [CIDR], "mac": MAC, "ifname": str,
    "state": {"up", "stale"}, "published": [],
}  # fmt: skip
FINDING = {"object": str, "what": str, "why": str}
DIFF = {"in_sync": bool, "missing": [FINDING], "stale": [FINDING], "foreign": [FINDING]}
EVENT = {"time": NUMBER[:2], "kind": re.compile(r"[a-z]+(-[a-z]+)*")}
JOINING = {"token": TOKEN, "join": re.compile(rf"meshctl join {TOKEN.pattern}")}

BRIDGE = {
    "name": str, "id": ID, "state": {"up", "down", "missing"}, "mac": MAC, "mtu": int, "ports": [], "others": [str],
    "created": float,
}  # fmt: skip

COMMANDS: dict[str, Any] = {
    "status": STATUS,
    "members": [MEMBER],
    "network ls": [NETWORK],
    "network inspect shaped": DETAIL,
    "network inspect {network}": DETAIL,
    "network inspect bridge": DETAIL,
    "network inspect none": DETAIL,
    "network inspect host": DETAIL,
    "endpoint ls": [ENDPOINT],
    "endpoint ls --network shaped --host host1": [ENDPOINT],
    "endpoint ls --host {host}": [ENDPOINT],
    "endpoint inspect {endpoint}": ENDPOINT,
    "endpoint inspect {short}": ENDPOINT,
    "diff": DIFF,
    "metrics": [{"name": re.compile(r"meshd_\w+"), "labels": dict, "value": float}],
    "token": JOINING,
    "version": {"version": str, "daemon": str},
    "completion bash": {"shell": str, "script": str},
    "attach shaped --netns {ns} --name shape": ENDPOINT,
    "detach shaped --endpoint 00000000": {"removed": {False}, "endpoints": []},
    "network create more --label a=b": DETAIL,
    "network update more --label a=c": DETAIL,
    "network rm more": {"removed": {True}},
    "bridge create br0": BRIDGE,
    "bridge ls": [BRIDGE],
    "bridge rm br0": {"removed": {True}},
    "drain": {"draining": {True}, "endpoints": int},
    "undrain": {"draining": {False}, "endpoints": int},
    "reload": {"changed": [], "restart": [], "notes": []},
    "init --bind {address} --config-dir {new}": JOINING | {"config": str, "keyring": str, "started": {False}, "start": str},
    "join {token} --bind {address} --config-dir {new}": {"config": str, "keyring": str, "members": [str]},
}  # fmt: skip
"""The command -> what its JSON document has."""

ROUTES = {
    "/v1/status": STATUS,
    "/v1/members": [MEMBER],
    "/v1/networks": [NETWORK],
    "/v1/networks/shaped": DETAIL,
    "/v1/networks/{network}": DETAIL,
    "/v1/endpoints": [ENDPOINT],
    "/v1/endpoints?network=shaped&host=host1": [ENDPOINT],
    "/v1/endpoints/{endpoint}": ENDPOINT,
    "/v1/diff": DIFF,
    "/v1/version": {"version": str},
    "/v1/token": {"seeds": [str], "key": str, "v6": [CIDR]},
    "/healthz": {"ready": {True}},
}

FAULTS = {
    "GET /v1/nothing": (404, "not-found"),
    "GET /v1/networks/nothing": (404, "not-found"),
    "GET /v1/networks/": (404, "not-found"),
    "GET /v1/endpoints/nothing": (404, "not-found"),
    "GET /v1/endpoints?network=nothing": (404, "not-found"),
    "GET /v1/endpoints?host=nothing": (404, "not-found"),
    "GET /v1/endpoints?colour=blue": (400, "bad-request"),
    "GET /v1/endpoints?netns_cookie=-1": (400, "bad-request"),
    "GET /v1/events?follow=2": (400, "bad-request"),
    "PUT /v1/networks/shaped": (405, "method"),
    "POST /v1/networks {": (400, "bad-request"),
    "POST /v1/networks []": (400, "bad-request"),
    "POST /v1/networks {}": (400, "bad-request"),
    'POST /v1/networks {"name":1}': (400, "bad-request"),
    'POST /v1/networks {"name":"n","mtu":"1400"}': (400, "bad-request"),
    'POST /v1/networks {"name":"n","mtu":1e999}': (400, "bad-request"),
    'POST /v1/networks {"name":"n","mtu":-1}': (400, "bad-request"),
    'POST /v1/networks {"name":"n","vni":18446744073709551616}': (400, "bad-request"),
    'POST /v1/networks {"name":"n","subnets":"10.9.0.0/24"}': (400, "bad-request"),
    'POST /v1/networks {"name":"n","subnets":["10.9.0.9/24"]}': (400, "bad-request"),
    'POST /v1/networks {"name":"n","colour":"blue"}': (400, "bad-request"),
    'POST /v1/networks {"name":"shaped"}': (409, "conflict"),
    'POST /v1/endpoints {"network":"shaped"}': (400, "bad-request"),
    'POST /v1/endpoints {"network":"shaped","netns":{"cookie":0,"boot_id":"x"}}': (400, "bad-request"),
    'POST /v1/endpoints {"network":"shaped","netns":{"cookie":1,"boot_id":"x"}}': (400, "bad-request"),
    "DELETE /v1/networks/shaped": (409, "conflict"),
    "DELETE /v1/networks/bridge": (400, "bad-request"),
}
"""Request -> status and code; none of them may change anything."""


def faults(value: Any, shape: Any, at: str = "$") -> list[str]:
    """List where ``value`` does not have ``shape``."""
    if isinstance(shape, tuple):
        return [] if any(not faults(value, each, at) for each in shape) else [f"{at}: {value!r}"]
    if isinstance(shape, type):
        return [] if type(value) is shape else [f"{at}: {value!r} is no {shape.__name__}"]
    if isinstance(shape, set):
        return [] if value in shape else [f"{at}: {value!r} is not of {sorted(shape)}"]
    if isinstance(shape, re.Pattern):
        return [] if isinstance(value, str) and shape.fullmatch(value) else [f"{at}: {value!r}"]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{at}: {value!r} is no array"]
        return [f for n, each in enumerate(value) for one in shape for f in faults(each, one, f"{at}[{n}]")]
    if not isinstance(value, dict):
        return [f"{at}: {value!r} is no object"]
    missing = [f"{at}.{name}: missing" for name in shape if name not in value]
    return missing + [
        f for name in shape if name in value for f in faults(value[name], shape[name], f"{at}.{name}")
    ]


@pytest.fixture(scope="module")
def words(lab3: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the tables are filled in with, once the lab has one of everything: ``shaped``, with an endpoint."""
    host = lab3.hosts[0]
    network = host.json("network", "create", "shaped", "--ipv6", "--label", "k=v")
    ns = f"/run/netns/{lab3.container('shape')}"
    endpoint = host.json("attach", "shaped", "--netns", ns, "--name", "shape", "--alias", "form")
    wait_for("all have the same state", 10, lambda: len({one.status()["digest"] for one in lab3.hosts}) == 1)
    return {
        "ns": ns, "network": network["id"], "endpoint": endpoint["id"], "short": endpoint["id"][:8],
        "host": endpoint["host_id"], "address": host.address, "token": host.json("token")["token"],
        "dir": str(tmp_path_factory.mktemp("contract")),
    }  # fmt: skip


def filled(text: str, words: dict[str, str], number: int) -> list[str]:
    return [word.format(**words, new=f"{words['dir']}/{number}") for word in text.split()]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_json_is_one_document_with_the_fields_promised(
    lab3: Lab, words: dict[str, str], command: str
) -> None:
    argv = filled(command, words, list(COMMANDS).index(command))
    if command.startswith("attach"):
        argv += ["--alias", "form"]
    done = lab3.hosts[0].meshctl("-o", "json", *argv)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1, "one document on one line"
    document = json.loads(done.stdout)
    assert faults(document, COMMANDS[command]) == []
    assert document != []


@pytest.mark.parametrize(
    "command", ["status", "members", "network ls", "endpoint ls", "diff", "version", "events"]
)
def test_a_table_is_text_without_colours_on_a_pipe(lab3: Lab, words: dict[str, str], command: str) -> None:
    done = lab3.hosts[0].meshctl(*command.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n")
    assert done.stdout.replace("\n", "").isprintable()


def test_a_table_says_what_the_json_says(lab3: Lab, words: dict[str, str]) -> None:
    host = lab3.hosts[0]
    for command, column in (("members", "name"), ("network ls", "name"), ("endpoint ls", "name")):
        told = host.meshctl(*command.split()).stdout.splitlines()
        found = [row[column] for row in host.json(*command.split())]
        at = told[0].split().index(column.upper())
        assert [line.split()[at] for line in told[1:]] == found


def test_events_are_one_document_a_line(lab3: Lab, words: dict[str, str]) -> None:
    for host in lab3.hosts:
        done = host.meshctl("-o", "json", "events")
        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert faults(events, [EVENT]) == []
        assert {"network-created", "endpoint-added"} <= {event["kind"] for event in events}
    assert "member-alive" in {event["kind"] for event in lab3.hosts[0].events()}


def test_attaching_the_same_again_prints_the_same_and_with_another_flag_names_the_difference(
    lab3: Lab, words: dict[str, str]
) -> None:
    host, again = (
        lab3.hosts[0],
        ("attach", "shaped", "--netns", words["ns"], "--name", "shape", "--alias", "form"),
    )
    assert host.json(*again)["id"] == words["endpoint"]
    done = host.meshctl(*again, "--mac", "02:00:00:00:00:99")
    assert (done.returncode, done.stdout) == (1, "")
    assert "mac is " in done.stderr


# --- HTTP --------------------------------------------------------------------------------------------------


def curl(host: Host, method: str, path: str, body: str = "") -> tuple[int, str, Any]:
    """Return status, content type and document, as curl(1) has them."""
    data = ["-H", "Content-Type: application/json", "-d", body] if body else []
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "10", "--unix-socket", str(host.socket), "-X", method, *data,
         "-w", "\n%{http_code} %{content_type}", f"http://localhost{path}"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    text, _, last = done.stdout.rpartition("\n")
    status, _, kind = last.partition(" ")
    return int(status), kind, json.loads(text)


@pytest.mark.parametrize("path", ROUTES)
def test_a_route_answers_with_the_same_fields(lab3: Lab, words: dict[str, str], path: str) -> None:
    status, kind, document = curl(lab3.hosts[0], "GET", path.format(**words))
    assert (status, kind) == (200, "application/json")
    assert faults(document, ROUTES[path]) == []


def test_the_event_route_is_one_document_a_line(lab3: Lab, words: dict[str, str]) -> None:
    done = subprocess.run(
        ["curl", "-sS", "-i", "--max-time", "10", "--unix-socket", str(lab3.hosts[0].socket),
         "http://localhost/v1/events"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    head, _, body = done.stdout.partition("\n\n")
    assert "application/x-ndjson" in head.lower()
    assert faults([json.loads(line) for line in body.splitlines()], [EVENT]) == []


@pytest.mark.parametrize("request_line", FAULTS)
def test_a_refusal_over_http_is_error_hint_and_code_and_changes_nothing(
    lab3: Lab, words: dict[str, str], request_line: str
) -> None:
    host = lab3.hosts[0]
    method, path, *body = request_line.split(" ", 2)
    before = host.status()["digest"]
    status, kind, document = curl(host, method, path, *body)
    assert (status, kind, document["code"]) == (
        FAULTS[request_line][0],
        "application/json",
        FAULTS[request_line][1],
    )
    assert set(document) == {"error", "hint", "code"}
    assert document["error"]
    assert all("\n" not in document[name] for name in document)
    assert host.status()["digest"] == before


def test_what_the_contract_says_of_shapes_can_fail() -> None:
    good = {"object": "o", "what": "w", "why": "y"}
    assert faults([good], [FINDING]) == []
    assert faults([good | {"why": 1}], [FINDING]) == ["$[0].why: 1 is no str"]
    assert faults([{"object": "o", "what": "w"}], [FINDING]) == ["$[0].why: missing"]
    assert faults(True, int) != []
    assert faults({"state": "gone"}, {"state": {"up", "stale"}}) != []


def test_every_command_there_is_is_in_a_table_of_these_tests() -> None:
    from meshctl.main import COMMANDS as KNOWN

    here = "".join(path.read_text() for path in Path(__file__).parent.glob("test_lab_*.py"))
    elsewhere = {"install", "uninstall"}  # no daemon's: test_meshctl_install.py and test_real_systemd_pip.py
    assert [name for name in KNOWN if name not in elsewhere and not re.search(rf'"{name}\b', here)] == []
