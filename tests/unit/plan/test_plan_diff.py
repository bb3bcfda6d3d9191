"""The difference of two kernels: carried out, it makes them equal; and in which order, and in which words."""

import copy

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.plan import names, ops
from meshd.plan.desired import desired
from meshd.plan.diff import diff, findings
from meshd.plan.elements import element
from meshd.plan.objects import (
    Addr,
    Dump,
    FdbKey,
    FdbTarget,
    Finding,
    Gate,
    GateState,
    Kernel,
    Link,
    NeighKey,
    Nexthop,
    Port,
    Route,
    Vxlan,
)
from tests.fake_kernel import FakeKernel
from tests.plan_world import BLUE, A, blue_on_two_hosts, id_of

BRIDGE, VXLAN = "mo11111111", "mv11111111"
VETH = "mh" + id_of("web").hex()[:8]


def wanted():
    return desired(blue_on_two_hosts().view())


def plugged(kernel=None):
    """A fresh namespace, but for the link that attach made."""
    fake = FakeKernel(kernel)
    if kernel is None:
        fake.plug(VETH)
    return fake


def kinds(todo):
    return [type(op).__name__ for op in todo]


def test_everything_is_made_from_the_bottom_up_and_neighbours_answer_last():
    todo = diff(wanted(), plugged().state, deletions=True)
    assert kinds(todo) == [
        "SetFirewall",  # before the devices that it guards
        "PutLink",  # bridge
        "PutLink",  # vxlan
        "PutLink",  # veth: adjusted
        "PutAddr",
        "PutNexthop",  # single
        "PutNexthop",  # group
        "PutFdb",  # self
        "PutFdb",  # master, local
        "PutFdb",  # master
        "PutNeigh",
    ]
    todo = todo[1:]
    assert [op.link.kind for op in todo[:3]] == ["bridge", "vxlan", "veth"]
    assert [bool(op.nexthop.group) for op in todo[4:6]] == [False, True]
    assert [op.key.where for op in todo[6:9]] == ["self", "master", "master"]


def test_a_remote_endpoint_is_removed_in_reverse():
    full, left = wanted(), blue_on_two_hosts()
    left.release("db")
    todo = diff(desired(left.view()), full, deletions=True)
    assert kinds(todo) == ["DelNeigh", "DelFdb", "DelFdb", "DelNexthop", "DelNexthop"]
    assert [op.key.where for op in todo[1:3]] == ["master", "self"]
    assert full.nexthops[todo[3].id].group == (todo[4].id,)


def test_additions_come_before_deletions():
    other = blue_on_two_hosts()
    other.release("db")
    other.endpoint("cache", next(iter(other.networks)), bytes([0xC3]) * 16, "10.1.0.130")
    done = kinds(diff(desired(other.view()), wanted(), deletions=True))
    assert max(i for i, name in enumerate(done) if name.startswith("Put")) < min(
        i for i, name in enumerate(done) if name.startswith("Del")
    )


def test_a_device_takes_its_rows_along_so_they_are_not_deleted_one_by_one():
    assert kinds(diff(Kernel(), wanted(), deletions=True)) == [
        "DelNexthop",
        "DelNexthop",
        "DelLink",  # veth
        "DelLink",  # vxlan
        "DelLink",  # bridge
        "SetFirewall",  # after the devices that it guards
    ]


def test_a_port_is_guarded_before_it_is_plugged_in_and_until_it_is_gone():
    before, world = wanted(), blue_on_two_hosts()
    new = names.veth(world.endpoint("new", BLUE, A, "10.1.0.3"))
    after = desired(world.view())
    fake = plugged(copy.deepcopy(before))
    fake.plug(new)
    coming = diff(after, fake.state, deletions=True)
    assert [op.link.name for op in coming if isinstance(op, ops.PutLink)] == [new]
    assert kinds(coming)[-2:] == ["PutLink", "PutFdb"]
    assert set(kinds(coming)[:-2]) == {"PutElement"}
    going = diff(before, after, deletions=True)
    assert going[0] == ops.DelLink(new)
    assert set(kinds(going)[1:]) == {"DelElement"}


