"""--host-access on a macvlan network: the host has a device and an address of its own there, and a way to each endpoint
beside it, which its network card cannot reach."""

import json

import pytest
from labtools import Attach, Attached, NewNetwork, no_ping_is_lost
from test_lab_lan import GATEWAY, YARD, links, refused

from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for
from meshctl.ping import ping


@pytest.fixture
def open_yard(new_network: NewNetwork) -> str:
    return new_network(*YARD, "--host-access")


def shim(host: Host, one: Attached) -> str:
    return f"ms{one.devices}"


def own(host: Host, network: str) -> dict[str, str]:
    """The host's own endpoint on a network."""
    found = [
        e
        for e in host.json("endpoint", "ls", "--network", network, "--host", host.name)
        if e["ifname"][:2] == "ms"
    ]
    assert len(found) <= 1
    return dict(found[0]) if found else {}


def ways(host: Host, device: str) -> set[str]:
    """To what the host has routes by a device, but for what every device has."""
    said = [
        json.loads(host.run("ip", "-j", f"-{family}", "route", "show", "dev", device).stdout or "[]")
        for family in (4, 6)
    ]
    return {route["dst"] for routes in said for route in routes if route["protocol"] not in ("kernel",)}


def test_the_host_and_its_own_endpoints_reach_each_other_and_the_lan_goes_on_as_before(
    lab3: Lab, open_yard: str, attach: Attach
) -> None:
    here, other = lab3.hosts[:2]
    pair, far = [attach(here, open_yard) for _ in range(2)], attach(other, open_yard)
    mine, theirs = own(here, open_yard), own(other, open_yard)
    assert mine["name"] == "host1"
    assert len({ip for one in (mine, theirs) for ip in one["ips"]}) == 4
    addresses = {4 + 2 * (":" in ip): ip.partition("/")[0] for ip in mine["ips"]}
    for one in pair:
        for ip in one.ips:
            assert ping(here.ns, ip).lost == 0
            (route,) = json.loads(here.run("ip", "-j", "route", "get", ip).stdout)
            assert (route["dev"], route["prefsrc"]) == (shim(here, one), addresses[4 + 2 * (":" in ip)])
        for ip in addresses.values():
            assert ping(one.ns, ip).lost == 0, "its host's own address there"
    for ip in addresses.values():
        assert ping(far.ns, ip).lost == 0
        assert ping(lab3.lan, ip).lost == 0
    no_ping_is_lost([(pair[0], far), (far, pair[1]), (pair[0], pair[1])], 1)
    assert ping(here.ns, far.v4).lost == 0
    assert ping(here.ns, GATEWAY).lost == 0
    neighbours = json.loads(here.run("ip", "-j", "-n", pair[0].ns, "neigh", "show", addresses[4]).stdout)
    assert [row["lladdr"] for row in neighbours] == [mine["mac"]], "one answer to who has it"


def test_routes_come_and_go_with_the_endpoints_and_the_device_with_the_last(
    lab3: Lab, open_yard: str, attach: Attach
) -> None:
    host = lab3.hosts[0]
    before = links(host)
    first, second = attach(host, open_yard), attach(host, open_yard)
    device, mine = shim(host, first), own(host, open_yard)
    assert ways(host, device) == {*first.ips, *second.ips}
    assert host.json("diff") == {"in_sync": True, "missing": [], "stale": [], "foreign": []}
    for ip in first.ips:
        host.run("ip", "route", "del", ip, "dev", device)
    wait_for("its routes are back", 10, lambda: ways(host, device) == {*first.ips, *second.ips})
    host.json("detach", open_yard, "--netns", second.path)
    assert ways(host, device) == set(first.ips)
    told = refused(host, "detach", open_yard, "--endpoint", mine["id"])
    assert "this host itself" in told
    host.run("ip", "link", "del", device)
    wait_for("the device and all that is on it are back", 10, lambda: ways(host, device) == set(first.ips))
    host.wait_in_sync()
    assert ping(host.ns, first.v4).lost == 0
    host.kill()
    host.start()
    assert own(host, open_yard) == mine
    assert ping(host.ns, first.v4).lost == 0
    host.json("detach", open_yard, "--netns", first.path)
    wait_for("the device goes with the last endpoint", 10, lambda: links(host) == before)
    assert own(host, open_yard) == {}


def test_where_a_host_cannot_have_a_device_it_is_refused_and_the_limitation_is_told(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    host = lab3.hosts[0]
    lan = ("-d", "macvlan", "--subnet", "10.62.0.0/24", "--host-access")
    for mode in ("private", "passthru"):
        told = refused(host, "network", "create", "no", *lan, "--mode", mode)
        assert "but on macvlan in mode bridge or vepa" in told
    done = host.meshctl(
        "network",
        "create",
        "plain",
        "-d",
        "macvlan",
        "--subnet",
        "192.0.2.0/24",
        "--ip-range",
        "192.0.2.64/26",
    )
    assert "do not reach each other" in done.stderr
    assert "--host-access gives each host a device of its own there" in done.stderr
    ns = lab3.container("told")
    done = host.meshctl("attach", "plain", "--netns", f"/run/netns/{ns}")
    assert done.returncode == 0
    assert "warning: plain: this host and the endpoint do not reach each other" in done.stderr
    host.json("detach", "plain", "--netns", f"/run/netns/{ns}")
    host.json("network", "rm", "plain")
