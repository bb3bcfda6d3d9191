"""Bridge networks: one host, its gateway, the outside."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from labtools import Attach, NewNetwork, no_ping_is_lost

from meshctl import labnet
from meshctl.client import Client
from meshctl.labcluster import Lab
from meshctl.labhost import wait_for
from meshctl.ping import Ping, ping


def test_endpoints_of_a_bridge_network_reach_each_other_their_gateway_and_the_outside(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    host = lab3.hosts[0]
    network = new_network("-d", "bridge")
    pair = [attach(host, network) for _ in range(2)]
    no_ping_is_lost(list(itertools.permutations(pair, 2)))
    (gateway,) = host.json("network", "inspect", network)["gateways"]
    assert ping(pair[0].ns, gateway).lost == 0
    assert ping(pair[0].ns, labnet.address(labnet.GATEWAY_NUMBER)).lost == 0


def test_the_outside_sees_the_hosts_address_not_the_containers(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    host = lab3.hosts[0]
    one = attach(host, new_network("-d", "bridge"))
    labnet.ip("-n", lab3.lan, "route", "add", "unreachable", f"{one.v4}/32")
    try:
        assert ping(one.ns, labnet.address(labnet.GATEWAY_NUMBER)).lost == 0
    finally:
        labnet.ip("-n", lab3.lan, "route", "del", "unreachable", f"{one.v4}/32")


def test_an_internal_bridge_network_has_no_way_out(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    host = lab3.hosts[0]
    network = new_network("-d", "bridge", "--internal")
    pair = [attach(host, network) for _ in range(2)]
    no_ping_is_lost([(pair[0], pair[1])])
    assert "default" not in labnet.ip("-n", pair[0].ns, "route", "show")


def test_addresses_come_from_the_range_but_for_what_is_excluded_and_others_where_asked_for(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    host = lab3.hosts[0]
    network = new_network(
        *("-d", "bridge", "--subnet", "10.73.0.0/24", "--subnet", "fd73::/64", "--gateway", "10.73.0.254"),
        *("--ip-range", "10.73.0.128/30", "--exclude", "10.73.0.129", "--exclude", "10.73.0.130"),
    )
    pair = [attach(host, network) for _ in range(2)]
    assert {one.v4 for one in pair} == {"10.73.0.128", "10.73.0.131"}
    assert all(one.v6.startswith("fd73::") for one in pair)
    ns = lab3.container("third")
    full = host.meshctl("attach", network, "--netns", f"/run/netns/{ns}")
    assert full.returncode == 1
    assert f"network {network} is full: all 2 addresses are in use" in full.stderr
    excluded = host.meshctl("attach", network, "--netns", f"/run/netns/{ns}", "--ip", "10.73.0.129")
    assert excluded.returncode == 1
    assert "10.73.0.129" in excluded.stderr
    asked = attach(host, network, "--ip", "10.73.0.7")
    assert asked.v4 == "10.73.0.7"
    no_ping_is_lost([(asked, pair[0]), (pair[1], asked)])
    for gateway in host.json("network", "inspect", network)["gateways"]:
        assert ping(asked.ns, gateway).lost == 0
    assert "default via 10.73.0.254" in labnet.ip("-n", asked.ns, "route", "show")


def test_isolated_endpoints_reach_their_gateway_and_the_outside_and_not_each_other(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    host = lab3.hosts[0]
    network = new_network("-d", "bridge", "--ipv6", "--opt", "isolate-ports=yes")
    first, second = attach(host, network), attach(host, network)
    gateways = host.json("network", "inspect", network)["gateways"]

    device = f"mh{first.endpoint['id'][:8]}"

    def lost_between() -> list[int]:
        pairs = [(a.ns, ip) for a, b in itertools.permutations((first, second)) for ip in b.ips]
        return [running.result().lost for running in [Ping(ns, ip, count=2) for ns, ip in pairs]]

    def isolated() -> bool:
        return "isolated on" in host.run("bridge", "-d", "link", "show", "dev", device).stdout

    for one, of_gateway in itertools.product((first, second), gateways):
        assert ping(one.ns, of_gateway).lost == 0
        assert ping(one.ns, labnet.address(labnet.GATEWAY_NUMBER, 6 if ":" in of_gateway else 4)).lost == 0
    assert lost_between() == [2] * 4
    for one, other in ((first, second), (second, first)):  # nor by way of the gateway
        for ip, gateway in zip(other.ips, gateways, strict=True):
            labnet.ip("-n", one.ns, "route", "add", ip, "via", gateway)
    assert lost_between() == [2] * 4
    assert isolated()
    host.run("bridge", "link", "set", "dev", device, "isolated", "off")  # somebody's mistake
    wait_for("it is isolated again", 10, isolated)
    refused = host.meshctl("network", "create", "o", "--opt", "isolate-ports=yes")
    assert refused.returncode == 1
    assert "unknown option 'isolate-ports' of an overlay network" in refused.stderr


def test_a_bridge_network_is_its_own_hosts_alone(lab3: Lab, new_network: NewNetwork) -> None:
    first, second, _ = lab3.hosts
    name = new_network("-d", "bridge")
    assert second.meshctl("network", "inspect", name).returncode == 1
    assert new_network("-d", "bridge", host=second, name=name) == name
    assert first.json("network", "inspect", name)["id"] != second.json("network", "inspect", name)["id"]


def test_an_attach_without_a_network_goes_to_the_default_bridge(lab3: Lab) -> None:
    host = lab3.hosts[1]
    ns = lab3.container("default")
    endpoint = host.json("attach", "--netns", f"/run/netns/{ns}")
    bridge = host.json("network", "inspect", "bridge")
    assert endpoint["network"] in (bridge["id"], "bridge")
    assert ping(ns, bridge["gateways"][0]).lost == 0
    host.json("detach", "bridge", "--netns", f"/run/netns/{ns}")


def test_none_host_and_bridge_always_exist(lab3: Lab) -> None:
    for host in lab3.hosts:
        assert {"none", "host", "bridge"} <= {network["name"] for network in host.json("network", "ls")}


PORTS_MAX = 1023  # net/bridge/br_private.h, BR_MAX_PORTS: 1024, of which 0 is none
AT_ONCE = 100


@pytest.mark.long
def test_a_bridge_takes_endpoints_up_to_the_kernels_limit_and_refuses_the_next_in_one_line(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    """Asked for over the socket, since a thousand meshctl would take minutes; the devices are real."""
    host = lab3.hosts[0]
    network = new_network("-d", "bridge", "--subnet", "10.80.0.0/16")
    client, boot_id = Client(str(host.socket)), Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    crowd, ids = lab3.container("crowd"), []

    def ask(number: int) -> dict[str, Any]:
        where = {"cookie": 10**9 + number, "boot_id": boot_id, "path": f"/run/netns/{crowd}"}
        return dict(client.post("endpoints", body={"network": network, "netns": where})[1])

    first = attach(host, network)
    for start in range(1, PORTS_MAX, AT_ONCE):
        made = [ask(number) for number in range(start, min(start + AT_ONCE, PORTS_MAX))]
        ids += [one["id"] for one in made]
        labnet.batch(host.ns, [f"link set {one['plumb']['link']} netns {crowd}" for one in made])
    assert len(ids) + 1 == PORTS_MAX
    ns = lab3.container("late")
    told = host.meshctl("attach", network, "--netns", f"/run/netns/{ns}")
    assert told.returncode == 1
    assert f"has {PORTS_MAX} endpoints on this host, and its bridge has no port for another" in told.stderr
    assert ping(first.ns, host.json("network", "inspect", network)["gateways"][0]).lost == 0
    host.wait_in_sync()
    for id_ in ids:
        client.delete("endpoints", id_)
    host.wait_in_sync()