def test_nothing_is_deleted_without_permission():
    assert diff(Kernel(), wanted(), deletions=False) == []


def test_without_permission_only_what_is_named_as_gone_goes():
    full = wanted()
    gone = Kernel(links={VETH: full.links[VETH]})
    assert diff(Kernel(), full, deletions=False, gone=gone) == [ops.DelLink(VETH)]
    assert diff(full, full, deletions=False, gone=gone) == []


def test_a_nexthop_that_a_withheld_row_uses_is_not_deleted():
    full = wanted()
    gone = Kernel(nexthops=full.nexthops)
    assert diff(Kernel(), full, deletions=False, gone=gone) == []


def test_a_missing_veth_is_not_made_and_its_row_waits_for_it():
    todo = diff(wanted(), Kernel(), deletions=True)
    assert VETH not in {op.link.name for op in todo if isinstance(op, ops.PutLink)}
    assert VETH not in {op.key.dev for op in todo if isinstance(op, ops.PutFdb)}


def spoiled(name, **fields):
    kernel = wanted()
    kernel.links[name] = msgspec.structs.replace(kernel.links[name], **fields)
    return kernel


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (BRIDGE, {"mtu": 1500}),
        (BRIDGE, {"alias": ""}),
        (BRIDGE, {"up": False}),
        (VXLAN, {"port": Port()}),
        (VXLAN, {"port": None}),
        (VETH, {"mtu": 9000}),
    ],
)
def test_what_the_kernel_can_change_is_changed_in_place(name, fields):
    full = wanted()
    assert diff(full, spoiled(name, **fields), deletions=True) == [ops.PutLink(full.links[name])]


def test_a_veths_mac_is_nobodys_business():
    assert diff(wanted(), spoiled(VETH, mac=b"\x02\x00\x00\x00\x00\x09"), deletions=True) == []


@pytest.mark.parametrize(
    ("vxlan", "why"),
    [
        (Vxlan(7, bytes([192, 0, 2, 1]), 4789), "vni is 7, should be 5001"),
        (Vxlan(5001, bytes(15) + b"\x09", 4789), "local is ::9, should be 192.0.2.1"),
        (Vxlan(5001, bytes([192, 0, 2, 1]), 8472), "port is 8472, should be 4789"),
    ],
)
def test_what_the_kernel_cannot_change_is_made_anew_with_all_that_was_on_it(vxlan, why):
    full = wanted()
    todo = diff(full, spoiled(VXLAN, vxlan=vxlan), deletions=True)
    assert kinds(todo) == ["RemakeLink", "PutFdb", "PutFdb"]
    assert todo[0].link == full.links[VXLAN]
    assert todo[0].why == why


def test_a_vxlan_devices_own_address_is_changed_in_place_and_costs_no_row():
    full = wanted()
    todo = diff(full, spoiled(VXLAN, vxlan=Vxlan(5001, bytes([192, 0, 2, 9]), 4789)), deletions=True)
    assert todo == [ops.PutLink(full.links[VXLAN])]


def test_a_port_that_left_its_bridge_gets_its_bridge_rows_again():
    todo = diff(wanted(), spoiled(VETH, master=None), deletions=True)
    assert kinds(todo) == ["PutLink", "PutFdb"]


def test_a_bridge_with_another_mac_gets_its_neighbours_again():
    todo = diff(wanted(), spoiled(BRIDGE, mac=b"\x02\x00\x00\x00\x00\x09"), deletions=True)
    assert kinds(todo) == ["PutLink", "PutNeigh"]


def test_a_row_of_the_other_sort_is_deleted_before_it_is_written():
    full = wanted()
    plain = copy.deepcopy(full)
    key = next(key for key in full.fdb if key.where == "self")
    plain.fdb[key] = FdbTarget(dst=bytes([192, 0, 2, 2]))
    assert diff(full, plain, deletions=True) == [ops.DelFdb(key), ops.PutFdb(key, full.fdb[key])]


