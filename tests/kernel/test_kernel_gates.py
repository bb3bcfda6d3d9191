"""Others' forward chains: which would drop our packets, and the one pair of accepts that goes there."""

import shutil

import pytest

from meshd.kernel.gates import COMMENT
from meshd.kernel.namespace import Namespace
from meshd.plan.objects import GATE_ACCEPTS, Gate, GateState
from meshd.plan.ops import LeaveGate, OpenGate

DOCKER = """
table ip filter {
    chain DOCKER-USER { counter return
    }
    chain DOCKER-FORWARD { iifname "docker0" counter accept
    }
    chain FORWARD { type filter hook forward priority filter; policy drop;
        counter jump DOCKER-USER
        counter jump DOCKER-FORWARD
    }
}
"""
UFW = """
table ip filter {
    chain ufw-before-forward { ct state related,established counter accept
    }
    chain FORWARD { type filter hook forward priority filter; policy drop;
        counter jump ufw-before-forward
    }
}
"""
FIREWALLD = """
table inet firewalld {
    chain filter_FORWARD_POLICIES { iifname "lo" return
    }
    chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        jump filter_FORWARD_POLICIES
        reject with icmpx type admin-prohibited
    }
}
"""
OPEN = """
table inet other {
    chain forward { type filter hook forward priority filter; policy accept;
        ip daddr 198.51.100.1 drop
    }
    chain input { type filter hook input priority filter; policy drop;
    }
}
"""
CASES = {
    "docker": (DOCKER, Gate("ip", "filter", "DOCKER-USER")),
    "ufw": (UFW, Gate("ip", "filter", "FORWARD")),
    "firewalld": (FIREWALLD, Gate("inet", "firewalld", "filter_FORWARD")),
    "ip6": (UFW.replace("table ip", "table ip6"), Gate("ip6", "filter", "FORWARD")),
}


@pytest.fixture
def host(netns):
    if shutil.which("nft") is None:
        pytest.skip("needs nft")
    with netns.call(Namespace) as netns.kernel:
        yield netns


def gates(host):
    return host.call(host.kernel._gates.read)


def do(host, *ops):
    assert host.call(host.kernel.apply, list(ops)) == []


def rules(host, gate):
    listed = host.run("nft", "list", "chain", gate.family, gate.table, gate.chain).stdout
    return [line.strip() for line in listed.splitlines()]


def ours(host, gate):
    return [line for line in rules(host, gate) if '"mo*"' in line or '"mx*"' in line]


@pytest.mark.parametrize("name", CASES)
def test_a_chain_that_drops_gets_our_marked_accepts_once_at_its_head_and_loses_it_again(host, name):
    ruleset, gate = CASES[name]
    host.run("nft", "-f", "-", input=ruleset)
    before = rules(host, gate)
    assert gates(host) == {gate: GateState(shut=True, accepts=0)}
    do(host, OpenGate(gate))
    assert gates(host) == {gate: GateState(shut=True, accepts=GATE_ACCEPTS)}
    assert [line.split(" counter")[0] for line in ours(host, gate)] == [
        'iifname "mo*"',
        'oifname "mo*"',
    ]
    assert all(COMMENT in line for line in ours(host, gate))
    first = next(
        i
        for i, line in enumerate(rules(host, gate))
        if "counter" in line or ("accept" in line and "hook" not in line)
    )
    assert '"mo*"' in rules(host, gate)[first]
    do(host, OpenGate(gate))  # twice is once
    assert len(ours(host, gate)) == GATE_ACCEPTS
    do(host, LeaveGate(gate))
    assert rules(host, gate) == before


def test_accepts_for_the_devices_names_of_an_earlier_version_go(host):
    host.run("nft", "-f", "-", input=UFW)
    gate = CASES["ufw"][1]
    theirs = 'iifname "mx*" counter accept comment "theirs"'
    for rule in ('iifname "mo*"', 'oifname "mo*"', 'iifname "mx*"', 'oifname "mx*"'):
        host.run("nft", f'insert rule ip filter FORWARD {rule} counter accept comment "{COMMENT}"')
    host.run("nft", f"insert rule ip filter FORWARD {theirs}")
    assert gates(host)[gate].accepts != GATE_ACCEPTS
    do(host, OpenGate(gate))
    assert gates(host) == {gate: GateState(shut=True, accepts=GATE_ACCEPTS)}
    assert sum('"mx*"' in line for line in ours(host, gate)) == 1


