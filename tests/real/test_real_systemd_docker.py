"""Docker's own unit beside meshd's on hosts booted by systemd: README's lines, and each of the two restarted."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from booted import ROOT, BootedHost, BootedLan, wait_for
from bootedmesh import (
    NETWORK,
    UNIT_S,
    VERSION,
    another_process,
    ask,
    form,
    pinging,
    wait_in_sync,
)
from realdocker import image

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

IMAGE = "nginx"  # as README calls it: no registry is asked
DAEMON = {"storage-driver": "vfs"}  # the hosts' root file systems are overlays already
CGROUPS = """[Service]
ExecStartPre=/bin/sh -c 'for tree in /sys/fs/cgroup/*; do mount -o remount,bind,rw $tree; done'
"""
"""systemd-nspawn mounts the control groups read-only."""
DOCKER_S = 60.0


@pytest.fixture(scope="module")
def lan(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedLan]:
    """Two booted hosts with Debian's docker.io and the package; one cluster, one overlay, one container on each."""
    made = BootedLan(2, ["docker.io"])
    try:
        archive = image(tmp_path_factory.mktemp("image"))
        form(made, packages[VERSION])
        for host in made.hosts:
            settings = host.root / "etc/docker/daemon.json"
            settings.parent.mkdir(exist_ok=True)
            settings.write_text(json.dumps(DAEMON))
            drop_in = host.root / "etc/systemd/system/docker.service.d/cgroups.conf"
            drop_in.parent.mkdir()
            drop_in.write_text(CGROUPS)
            host.put(archive, "/root/image.tar")
            host.sh("systemctl daemon-reload; systemctl restart docker")
            host.sh(f'docker import -c \'CMD ["sleep","100000"]\' /root/image.tar {IMAGE}')
            for line in readme():
                host.sh(line)
            host.sh("docker update --restart always web")
        yield made
    finally:
        made.remove()


def readme() -> list[str]:
    """Return README's lines for Docker."""
    text = (ROOT / "README.md").read_text()
    section = text[text.index("### Docker\n") :]
    block = re.search(r"(?m)(^    .*\n)+", section)
    assert block is not None
    lines = [re.sub(r" {2,}#.*", "", line.strip()) for line in block[0].splitlines()]
    assert [line.split()[0] for line in lines] == ["meshctl", "docker"]
    return lines


def address(host: BootedHost) -> str:
    found = json.loads(host.sh("docker inspect -f '{{json .NetworkSettings.Networks}}' web"))
    return str(found[NETWORK]["IPAddress"])


def reach(first: BootedHost, second: BootedHost) -> bool:
    """Say whether the containers of two hosts ping each other, the first packet included."""
    return all(
        there.run("docker", "exec", "web", "ping", "-c", "3", "-W", "2", address(here), check=False).stdout.count("ttl=")
        == 3
        for here, there in ((first, second), (second, first))
    )  # fmt: skip


def attached(host: BootedHost) -> list[tuple[str, str]]:
    """List the cluster's endpoints as a host sees them: host and address."""
    found = ask(host, "endpoint", "ls")
    assert isinstance(found, list)
    return sorted((row["host"], row["ips"][0].split("/")[0]) for row in found)


def test_containers_of_two_hosts_reach_each_other(lan: BootedLan) -> None:
    first, second = lan.hosts
    assert first.sh("systemctl is-active docker meshd meshd-docker.socket").split() == ["active"] * 3
    assert reach(first, second)
    for host in lan.hosts:
        assert attached(host) == [("host1", address(first)), ("host2", address(second))]


@pytest.mark.parametrize(
    "command", ["systemctl restart meshd", "systemctl kill --signal=SIGKILL meshd.service"]
)
def test_meshd_restarts_beside_docker_without_a_packet_lost(lan: BootedLan, command: str) -> None:
    first, second = lan.hosts
    with pinging(second, address(first)):
        for host in lan.hosts:
            with another_process(host):
                host.sh(command)
                # Docker asks at once, and waits for the daemon that comes back
                host.sh(f"docker run --rm --network {NETWORK} {IMAGE} ping -c 1 {address(first)}")
    assert reach(first, second)
    for host in lan.hosts:
        assert attached(host) == [("host1", address(first)), ("host2", address(second))]
        wait_in_sync(host)


@pytest.mark.parametrize(
    "command",
    ["systemctl restart docker", "systemctl kill --signal=SIGKILL docker.service containerd.service"],
)
def test_docker_restarts_and_its_containers_are_on_their_network_again(lan: BootedLan, command: str) -> None:
    first, second = lan.hosts
    first.sh(command)
    wait_for("web to run again", partial(runs, first), DOCKER_S)
    wait_for("the containers to reach each other", lambda: reach(first, second), UNIT_S)
    for host in lan.hosts:
        wait_for(
            "one endpoint a container",
            lambda host=host: attached(host) == [("host1", address(first)), ("host2", address(second))],
            DOCKER_S,
        )  # fmt: skip
        wait_in_sync(host)


def runs(host: BootedHost) -> bool:
    found = host.run(
        "docker", "inspect", "-f", "{{.State.Running}} {{.State.Restarting}}", "web", check=False
    )
    return found.stdout.split() == ["true", "false"]


def test_a_host_boots_with_both(lan: BootedLan) -> None:
    first, second = lan.hosts
    first.power_off()
    first.boot()
    wait_for("web to run again", partial(runs, first), DOCKER_S)
    wait_for("the containers to reach each other", lambda: reach(first, second), UNIT_S)
    assert attached(second) == [("host1", address(first)), ("host2", address(second))]
