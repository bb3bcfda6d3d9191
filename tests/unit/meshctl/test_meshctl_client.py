"""Every way in which the daemon can be away, refuse or answer nonsense has its line and its exit status."""

import os
import socket
from pathlib import Path

import pytest

MEMBERS = "GET /v1/members"
NOT_HTTP = b"220 smtp ready\r\n"
CUT = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[1, 2"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n[]"
HTML = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>"


def test_a_daemon_that_is_not_there_is_status_3(meshctl, tmp_path):
    path = tmp_path / "api.sock"
    result = meshctl("members")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.splitlines() == [
        f"error: meshd is not reachable at {path}: no such file or directory",
        "hint: start it: systemctl start meshd; --socket or MESHD_SOCKET names another socket",
    ]


def test_a_socket_that_nobody_listens_on_is_status_3(meshctl, tmp_path):
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    result = meshctl("--socket", str(path), "members")
    assert result.exit_code == 3
    assert result.stderr.splitlines() == [
        f"error: meshd is not reachable at {path}: connection refused",
        "hint: the daemon has stopped: systemctl start meshd",
    ]


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_is_no_socket_is_told_from_a_daemon_that_stopped(meshctl, tmp_path, make):
    make(tmp_path / "x")
    result = meshctl("--socket", str(tmp_path / "x"), "members")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.splitlines() == [
        f"error: meshd is not reachable at {tmp_path / 'x'}: it is not a socket",
        "hint: --socket or MESHD_SOCKET names the daemon's api.sock",
    ]


def test_a_path_too_long_for_a_socket_is_status_3_and_one_line(meshctl):
    result = meshctl("--socket", "/" + "x" * 200, "members")
    assert result.exit_code == 3
    error, hint = result.stderr.splitlines()
    assert error.endswith(": a socket's path has at most 107 bytes")
    assert hint == "hint: --socket or MESHD_SOCKET names the daemon's api.sock"


@pytest.mark.parametrize(
    "answer, said",
    [
        (NOT_HTTP, "what answers at {} does not speak HTTP"),
        (CUT, "meshd at {} closed the connection before it had answered"),
        (b"", "meshd at {} closed the connection before it had answered"),
        (HTML, "what answers at {} is not meshd: its answer is not JSON"),
    ],
)
def test_nonsense_from_the_socket_is_status_3(daemon, meshctl, answer, said):
    daemon.answers[MEMBERS] = answer
    result = meshctl("members")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.splitlines()[0] == f"error: {said.format(daemon.path)}"


@pytest.mark.parametrize("answer", [CHUNKED, UNTIL_CLOSE, (200, [])])
def test_every_framing_of_http_is_read(daemon, meshctl, answer):
    daemon.answers[MEMBERS] = answer
    result = meshctl("-o", "json", "members")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "[]\n", "")


def test_a_change_whose_answer_was_lost_may_have_been_done_and_says_so(daemon, meshctl):
    daemon.answers["POST /v1/leave"] = b""
    result = meshctl("leave")
    assert result.exit_code == 3
    assert (
        result.stderr.splitlines()[1] == "hint: it may have been done all the same: look before you try again"
    )


REFUSALS = [
    (400, {"error": "the network blue has no room", "hint": "add a subnet", "code": "bad-request"}),
    (403, {"error": "only root may leave", "hint": "", "code": "forbidden"}),
    (404, {"error": "no such network: blue", "hint": "meshctl network ls", "code": "not-found"}),
    (409, {"error": "blue has 2 endpoints", "hint": "detach them", "code": "conflict"}),
    (500, {"error": "the kernel refused: no buffer space", "hint": "", "code": "kernel"}),
    (503, {"error": "host2 does not answer", "hint": "again later", "code": "unavailable"}),
]


@pytest.mark.parametrize("status, refusal", REFUSALS)
@pytest.mark.parametrize("output", ["table", "json"])
def test_a_refusal_is_the_daemon_s_own_words_and_status_1(daemon, meshctl, status, refusal, output):
    daemon.answers["DELETE /v1/networks/blue"] = (status, refusal)
    result = meshctl("-o", output, "network", "rm", "blue")
    assert (result.exit_code, result.stdout) == (1, "")
    hint = [f"hint: {refusal['hint']}"] if refusal["hint"] else []
    assert result.stderr.splitlines() == [f"error: {refusal['error']}", *hint]


def test_a_refusal_without_words_still_is_a_line(daemon, meshctl):
    daemon.answers["DELETE /v1/networks/blue"] = (500, ["?"])
    assert meshctl("network", "rm", "blue").stderr == "error: meshd answered with status 500\n"


def test_words_of_the_daemon_never_reach_the_terminal_as_control_characters(daemon, meshctl):
    daemon.answers["DELETE /v1/networks/blue"] = (409, {"error": "two\nlines \x1b[2J", "hint": "a\tb"})
    assert meshctl("network", "rm", "blue").stderr == "error: two lines \\x1b[2J\nhint: a\\tb\n"


@pytest.mark.parametrize("name", ["../status", "a b", "a?b=c", "ä", "a/b"])
def test_a_name_in_a_path_cannot_reach_another_route(daemon, meshctl, name):
    meshctl("network", "inspect", name)
    (asked,) = daemon.requests
    path = asked.target.removeprefix("/v1/networks/")
    assert asked.target.startswith("/v1/networks/")
    assert not set("/? ") & set(path)
    assert path.isascii()


def test_the_option_beats_the_environment(daemon, meshctl, tmp_path):
    daemon.answers[MEMBERS] = (200, [])
    result = meshctl("--socket", str(daemon.path), "members", env={"MESHD_SOCKET": str(tmp_path / "none")})
    assert result.exit_code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it becomes another user")
def test_a_socket_that_the_caller_may_not_use_names_the_group(daemon, meshctl):
    daemon.path.chmod(0o600)
    os.seteuid(65534)
    try:
        result = meshctl("members")
    finally:
        os.seteuid(0)
    assert result.exit_code == 3
    assert result.stderr.splitlines()[1] == "hint: run as root or as a member of the group meshd"
