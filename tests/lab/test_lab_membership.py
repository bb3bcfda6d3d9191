"""Hosts that come, leave, and do not belong."""

import itertools
import shutil
from collections import Counter
from collections.abc import Iterator

import pytest
from labtools import Attached, no_ping_is_lost

from meshctl import labdaemon
from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for


@pytest.fixture
def lab2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts for a test that takes one of them away."""
    lab = Lab.up(2, tmp_path_factory.mktemp("lab2") / "lab")
    yield lab
    lab.down()


def test_a_host_that_leaves_takes_its_rows_its_devices_and_its_endpoints_with_it(lab2: Lab) -> None:
    first, second = lab2.hosts
    first.json("network", "create", "blue", "--ipv6")
    second.wait_network("blue")
    made = []
    for number, host in enumerate((first, first, second)):
        ns = lab2.container(f"c{number}")
        endpoint = host.json("attach", "blue", "--netns", f"/run/netns/{ns}", "--name", f"e{number}")
        made.append(Attached(host, ns, endpoint))
    for host in lab2.hosts:
        host.wait_rows(*(one.mac for one in made))
    no_ping_is_lost(list(itertools.permutations(made, 2)))
    devices = made[0].devices
    owned = owners(first, "blue")["host2"]
    left = second.json("leave")
    assert {(each["network"], each["to"]) for each in left["handed_on"]} == {("blue", "host1")}
    assert left["unconfirmed"] == []
    assert owners(first, "blue") == {"host1": owners(first, "blue")["host1"]}
    assert owned > 0
    wait_for("host1 sees that host2 left", 10, lambda: states(lab2) == {"host1": "alive", "host2": "left"})
    first.wait_rows(made[2].mac, there=False)
    first.wait_in_sync()
    assert {e["name"] for e in first.json("endpoint", "ls")} == {"e0", "e1"}
    no_ping_is_lost([(made[0], made[1])])
    wait_for("host2's daemon ends", 10, lambda: not second.alive)
    assert devices not in second.run("ip", "-br", "link").stdout


def test_a_draining_host_takes_no_new_endpoint_also_after_a_restart_and_everybody_sees_it(lab2: Lab) -> None:
    first, second = lab2.hosts
    old, new = (f"/run/netns/{lab2.container(name)}" for name in ("old", "new"))
    kept = second.json("attach", "bridge", "--netns", old)
    assert second.json("drain") == {"draining": True, "endpoints": 1}
    wait_for(
        "host1 sees it",
        10,
        lambda: {m["name"]: m["draining"] for m in first.json("members")}["host2"] is True,
    )
    second.kill()
    second.start()
    assert second.status()["host"]["draining"]
    refused = second.meshctl("attach", "bridge", "--netns", new)
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "error: this host is draining and takes no new endpoints",
        "hint: meshctl undrain",
    ]
    assert second.json("attach", "bridge", "--netns", old)["id"] == kept["id"]  # it is here already
    assert "draining" in first.meshctl("members").stdout
    assert second.json("undrain") == {"draining": False, "endpoints": 1}
    for path in (old, new):
        second.json("attach", "bridge", "--netns", path)
        second.json("detach", "bridge", "--netns", path)
    wait_for("host1 sees it", 10, lambda: "draining" not in first.meshctl("members").stdout)


def test_a_forgotten_hosts_addresses_go_to_its_heir_and_it_ends_when_it_comes_back(lab2: Lab) -> None:
    first, second = lab2.hosts
    first.json("network", "create", "red")
    second.wait_network("red")
    ns = lab2.container("forgotten")
    gone = second.json("attach", "red", "--netns", f"/run/netns/{ns}", "--name", "gone")
    first.wait_rows(gone["mac"], there=False)  # a network without an endpoint here has no rows
    refused = first.meshctl("forget", "host2", "--fenced")
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (
        1,
        "error: host host2 is alive; nothing was changed",
    )
    second.kill()
    wait_for("host1 sees that host2 failed", 20, lambda: states(lab2)["host2"] == "failed")
    assert "--fenced" in first.meshctl("forget", "host2").stderr
    total = sum(owners(first, "red").values())  # free ones: the endpoint's is not among them yet
    said = first.json("forget", "host2", "--fenced")
    assert {each["to"] for each in said["blocks"]} == {"host1"}
    wait_for("host1 has it all", 20, lambda: owners(first, "red") == {"host1": total + 1})
    assert first.json("endpoint", "ls") == []
    member = next(m for m in first.json("members") if m["name"] == "host2")
    assert (member["state"], member["forgotten"]) == ("left", True)

    second.begin()
    wait_for("host2 hears it, and ends", 60, lambda: not second.alive)
    assert "this host was forgotten on host1 at" in second.log.read_text()
    second.begin()
    wait_for("it ends at once from now on", 20, lambda: not second.alive)
    said_again = second.log.read_text().splitlines()[-2:]
    assert said_again[0].startswith("error: this host was forgotten on host1")
    assert said_again[0].endswith("nothing was started")
    first.wait_in_sync()

    state = second.dir / "state"
    shutil.rmtree(state)
    state.mkdir()
    labdaemon.give(state)
    second.start()  # as a new host
    for host in lab2.hosts:
        host.wait_alive(2)
        host.wait_in_sync()
    assert second.json("attach", "red", "--netns", f"/run/netns/{ns}", "--name", "new")["host"] == "host2"
    second.json("detach", "red", "--netns", f"/run/netns/{ns}")
    first.json("network", "rm", "red")


def owners(host: Host, network: str) -> dict[str, int]:
    """Count the free addresses of a network by their owner's name."""
    found: Counter[str] = Counter()
    for block in host.json("network", "inspect", network)["blocks"]:
        found[str(block["owner"])] += block["free"]
    return dict(found)