# --- property: carried out on a strict kernel, the difference leaves none --------------------------------------
MACS = [bytes([2, 0, 0, 0, 0, n]) for n in range(3)]
IPS = [bytes([10, 0, 0, n]) for n in range(3)]
GROUPS = [(n, 100 + n) for n in range(2)]


ELEMENTS = [element("everywhere4", b"\x06", bytes((0, n))) for n in range(3)]
GATES = [Gate("ip", "filter", "FORWARD"), Gate("inet", "filter", "forward")]
GATE_STATES = st.builds(GateState, st.booleans(), st.integers(0, 3))


@st.composite
def kernels(draw, right=False):
    """A consistent kernel of two networks. ``right``: as desired ones are; else anything a stranger can do."""
    kernel = Kernel(firewall=draw(st.sampled_from(["", "table a", "table b"])))
    if kernel.firewall:
        kernel.elements = draw(st.dictionaries(st.sampled_from(ELEMENTS), st.sampled_from((b"1", b"2"))))
    if not right:
        kernel.gates = draw(st.dictionaries(st.sampled_from(GATES), GATE_STATES))
    for single, group in draw(st.lists(st.sampled_from(GROUPS), unique=True)):
        kernel.nexthops[single] = Nexthop(single, via=draw(st.sampled_from(IPS)))
        kernel.nexthops[group] = Nexthop(group, group=(single,))
    groups = [id_ for id_, nexthop in kernel.nexthops.items() if nexthop.group]
    for net in draw(st.lists(st.sampled_from("12"), unique=True)):
        bridge, vxlan, veth = f"mo{net}", f"mv{net}", f"mh{net}"
        mac, mtu = draw(st.sampled_from(MACS)), draw(st.sampled_from([1400, 1500]))
        kernel.links[bridge] = Link(bridge, "bridge", net, mtu, mac=mac)
        masters = st.just(bridge) if right else st.sampled_from([bridge, None, *list(kernel.links)[:1]])
        vni = draw(st.sampled_from([1, 2]))
        kernel.links[vxlan] = Link(
            vxlan,
            "vxlan",
            net,
            mtu,
            mac=mac,
            master=draw(masters),
            port=Port(neigh_suppress=draw(st.booleans())),
            vxlan=Vxlan(vni, IPS[0], 4789),
        )
        if draw(st.booleans()):
            kernel.links[veth] = Link(veth, "veth", net, mtu, master=draw(masters), port=Port())
        if draw(st.booleans()):
            shim, parents = f"ms{net}", st.just("eth0") if right else st.sampled_from(["eth0", "eth1"])
            kernel.links[shim] = Link(shim, "macvlan", net, mtu, parent=draw(parents), mode="bridge")
            kernel.addrs.add(Addr(shim, IPS[0], 32))
            kernel.routes |= {Route(shim, ip, IPS[0]) for ip in draw(st.sets(st.sampled_from(IPS)))}
        kernel.addrs |= {Addr(bridge, ip, 24) for ip in draw(st.sets(st.sampled_from(IPS)))}
        for key_mac in draw(st.sets(st.sampled_from(MACS))):
            plain = FdbTarget(dst=draw(st.sampled_from(IPS)))
            grouped = FdbTarget(nhid=draw(st.sampled_from(groups))) if groups else plain
            kernel.fdb[FdbKey(vxlan, key_mac, "self")] = draw(st.sampled_from([plain, grouped]))
            for port in (vxlan, veth):
                if port in kernel.links and kernel.links[port].master and draw(st.booleans()):
                    kernel.fdb[FdbKey(port, key_mac, "master")] = FdbTarget(local=port == veth)
        for ip in draw(st.sets(st.sampled_from(IPS))):
            kernel.neigh[NeighKey(bridge, ip)] = draw(st.sampled_from(MACS))
    return kernel


def without_missing_veths(want, have):
    """What can be had: a veth that is not there cannot be made."""
    missing = {name for name, link in want.links.items() if link.kind == "veth" and name not in have.links}
    return Kernel(
        {name: link for name, link in want.links.items() if name not in missing},
        want.addrs,
        want.nexthops,
        {key: target for key, target in want.fdb.items() if key.dev not in missing},
        want.neigh,
        want.firewall,
        want.elements,
        want.gates,
        want.routes,
    )