def test_two_clusters_on_one_host_have_accepts_of_their_own(host):
    host.run("nft", "-f", "-", input=UFW)
    gate = CASES["ufw"][1]
    other = host.call(Namespace, 8472)
    try:
        do(host, OpenGate(gate))
        assert host.call(other._gates.read) == {gate: GateState(shut=True, accepts=0)}
        assert host.call(other.apply, [OpenGate(gate)]) == []
        assert (
            gates(host) == host.call(other._gates.read) == {gate: GateState(shut=True, accepts=GATE_ACCEPTS)}
        )
        do(host, LeaveGate(gate))
        assert gates(host) == {gate: GateState(shut=True, accepts=0)}
        assert host.call(other._gates.read) == {gate: GateState(shut=True, accepts=GATE_ACCEPTS)}
        assert all("meshd-8472: open_forward" in line for line in ours(host, gate))
    finally:
        other.close()


def test_an_open_chain_is_none_of_ours_and_no_table_of_ours_is_looked_at(host):
    host.run("nft", "-f", "-", input=OPEN)
    assert gates(host) == {}
    host.run("nft", "-f", "-", input=OPEN.replace("other", "meshd").replace("policy accept", "policy drop"))
    assert gates(host) == {}


def test_accepts_that_are_not_needed_any_more_show(host):
    host.run("nft", "-f", "-", input=UFW)
    gate = CASES["ufw"][1]
    do(host, OpenGate(gate))
    host.run("nft", "chain ip filter FORWARD { policy accept; }")
    assert gates(host) == {gate: GateState(shut=False, accepts=GATE_ACCEPTS)}
    do(host, LeaveGate(gate))
    assert gates(host) == {}


DAMAGE = {
    "one deleted": "delete rule ip filter FORWARD handle {}",
    "one more": 'insert rule ip filter FORWARD iifname "mo*" accept',
    "flushed": "flush chain ip filter FORWARD",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_anything_but_exactly_our_accepts_shows_and_is_put_right(host, damage):
    host.run("nft", "-f", "-", input=UFW)
    gate = CASES["ufw"][1]
    do(host, OpenGate(gate))
    listed = host.run("nft", "-a", "list", "chain", "ip", "filter", "FORWARD").stdout
    handle = next(line for line in listed.splitlines() if "mo*" in line).split()[-1]
    host.run("nft", DAMAGE[damage].format(handle))
    (state,) = gates(host).values()
    assert state.accepts != GATE_ACCEPTS
    do(host, OpenGate(gate))
    assert gates(host) == {gate: GateState(shut=True, accepts=GATE_ACCEPTS)}


def test_accepts_in_forward_move_to_docker_user_once_docker_is_there(host):
    host.run("nft", "-f", "-", input=UFW)
    do(host, OpenGate(Gate("ip", "filter", "FORWARD")))
    host.run("nft", "add chain ip filter DOCKER-USER; insert rule ip filter FORWARD jump DOCKER-USER")
    assert gates(host) == {
        Gate("ip", "filter", "FORWARD"): GateState(shut=False, accepts=GATE_ACCEPTS),
        Gate("ip", "filter", "DOCKER-USER"): GateState(shut=True, accepts=0),
    }


def test_iptables_shows_the_accepts_as_what_they_are_and_restores_them_so(host):
    host.run("nft", "-f", "-", input=DOCKER)
    gate = CASES["docker"][1]
    do(host, OpenGate(gate))
    shown = host.run("iptables-nft", "-S", "DOCKER-USER").stdout
    assert f'-A DOCKER-USER -i mo+ -m comment --comment "{COMMENT}" -j ACCEPT' in shown
    saved = host.run("iptables-nft-save").stdout
    host.run("iptables-nft-restore", input=saved)
    assert gates(host) == {gate: GateState(shut=True, accepts=GATE_ACCEPTS)}
    do(host, LeaveGate(gate))
    assert "mo+" not in host.run("iptables-nft", "-S").stdout
