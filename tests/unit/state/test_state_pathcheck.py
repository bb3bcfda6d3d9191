"""Where packets of a network's size do not get through, in words."""

import pytest

from meshd.model import HostFacts, Network, Subnet
from meshd.state.pathcheck import mismatches

A, B, C = (letter * 16 for letter in (b"a", b"b", b"c"))
NAMES = {A: "host1", B: "host2", C: "host3"}


def network(name="blue", mtu=1450, driver="overlay"):
    return Network(name, driver, (Subnet("10.1.0.0/20", "10.1.0.1"),), mtu=mtu)


BLUE = network()


def check(*, mtus=(1500, 1500, 1500), paths=(1500, 1500), networks=(BLUE,), alive=(A, B, C), v6=False):
    vtep = bytes(16 if v6 else 4)
    hosts = {id_: HostFacts(NAMES[id_], vtep, 4789, mtu) for id_, mtu in zip((A, B, C), mtus, strict=True)}
    measured = {id_: mtu for id_, mtu in zip((B, C), paths, strict=True) if mtu}
    by_id = {n.name.encode() * 4: n for n in networks}
    return mismatches(A, alive, hosts, by_id, measured, NAMES.__getitem__)


def test_nothing_is_wrong_where_all_paths_carry_what_the_networks_need():
    assert check() == []
    assert check(paths=(None, None)) == [], "not measured is not wrong"
    assert check(mtus=(1500, 0, 0)) == [], "nor is not told"


def test_a_narrow_path_is_told_with_both_names_and_the_numbers():
    (found,) = check(paths=(1500, 1499))
    assert (found.kind, found.hosts, found.carried, found.needed) == (
        "narrow",
        ("host1", "host3"),
        1499,
        1500,
    )
    assert found.text == (
        "the path from host1 to host3 carries 1499 bytes, but network blue needs 1500 (mtu 1450 and 50 for "
        "VXLAN): larger packets are lost; widen the path, or make the network anew with --mtu 1449"
    )


def test_over_ipv6_vxlan_takes_more():
    (found,) = check(paths=(1519, 1520), v6=True)
    assert (found.hosts, found.needed) == (("host1", "host2"), 1520)


@pytest.mark.parametrize("networks", [(), (network(mtu=1400),), (network(mtu=1500, driver="bridge"),)])
def test_a_narrow_path_that_no_overlay_minds_is_no_alarm(networks):
    assert check(paths=(1450, 1450), networks=networks) == []


def test_the_largest_network_counts():
    (found,) = check(paths=(1490, 1500), networks=(BLUE, network("red", 1400), network("thin", 1300)))
    assert "network blue needs 1500" in found.text


def test_underlays_that_differ_are_told_once_with_all_names():
    (found,) = check(mtus=(9000, 1500, 1500))
    assert (found.kind, found.carried, found.needed) == ("differ", 1500, 9000)
    assert (
        found.text
        == "underlay MTUs differ: host1 has 9000 bytes, host2 1500, host3 1500; set the same on all"
    )


def test_a_host_that_is_not_alive_is_not_compared():
    assert check(mtus=(9000, 1500, 9000), paths=(1400, 9000), alive=(A, C)) == []


def test_of_many_differing_hosts_some_are_named_and_the_rest_counted():
    ids = [bytes([n]) * 16 for n in range(20)]
    hosts = {id_: HostFacts(f"h{n:02}", bytes(4), 1, 9000 if n else 1500) for n, id_ in enumerate(ids)}
    (found,) = mismatches(ids[0], ids, hosts, {}, {}, lambda id_: hosts[id_].name)
    assert found.text.endswith("h05 9000 and 14 more hosts something else; set the same on all")
