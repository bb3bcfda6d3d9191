"""A driver of the specification's own protocol (tests/lab/cnitools.py): the operations that no runtime of these calls,
in each version, with the list's file as it is documented."""

import json

import pytest

from meshctl.labcluster import Lab
from meshctl.labhost import wait_for
from meshctl.ping import ping
from meshd.api.cniconfig import SINCE, VERSIONS
from tests.lab.cnitools import CniError, Runtime

NETWORK = "proto"


@pytest.fixture(scope="module")
def network(lab: Lab) -> str:
    """An overlay of both hosts."""
    lab.hosts[0].json("network", "create", NETWORK)
    lab.hosts[1].wait_network(NETWORK)
    return NETWORK


@pytest.mark.conforms("driver", "run", "end", "CHECK", "GC", "STATUS", "VERSION")
def test_each_version_does_what_it_has(lab: Lab, network: str) -> None:
    here, there = (Runtime(host, network) for host in lab.hosts)
    peer = lab.container("protopeer")
    there.add("peer", f"/run/netns/{peer}")
    shown = json.loads(here.run("VERSION", {"type": "meshd"}, CNI_NETNS="dummy").stdout)
    assert tuple(shown["supportedVersions"]) == VERSIONS
    for version in VERSIONS:
        here.version = version
        has = {
            operation
            for operation, since in SINCE.items()
            if VERSIONS.index(since) <= VERSIONS.index(version)
        }
        ns = lab.container(f"proto{VERSIONS.index(version)}")
        name = f"c-{version}"
        result = here.add(name, f"/run/netns/{ns}")
        assert result["cniVersion"] == version
        here.host.wait_rows(
            *(e["mac"] for e in there.host.json("endpoint", "ls") if e["runtime_id"] == "peer")
        )
        there.host.wait_rows(result["interfaces"][-1]["mac"])
        assert ping(peer, result["ips"][0]["address"].partition("/")[0]).lost == 0
        if "CHECK" in has:
            here.check(name)
        else:
            with pytest.raises(CniError, match="has no CHECK"):
                here.check(name)
        status = here.ask("STATUS")
        assert (status.returncode == 0) == ("STATUS" in has), status.stdout
        if "GC" in has:
            here.gc((name, "eth0"))
            here.check(name)
            here.gc()
            with pytest.raises(CniError, match="has no endpoint"):
                here.check(name)
        here.delete(name)
        here.delete(name, CNI_NETNS="")
    there.delete("peer")
    wait_for("all is gone", 20.0, lambda: lab.hosts[0].json("endpoint", "ls", "--network", network) == [])
