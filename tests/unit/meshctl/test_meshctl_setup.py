"""init, token and join: the files that they leave, and that they leave none where they fail."""

import base64
import ipaddress
import json
import os
import re
import stat
import subprocess
import tempfile
import tomllib
from pathlib import Path

import pytest

from meshctl import setup, systemd
from meshctl.token import Token, decode, encode, new_key

KEY = new_key(bytes(34))
CARRIED = Token(("192.0.2.1:7947", "[2001:db8::1]:7000"), KEY, ("fd00:1:2::/48",))
ME = {"name": "host2", "state": "alive", "self": True}
OTHER = {"name": "host1", "state": "alive", "self": False}
CLI = Path(__file__).parents[3] / "cli"


@pytest.fixture
def open_directory():
    """A directory that every user can reach; pytest's own cannot be."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(autouse=True)
def booted(monkeypatch, tmp_path):
    """No test may touch this machine's own units: systemd is running just where a test makes this directory."""
    monkeypatch.setattr(systemd, "BOOTED", tmp_path / "systemd")
    return tmp_path / "systemd"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_writes_a_config_and_a_fresh_keyring_and_prints_the_join_command(meshctl, tmp_path):
    etc = tmp_path / "etc" / "meshd"
    result = meshctl(
        "-o",
        "json",
        "init",
        "--name",
        "host1",
        "--bind",
        "127.0.0.1",
        "--port",
        "8000",
        "--config-dir",
        str(etc),
    )
    assert (result.exit_code, result.stderr) == (0, "")
    said = json.loads(result.stdout)
    assert names(etc) == ["keyring", "meshd.toml"]
    assert (mode(etc / "keyring"), mode(etc / "meshd.toml"), mode(etc)) == (0o600, 0o640, 0o750)
    config = tomllib.loads((etc / "meshd.toml").read_text())
    token = decode(said["token"])
    assert config["host"] == {"name": "host1"}
    assert config["gossip"] == {"bind": "127.0.0.1", "port": 8000, "keyring": str(etc / "keyring")}
    assert config["pools"] == {"v6": list(token.v6)}
    assert (etc / "keyring").read_text() == token.key + "\n"
    assert token.seeds == ("127.0.0.1:8000",)
    assert said["join"] == f"meshctl join {said['token']}"
    assert (said["started"], said["start"]) == (False, f"meshd --config {etc}/meshd.toml")


def test_no_two_clusters_share_a_key_or_an_ipv6_pool(meshctl, tmp_path):
    tokens = []
    for name in ("a", "b"):
        result = meshctl("-o", "json", "init", "--bind", "::1", "--config-dir", str(tmp_path / name))
        tokens.append(decode(json.loads(result.stdout)["token"]))
    first, second = tokens
    assert first.seeds == ("[::1]:7947",)
    assert re.fullmatch(r"[0-9a-f]{4}:.{44}", first.key)
    assert len(base64.b64decode(first.key[5:])) == 32
    assert first.key[5:] != second.key[5:]
    assert first.v6 != second.v6
    pool = ipaddress.ip_network(first.v6[0])
    assert (pool.prefixlen, pool.network_address.packed[0]) == (48, 0xFD)


def test_people_see_the_next_steps(meshctl, tmp_path):
    lines = meshctl("init", "--bind", "127.0.0.1", "--config-dir", str(tmp_path / "etc")).stdout.splitlines()
    assert lines[:4] == [
        f"wrote {tmp_path}/etc/meshd.toml and keyring",
        "start the daemon:",
        f"  meshd --config {tmp_path}/etc/meshd.toml",
        "on each further host, as root:",
    ]
    assert decode(lines[4].removeprefix("  meshctl join ")).seeds == ("127.0.0.1:7947",)


