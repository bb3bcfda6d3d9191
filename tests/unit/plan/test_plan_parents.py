"""Every rule about a parent, broken once; and what is allowed beside it."""

import msgspec
import pytest

from meshd.errors import Conflict
from meshd.model import Network, Subnet
from meshd.plan import parents
from meshd.plan.parents import Asked, Other, Parent

ETH = Parent("eth0", index=2, mtu=1500, mac=b"\x02abcde", addresses=("192.0.2.1/24", "fe80::1/64"))


def yard(driver="macvlan", mode="bridge", mtu=1500, subnets=("192.0.2.0/24",), **options):
    told = tuple(Subnet(cidr, "") for cidr in subnets)
    return Network("yard", driver, told, mtu=mtu, options={"mode": mode, **options})


def parent(**changes):
    return msgspec.structs.replace(ETH, **changes)


BROKEN = {
    "_missing": (Asked(yard(), Parent("eth9", missing=True, mtu=1500), (), False), "eth9 of network yard does not exist on this host"),
    "_loopback": (Asked(yard(), parent(loopback=True), (), False), "is the loopback device, which is on no LAN"),
    "_port": (Asked(yard(), parent(master="br0", master_kind="bridge"), (), False), "is a port of bridge br0"),
    "_down": (Asked(yard(), parent(up=False), (), False), "is down"),
    "_other_mode": (
        Asked(yard(), ETH, (Other("red", "macvlan", "vepa"),), False),
        "is used in macvlan mode vepa by network red",
    ),
    "_passthru": (
        Asked(yard(mode="passthru"), ETH, (), True),
        "carries an endpoint in mode passthru already, and takes one only",
    ),
    "_narrow": (Asked(yard(), parent(mtu=1400), (), False), "has an MTU of 1400 bytes, less than the network's 1500"),
    "_elsewhere": (
        Asked(yard(subnets=("10.9.0.0/24",)), ETH, (), False),
        "is on another LAN than 10.9.0.0/24: it has 192.0.2.1/24",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", parents.RULES, ids=lambda rule: rule.broken.__name__)
def test_each_rule_is_one_line_that_names_parent_and_network(rule):
    asked, words = BROKEN[rule.broken.__name__]
    assert [one.broken.__name__ for one in parents.RULES if one.broken(asked)] == [rule.broken.__name__]
    with pytest.raises(Conflict) as caught:
        parents.check(asked)
    assert caught.value.what.startswith(f"parent {asked.parent.name} of network yard ")
    assert caught.value.what.endswith(words)
    assert caught.value.hint
    assert "\n" not in caught.value.what + caught.value.hint


@pytest.mark.parametrize(
    "asked",
    [
        Asked(yard(), ETH, (), False),
        Asked(yard(), ETH, (Other("red", "macvlan", "bridge"),), True),
        Asked(yard(mtu=0), parent(mtu=1400), (), False),
        Asked(yard(subnets=("10.9.0.0/24",)), parent(addresses=()), (), False),
        Asked(yard(subnets=("10.9.0.0/24",), **{"check-subnet": "no"}), ETH, (), False),
        Asked(yard(subnets=("fd00::/64",)), ETH, (), False),  # a link-local address tells nothing
        Asked(yard(mode="passthru"), ETH, (), False),
    ],
)
def test_what_breaks_no_rule_is_allowed(asked):
    parents.check(asked)


@pytest.mark.parametrize(
    ("driver", "mode"), [("macvlan", "private"), ("ipvlan", "l2"), ("macvlan", "passthru")]
)
def test_one_device_carries_one_mode(driver, mode):
    with pytest.raises(Conflict):
        parents.check(Asked(yard(driver, mode), ETH, (Other("red", "macvlan", "passthru"),), False))


def test_a_wireless_or_promiscuous_parent_is_warned_of_and_not_refused():
    radio = parent(wireless=True, promiscuous=True)
    parents.check(Asked(yard(), radio, (), False))
    wireless, promiscuous = parents.warnings(radio, "macvlan")
    assert "eth0 is wireless" in wireless
    assert "eth0 is promiscuous" in promiscuous
    assert parents.warnings(parent(wireless=True), "ipvlan") == []
    assert parents.warnings(ETH, "macvlan") == []


@pytest.mark.parametrize("carrier", [Parent("eth9", missing=True), parent(up=False), parent(loopback=True)])
def test_a_vlan_sub_interface_is_not_made_on_what_cannot_carry_it(carrier):
    with pytest.raises(Conflict, match="cannot be made"):
        parents.check_carrier(carrier, "yard", "eth9.10")
    parents.check_carrier(ETH, "yard", "eth0.10")


@pytest.mark.parametrize("kind", ["macvlan", "ipvlan", "vlan"])
def test_a_missing_feature_is_named_as_people_and_as_the_kernel_call_it(kind):
    error = parents.missing_feature(kind)
    assert parents.FEATURES[kind] in error.what
    assert parents.MODULES[kind] in error.what
