"""Bridge networks: one host, its gateway, the outside."""

import itertools

from labtools import Attach, NewNetwork, no_ping_is_lost

from meshctl import labnet
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
