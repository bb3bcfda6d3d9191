"""The one case of real Docker that every run of the tests has: two engines, from network create to network rm."""

from pathlib import Path

import pytest
from realdocker import Engine

from meshctl.labcluster import Lab
from meshctl.labhost import wait_for


@pytest.mark.conforms("docker", "network create", "run", "rm", "network rm")
def test_containers_of_two_engines_ping_each_other_and_leave_nothing(tmp_path: Path) -> None:
    lab = Lab.up(2, tmp_path / "lab")
    engines = [Engine(host, tmp_path / "docker" / host.name) for host in lab.hosts]
    try:
        one, two = lab.hosts
        one.json("network", "create", "blue", "--ipv6")
        two.wait_network("blue")
        for engine in engines:
            engine.up()
            engine.join("blue")
        for engine, name in zip(engines, ("web", "db"), strict=True):
            engine.run(name, "blue")
        first, second = engines
        two.wait_rows(first.networks("web")["blue"]["MacAddress"])
        for family in (4, 6):
            assert first.pings("web", second.ip("db", "blue", family))
            assert second.pings("db", first.ip("web", "blue", family))
        (shown,) = first.endpoints()
        assert shown["runtime_id"] == first.networks("web")["blue"]["EndpointID"]
        for engine, name in zip(engines, ("web", "db"), strict=True):
            engine.well("rm", "-f", name)
            engine.well("network", "rm", "blue")
        assert one.json("endpoint", "ls") == []
        wait_for("the other host knows", 10, lambda: two.json("endpoint", "ls") == [])
        for host in lab.hosts:
            host.wait_in_sync()
    finally:
        for engine in engines:
            engine.down()
        lab.down()
