"""Networks with several subnets, over real daemons and kernels."""

import itertools
import json

from labtools import Attach, Attached, NewNetwork, no_ping_is_lost

from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for
from meshctl.ping import ping

TWO_PAIRS = (
    "--subnet",
    "10.71.0.0/29",
    "--subnet",
    "fd71::/64",
    "--subnet",
    "10.72.0.0/24",
    "--subnet",
    "fd72::/64",
)
GATEWAYS = ("--gateway", "10.72.0.254")


def gateways_answer(*attached: Attached, gateways: tuple[str, ...]) -> None:
    """Every gateway of the network is reached from every endpoint: it is on each endpoint's own host."""
    for one, gateway in itertools.product(attached, gateways):
        result = ping(one.ns, gateway, count=2)
        assert (result.sent, result.received) == (2, 2), (one.name, gateway)


def state(seen_by: Host, of: Host) -> str:
    return next(str(m["state"]) for m in seen_by.json("members") if m["name"] == of.name)


def test_endpoints_of_two_subnets_of_one_network_reach_each_other_and_every_gateway_on_three_hosts(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    network = new_network(*TWO_PAIRS, *GATEWAYS)
    first, second, third = lab3.hosts
    attached = [
        attach(first, network, "--ip", "10.71.0.2"),
        attach(second, network, "--ip", "10.72.0.9"),
        attach(third, network, "--ip", "fd72::77"),
    ]
    assert [one.endpoint["ips"] for one in attached] == [
        ["10.71.0.2/29", "fd71::2/64"],
        ["10.72.0.9/24", "fd72::9/64"],
        ["10.72.0.119/24", "fd72::77/64"],
    ]
    for host in lab3.hosts:
        host.wait_rows(*(one.mac for one in attached))
    no_ping_is_lost(list(itertools.permutations(attached, 2)))
    gateways_answer(*attached, gateways=("10.71.0.1", "10.72.0.254", "fd71::1", "fd72::1"))


def test_hosts_with_access_reach_and_are_reached_from_every_subnet_also_one_that_is_added(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    network = new_network("--subnet", "10.76.0.0/28", "--subnet", "fd76::/64", "--host-access")
    first, second, _ = lab3.hosts
    attached = [attach(first, network), attach(second, network)]
    first.json("network", "update", network, "--add-subnet", "10.77.0.0/24", "--add-subnet", "fd77::/64")
    second.wait_in_sync()
    attached.append(attach(second, network, "--ip", "10.77.0.9"))
    first.wait_rows(attached[-1].mac)
    own = [
        e for host in (first, second) for e in host.json("endpoint", "ls", "--network", network)
        if e["host"] == host.name and e["ifname"].startswith("mox")
    ]  # fmt: skip
    assert len(own) == 2
    addresses = [ip.partition("/")[0] for one in (*own, attached[-1].endpoint) for ip in one["ips"]]
    assert len(addresses) == 6
    for host in (first, second):
        for address in addresses:
            pinged = host.run("ping", "-n", "-c2", "-i0.1", "-W2", address)
            assert ", 0% packet loss" in pinged.stdout, (host.name, address, pinged.stdout)
    for address in addresses[:4]:  # the hosts', from the added subnet
        assert ping(attached[-1].ns, address, count=2).received == 2, address
    route = ("ip", "route", "del", "10.77.0.0/24")
    first.run(*route)
    wait_for("the route is back", 10, lambda: "10.77.0.0/24 dev mox" in first.run("ip", "route").stdout)


def test_a_subnet_added_on_another_host_is_used_when_the_first_is_full(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    network = new_network("--subnet", "10.73.0.0/29", "--subnet", "fd73::/64")
    first, second, third = lab3.hosts
    before = [attach(host, network) for host in lab3.hosts]
    shown = second.json("network", "update", network, "--add-subnet", "10.74.0.0/24", "--label", "size=large")
    assert (shown["subnets"], shown["gateways"]) == (
        ["10.73.0.0/29", "fd73::/64", "10.74.0.0/24"],
        ["10.73.0.1", "fd73::1", "10.74.0.1"],
    )
    assert shown["labels"] == {"size": "large"}

    def seen(host: Host) -> bool:
        found = host.json("network", "inspect", network)
        return found["subnets"] == shown["subnets"] and found["labels"] == shown["labels"]

    for host in lab3.hosts:
        wait_for(f"{host.name} knows the subnet", 10, lambda host=host: seen(host))
        blocks = host.json("network", "inspect", network)["blocks"]
        assert sum(block["free"] for block in blocks if block["block"].startswith("10.74.")) == 253
    after = [attach(host, network) for host in (first, first, second, second, third)]
    used = [one.v4 for one in (*before, *after)]
    assert len({*used}) == 8
    assert sorted(ip.rpartition(".")[0] for ip in used) == ["10.73.0"] * 5 + ["10.74.0"] * 3
    wider = [one for one in after if one.v4.startswith("10.74.")]
    assert all(one.v6.startswith("fd73::") for one in wider)
    narrow = [one for one in after if one.v4.startswith("10.73.")]
    for host in lab3.hosts:
        host.wait_rows(*(one.mac for one in (*before, *after)))
    pairs = list(itertools.permutations([*wider, *narrow], 2))
    no_ping_is_lost(pairs)
    gateways_answer(*wider, *narrow, gateways=("10.73.0.1", "10.74.0.1"))

    # who was attached before learns the way when it is attached again, which changes nothing else
    for one in before:
        again = one.host.json("attach", network, "--netns", one.path, "--name", one.name)
        assert again == one.endpoint
    no_ping_is_lost([pair for one in before for far in wider for pair in ((one, far), (far, one))])
    assert [e["subnets"] for e in third.events() if e["kind"] == "network-updated"][-1] == shown["subnets"]


def test_a_subnet_that_cannot_be_added_is_refused_and_named(lab3: Lab, new_network: NewNetwork) -> None:
    network = new_network("--subnet", "10.75.0.0/24")
    other = new_network("--subnet", "10.76.0.0/24")
    host, underlay = lab3.hosts[1], lab3.hosts[2].json("status")["host"]["address"]
    lan = f"{underlay.rpartition('.')[0]}.0/24"
    for cidr, said in (
        ("10.75.0.0/25", f"overlaps network {network} (10.75.0.0/24)"),
        ("10.76.0.0/16", f"overlaps network {other} (10.76.0.0/24)"),
        (lan, "overlaps route"),
        ("10.77.0.0/31", "has no room for a gateway and an endpoint"),
        ("8.0.0.0/7", "too large"),
    ):
        refused = host.meshctl("network", "update", network, "--add-subnet", cidr)
        assert refused.returncode == 1, cidr
        assert refused.stderr.startswith("error: subnet ")
        assert said in refused.stderr
    assert host.json("network", "inspect", network)["subnets"] == ["10.75.0.0/24"]
    said = host.run(
        "curl", "-s", "-w", "%{http_code}", "-X", "PATCH", "-d", '{"add_subnets": ["10.76.0.0/24"]}',
        "--unix-socket", str(host.socket), f"http://localhost/v1/networks/{network}",
    ).stdout  # fmt: skip
    assert said.endswith("409")
    assert json.loads(said[:-3])["code"] == "conflict"


def test_without_the_networks_creator_nothing_is_added_and_it_is_named(
    lab3: Lab, new_network: NewNetwork
) -> None:
    first, second, third = lab3.hosts
    network = new_network("--subnet", "10.78.0.0/24", host=third)
    third.kill()
    wait_for("the others see it", 20, lambda: state(second, third) == "failed")
    refused = second.meshctl("network", "update", network, "--add-subnet", "10.79.0.0/24")
    assert refused.returncode == 1
    assert f"host {third.name}, which made network {network}, is not alive" in refused.stderr
    assert first.json("network", "inspect", network)["subnets"] == ["10.78.0.0/24"]
    third.start()
    third.wait_ready()
    wait_for("it is back", 20, lambda: state(second, third) == "alive")
    assert second.meshctl("network", "update", network, "--add-subnet", "10.79.0.0/24").returncode == 0