@settings(max_examples=400, deadline=None)
@given(kernels(right=True), kernels())
def test_carried_out_the_difference_leaves_none(want, have):
    want.gates = {gate: GateState(state.shut, 2 * state.shut) for gate, state in have.gates.items()}
    reachable = without_missing_veths(want, have)
    fake = FakeKernel(copy.deepcopy(have))
    assert fake.apply(diff(want, have, deletions=True)) == []
    assert fake.state == reachable
    assert diff(want, fake.state, deletions=True) == []


@settings(max_examples=200, deadline=None)
@given(kernels(right=True), kernels())
def test_without_deletions_all_that_is_wanted_is_there_and_nothing_else_was_touched(want, have):
    want.gates = {gate: GateState(state.shut, 2 * state.shut) for gate, state in have.gates.items()}
    reachable = without_missing_veths(want, have)
    fake = FakeKernel(copy.deepcopy(have))
    assert fake.apply(diff(want, have, deletions=False)) == []
    for name in ("links", "nexthops", "fdb", "neigh", "elements"):
        before, after, wish = (getattr(kernel, name) for kernel in (have, fake.state, reachable))
        assert {key: after.get(key) for key in wish} == wish
        assert after.keys() <= before.keys() | wish.keys()
    assert fake.state.gates == want.gates
    assert fake.state.links.keys() == have.links.keys() | reachable.links.keys()
    assert fake.state.addrs >= reachable.addrs
    assert fake.state.routes >= reachable.routes
    assert diff(want, fake.state, deletions=False) == []


# --- for people ------------------------------------------------------------------------------------------------
def test_equal_kernels_have_nothing_to_say():
    assert findings(wanted(), Dump(wanted())) == {"missing": [], "stale": [], "foreign": []}


def found(have, want=None, refused=None):
    return findings(want or wanted(), Dump(have, [Finding("fdb", "x", "not marked")]), refused)


def test_a_finding_names_the_row_as_bridge_and_ip_do():
    have = wanted()
    key, row = next(iter(have.neigh)), next(key for key in have.fdb if key.where == "self")
    del have.neigh[key]
    have.fdb[row] = FdbTarget(dst=bytes([192, 0, 2, 9]))
    have.addrs.add(Addr(BRIDGE, bytes([10, 1, 0, 9]), 20))
    result = found(have)
    group = wanted().fdb[row].nhid
    assert result["missing"] == [
        Finding("fdb", f"{row.mac.hex(':')} dev {VXLAN} self", f"is dst 192.0.2.9, should be nhid {group}"),
        Finding("neigh", f"10.1.0.66 dev {BRIDGE}", "not in the kernel"),
    ]
    assert result["stale"] == [Finding("addr", f"10.1.0.9/20 dev {BRIDGE}", "no record explains it")]
    assert result["foreign"] == [Finding("fdb", "x", "not marked")]


def test_a_finding_says_which_field_of_a_device_is_wrong():
    (finding,) = found(spoiled(BRIDGE, mtu=1500))["missing"]
    assert (finding.object, finding.what) == ("link", f"dev {BRIDGE}")
    assert finding.why == "mtu is 1500, should be 1450"


def test_a_vanished_veth_says_why_it_may_be_so():
    have = wanted()
    del have.links[VETH]
    (finding,) = found(have)["missing"]
    assert finding.what == f"dev {VETH}"
    assert "namespace ended" in finding.why


def test_a_refused_op_is_shown_with_the_kernels_words():
    have = wanted()
    del have.links[VXLAN]
    result = found(have, refused={("link", f"dev {VXLAN}"): "the kernel refused: Address already in use"})
    assert result["missing"][0].why == "not in the kernel; the kernel refused: Address already in use"


def test_everything_unexplained_is_stale():
    everything = wanted()
    result = findings(Kernel(), Dump(everything))
    assert result["missing"] == []
    assert len(result["stale"]) == 3 + 1 + 2 + 3 + 1 + 1