def test_a_host_that_left_may_come_again(lab2: Lab) -> None:
    second = lab2.hosts[1]
    second.json("leave")
    wait_for("host2's daemon ends", 10, lambda: not second.alive)
    second.start()
    for host in lab2.hosts:
        host.wait_alive(2)
        host.wait_in_sync()
    assert states(lab2)["host2"] == "alive"


def test_a_cluster_forms_without_a_failed_conversation(lab2: Lab) -> None:
    wait_for(
        "both have the same state", 10, lambda: len({host.status()["digest"] for host in lab2.hosts}) == 1
    )
    for host in lab2.hosts:
        assert "failed" not in host.log.read_text()


def test_a_host_with_another_clusters_key_is_never_seen(lab2: Lab) -> None:
    first, second = lab2.hosts
    second.kill()
    wait_for("host1 sees that host2 failed", 20, lambda: states(lab2)["host2"] == "failed")
    keyring = second.dir / "etc" / "keyring"
    key_id, _, key = keyring.read_text().strip().partition(":")
    keyring.write_text(f"{key_id}:{key[::-1].lstrip('=')[:43]}=\n")
    for file in (second.dir / "state").iterdir():
        file.unlink()
    second.start()
    assert second.status()["cluster"]["alive"] == 1
    assert first.status()["cluster"]["alive"] == 1
    assert [m["name"] for m in second.json("members")] == ["host2"]


def test_one_host_works_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    lab = Lab.up(1, tmp_path_factory.mktemp("lab1") / "lab")
    try:
        (host,) = lab.hosts
        host.json("network", "create", "blue")
        made = []
        for name in ("a", "b"):
            ns = lab.container(name)
            endpoint = host.json("attach", "blue", "--netns", f"/run/netns/{ns}", "--name", name)
            made.append(Attached(host, ns, endpoint))
        no_ping_is_lost([(made[0], made[1]), (made[1], made[0])])
        host.wait_in_sync()
    finally:
        lab.down()


def states(lab: Lab) -> dict[str, str]:
    return {m["name"]: m["state"] for m in lab.hosts[0].json("members")}
