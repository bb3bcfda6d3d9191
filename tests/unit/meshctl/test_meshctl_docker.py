"""meshctl docker create: which `docker network create` it runs, and what it makes of Docker's answers."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshctl.client import Client
from meshctl.docker import command_line
from meshctl.errors import Failed
from meshctl.main import cli

BLUE: dict[str, Any] = {
    "name": "blue",
    "driver": "overlay",
    "subnets": ["10.1.0.0/20", "10.2.0.0/24"],
    "gateways": ["10.1.0.1", "10.2.0.9"],
    "internal": False,
}
START = "docker network create --driver meshd --ipam-driver meshd --ipam-opt network=blue --opt network=blue"


@pytest.mark.parametrize(
    "more, host, name, words",
    [
        (
            {},
            None,
            None,
            f"{START} --subnet 10.1.0.0/20 --gateway 10.1.0.1 --subnet 10.2.0.0/24 --gateway 10.2.0.9 blue",
        ),
        (
            {"subnets": ["10.1.0.0/20", "fd00::/64"], "gateways": ["10.1.0.1", "fd00::1"], "internal": True},
            None,
            "azure",
            f"{START} --subnet 10.1.0.0/20 --gateway 10.1.0.1 --subnet fd00::/64 --gateway fd00::1 --ipv6 --internal azure",
        ),
        (
            {"subnets": ["10.1.0.0/20"], "gateways": ["10.1.0.1"]},
            "unix:///x.sock",
            None,
            f"{START} --subnet 10.1.0.0/20 --gateway 10.1.0.1 blue".replace(
                "docker", "docker --host unix:///x.sock", 1
            ),
        ),
    ],
)
def test_the_command_says_all_that_docker_cannot_know(
    more: dict[str, Any], host: str | None, name: str | None, words: str
) -> None:
    assert command_line({**BLUE, **more}, host, name) == words.split()


@pytest.mark.parametrize("network", ["none", "host"])
def test_networks_that_are_only_names_are_dockers_own(network: str) -> None:
    with pytest.raises(Failed, match="only a name"):
        command_line({**BLUE, "name": network}, None, "other")


def test_a_name_that_docker_has_itself_needs_another() -> None:
    with pytest.raises(Failed, match="Docker has a network bridge of its own") as caught:
        command_line({**BLUE, "name": "bridge"}, None, None)
    assert "--name meshd-bridge" in caught.value.hint
    assert command_line({**BLUE, "name": "bridge"}, None, "meshd-bridge")[-1] == "meshd-bridge"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it, and a daemon that knows the network blue."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(Client, "get", lambda _self, *segments, **_: BLUE)
    return tmp_path


def docker_that(path: Path, script: str) -> None:
    program = path / "docker"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, ["docker", "create", *args])


def test_what_docker_made_is_shown(path: Path) -> None:
    docker_that(path, "echo 4e3c5315884a")
    assert run("blue").output == "4e3c5315884a\n"
    told = json.loads(run("blue", "--name", "azure", "-o", "json").output)
    assert (told["network"], told["name"], told["id"]) == ("blue", "azure", "4e3c5315884a")
    assert told["command"][:3] == ["docker", "network", "create"]


@pytest.mark.parametrize(
    "script, what, hint",
    [
        ("echo Error response from daemon: remote: no network >&2; exit 1", "no network", ""),
        ('echo \'Error response from daemon: plugin "meshd" not found\' >&2; exit 1', 'plugin "meshd" not found', "plugin socket"),
        ("echo Cannot connect to the Docker daemon at unix:///x >&2; exit 1", "cannot connect", "start Docker"),
        ("exit 125", "docker ended with status 125", ""),
    ],
)  # fmt: skip
def test_a_refusal_is_told_in_dockers_words_without_its_prefixes(
    path: Path, script: str, what: str, hint: str
) -> None:
    docker_that(path, script)
    done = run("blue")
    assert done.exit_code == 1
    assert what in done.stderr
    assert "Error response" not in done.stderr
    assert hint in done.stderr
    assert ("hint:" in done.stderr) == bool(hint)


def test_without_docker_the_command_to_run_is_told(path: Path) -> None:
    done = run("blue")
    assert done.exit_code == 1
    assert "docker is not installed here" in done.stderr
    assert "docker network create --driver meshd" in done.stderr