@pytest.mark.parametrize("there", ["keyring", "meshd.toml"])
@pytest.mark.parametrize("command", [["init", "--bind", "127.0.0.1"], ["join", encode(CARRIED)]])
def test_existing_files_are_never_replaced(meshctl, tmp_path, there, command):
    (tmp_path / there).write_text("mine")
    before = names(tmp_path)
    result = meshctl(*command, "--config-dir", str(tmp_path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        f"error: {tmp_path / there} exists already; nothing was changed",
        "hint: this host is set up already; to begin anew, stop meshd and remove its meshd.toml and keyring first",
    ]
    assert names(tmp_path) == before
    assert (tmp_path / there).read_text() == "mine"


@pytest.mark.parametrize(
    "bind, what",
    [
        ("198.51.100.7", "is not an address of this host"),
        ("2001:db8::7", "is not an address of this host"),
        ("0.0.0.0", "is no address that others can reach"),
        ("::", "is no address that others can reach"),
        ("224.0.0.1", "is no address that others can reach"),
    ],
)
def test_an_address_that_is_not_ours_is_refused_before_anything_is_written(meshctl, tmp_path, bind, what):
    etc = tmp_path / "etc"
    for command in (["init"], ["join", encode(CARRIED)]):
        result = meshctl(*command, "--bind", bind, "--config-dir", str(etc))
        assert result.exit_code == 1
        assert result.stderr.splitlines()[0] == f"error: --bind {bind} {what}; nothing was changed"
    assert not etc.exists()


def test_a_directory_that_cannot_be_made_is_one_line(meshctl, tmp_path):
    (tmp_path / "file").write_text("")
    result = meshctl("init", "--bind", "127.0.0.1", "--config-dir", str(tmp_path / "file" / "etc"))
    assert result.exit_code == 1
    assert (
        result.stderr
        == f"error: {tmp_path}/file/etc cannot be written: not a directory; nothing was changed\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it becomes another user")
def test_a_directory_of_another_user_s_is_one_line_with_the_remedy(open_directory, opened):
    etc = open_directory / "etc"
    etc.mkdir(mode=0o755)
    become = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    command = ["-m", "meshctl.main", "init", "--bind", "127.0.0.1", "--config-dir", str(etc)]
    done = subprocess.run(opened.argv(become, *command), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: {etc} cannot be written: permission denied; nothing was changed",
        "hint: run as root, or name a directory of yours with --config-dir",
    ]
    assert names(etc) == []


def test_a_failure_half_way_leaves_nothing(meshctl, tmp_path, monkeypatch):
    link = os.link

    def full(source, target):
        if target.name == "meshd.toml":
            raise OSError(28, "No space left on device")
        link(source, target)

    monkeypatch.setattr(os, "link", full)
    result = meshctl("init", "--bind", "127.0.0.1", "--config-dir", str(tmp_path / "etc"))
    assert result.exit_code == 1
    assert (
        result.stderr
        == f"error: {tmp_path}/etc cannot be written: no space left on device; nothing was changed\n"
    )
    assert not (tmp_path / "etc").exists()


def test_the_config_may_hold_any_path(meshctl, tmp_path):
    etc = tmp_path / 'a "b" \\ ü 😀'
    assert meshctl("init", "--bind", "127.0.0.1", "--config-dir", str(etc)).exit_code == 0
    assert tomllib.loads((etc / "meshd.toml").read_text())["gossip"]["keyring"] == str(etc / "keyring")


def test_join_writes_what_the_token_carries(meshctl, tmp_path):
    etc = tmp_path / "etc"
    result = meshctl("-o", "json", "join", encode(CARRIED), "--name", "host2", "--config-dir", str(etc))
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["members"] == []
    assert tomllib.loads((etc / "meshd.toml").read_text()) == {
        "host": {"name": "host2"},
        "gossip": {"seeds": list(CARRIED.seeds), "keyring": str(etc / "keyring")},
        "pools": {"v6": ["fd00:1:2::/48"]},
    }
    assert (etc / "keyring").read_text() == KEY + "\n"
    assert mode(etc / "keyring") == 0o600


def test_join_reads_the_token_from_standard_input(meshctl, tmp_path):
    result = meshctl("join", "-", "--config-dir", str(tmp_path / "etc"), input=encode(CARRIED) + "\n")
    assert (result.exit_code, names(tmp_path / "etc")) == (0, ["keyring", "meshd.toml"])


def test_join_waits_until_another_member_is_alive(daemon, meshctl, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "LOOK_EVERY_S", 0.001)
    unready = {"error": "starting", "hint": "", "code": "unavailable"}
    replies = [(503, unready), (200, [ME]), (200, [ME, {**OTHER, "state": "failed"}]), (200, [ME, OTHER])]
    daemon.answers["GET /v1/members"] = lambda _: replies[min(len(daemon.requests), len(replies)) - 1]
    result = meshctl("-o", "json", "join", encode(CARRIED), "--config-dir", str(tmp_path / "etc"))
    assert (result.exit_code, json.loads(result.stdout)["members"]) == (0, ["host1"])
    assert len(daemon.requests) == len(replies)


def test_join_gives_up_with_the_seeds_and_keeps_the_files(daemon, meshctl, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "SEEN_WITHIN_S", 0.0)
    daemon.answers["GET /v1/members"] = (200, [ME])
    result = meshctl("join", encode(CARRIED), "--config-dir", str(tmp_path / "etc"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: no other member was seen within 0 s; the files are written")
    assert "192.0.2.1:7947" in result.stderr
    assert names(tmp_path / "etc") == ["keyring", "meshd.toml"]


@pytest.fixture
def systemctl(tmp_path, monkeypatch, booted):
    """A systemctl that writes down how it was called; it stands for systemd, which does not run everywhere."""
    booted.mkdir()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n. {tmp_path}/then\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(setup, "CONFIG_DIR", str(tmp_path / "etc"))

    def then(script: str) -> Path:
        (tmp_path / "then").write_text(script)
        return tmp_path / "called"

    return then


def test_where_systemd_runs_init_starts_the_unit(meshctl, tmp_path, systemctl):
    called = systemctl("exit 0")
    result = meshctl("-o", "json", "init", "--bind", "127.0.0.1", "--config-dir", str(tmp_path / "etc"))
    said = json.loads(result.stdout)
    assert (said["started"], said["start"]) == (True, None)
    assert called.read_text() == "enable --now meshd\n"


def test_a_unit_that_does_not_start_is_systemctl_s_own_words(meshctl, tmp_path, systemctl):
    systemctl("echo 'Unit meshd.service not found.' >&2; exit 5")
    result = meshctl("init", "--bind", "127.0.0.1", "--config-dir", str(tmp_path / "etc"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "error: systemctl enable --now meshd: Unit meshd.service not found.",
        "hint: the files are written; look with: journalctl -u meshd -n 20",
    ]


def test_the_unit_is_not_started_for_files_that_it_does_not_read(meshctl, tmp_path, systemctl):
    called = systemctl("exit 0")
    assert meshctl("init", "--bind", "127.0.0.1", "--config-dir", str(tmp_path / "other")).exit_code == 0
    assert not called.exists()


def test_token_prints_what_join_takes_and_nothing_else(daemon, meshctl):
    daemon.answers["GET /v1/token"] = (
        200,
        {"seeds": list(CARRIED.seeds), "key": KEY, "v6": list(CARRIED.v6)},
    )
    plain = meshctl("token")
    assert decode(plain.stdout) == CARRIED
    assert json.loads(meshctl("-o", "json", "token").stdout) == {
        "token": plain.stdout.strip(), "join": f"meshctl join {plain.stdout.strip()}", "seeds": list(CARRIED.seeds)
    }  # fmt: skip
