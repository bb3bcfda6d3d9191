"""Networks that are the LAN itself: macvlan endpoints on several hosts and a router that is no host of ours. The
lab's LAN, 192.0.2.0/24, has the hosts on it and the gateway 192.0.2.254."""

import itertools
import json
from collections.abc import Iterator

import pytest
from labtools import Attach, NewNetwork, no_ping_is_lost

from meshctl import labnet
from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for
from meshctl.ping import ping

GATEWAY = labnet.address(labnet.GATEWAY_NUMBER)
GATEWAY6 = labnet.address(labnet.GATEWAY_NUMBER, 6)
YARD = (
    *("-d", "macvlan", "--subnet", "192.0.2.0/24", "--gateway", GATEWAY, "--ip-range", "192.0.2.64/26"),
    *("--subnet", "2001:db8::/64", "--gateway", GATEWAY6),
)
STRANGER = "192.0.2.70"


@pytest.fixture
def yard(new_network: NewNetwork) -> str:
    """A dual-stack macvlan network on the device of each host's default route."""
    return new_network(*YARD)


@pytest.fixture
def stranger(lab3: Lab) -> Iterator[str]:
    """A machine on the LAN that nobody told about meshd; its MAC."""
    ns, port = lab3.container("stranger"), "stranger0"
    labnet.batch(lab3.lan, [
        f"link add {port} type veth peer name eth0 netns {ns}",
        f"link set {port} master {labnet.LAN_BRIDGE} up",
    ])  # fmt: skip
    labnet.batch(ns, [f"addr add {STRANGER}/24 dev eth0", "link set eth0 up"])
    link = labnet.ip("-n", ns, "-o", "link", "show", "dev", "eth0")
    yield link.partition("link/ether ")[2].split()[0]
    labnet.ip("-n", lab3.lan, "link", "del", port)


def links(host: Host) -> set[str]:
    return set(host.run("ls", "/sys/class/net").stdout.split())


def refused(host: Host, *args: str) -> str:
    done = host.meshctl(*args)
    assert (done.returncode, done.stdout) == (1, ""), done
    assert len(done.stderr.splitlines()) <= 2, done.stderr
    return done.stderr


def test_endpoints_of_all_hosts_and_the_lans_router_reach_each_other(
    lab3: Lab, yard: str, attach: Attach
) -> None:
    ends = [attach(host, yard) for host in lab3.hosts for _ in range(2)]
    no_ping_is_lost([pair for pair in itertools.permutations(ends, 2) if pair[0].host is not pair[1].host], 1)
    no_ping_is_lost([(ends[0], ends[1])])
    for end in ends[::2]:
        assert ping(end.ns, GATEWAY).lost == 0
        assert ping(end.ns, GATEWAY6).lost == 0
        assert f"default via {GATEWAY}" in labnet.ip("-n", end.ns, "route", "show")
    addresses = [ip for end in ends for ip in end.ips]
    assert len(set(addresses)) == len(addresses), "no address twice, whichever host gave it out"
    assert not {GATEWAY, GATEWAY6} & set(addresses)
    assert all(end.v4.rpartition(".")[2] in map(str, range(64, 128)) for end in ends)


def test_the_lans_router_is_nobodys_address_and_on_none_of_our_devices(
    lab3: Lab, yard: str, attach: Attach
) -> None:
    host = lab3.hosts[0]
    ns = lab3.container("greedy")
    told = refused(host, "attach", yard, "--netns", f"/run/netns/{ns}", "--ip", GATEWAY)
    assert "the gateway" in told
    before = {name for name in links(host) if name.startswith(("mo", "mv"))}  # the network `bridge` has one
    attach(host, yard)
    assert GATEWAY not in host.run("ip", "addr").stdout
    assert {name for name in links(host) if name.startswith(("mo", "mv"))} == before


def test_an_address_that_a_stranger_has_is_refused_with_his_mac_and_never_chosen(
    lab3: Lab, yard: str, attach: Attach, stranger: str
) -> None:
    host = lab3.hosts[0]
    ns = lab3.container("late")
    before = links(host)
    told = refused(host, "attach", yard, "--netns", f"/run/netns/{ns}", "--ip", STRANGER)
    assert f"address in use on the LAN of eth0: {STRANGER} by {stranger}" in told
    assert links(host) == before
    assert host.json("endpoint", "ls", "--network", yard) == []
    ends = [attach(host, yard) for host in lab3.hosts for _ in range(2)]
    assert STRANGER not in {end.v4 for end in ends}
    own = labnet.address(2)
    assert own in refused(host, "attach", yard, "--netns", f"/run/netns/{ns}", "--ip", own), "another host's"


def test_detach_deletes_the_device_in_a_container_that_runs_on(lab3: Lab, yard: str, attach: Attach) -> None:
    host = lab3.hosts[0]
    end = attach(host, yard)
    assert "eth0" in labnet.ip("-n", end.ns, "link")
    assert host.json("diff")["in_sync"]
    host.json("detach", yard, "--netns", end.path)
    assert "eth0" not in labnet.ip("-n", end.ns, "link")
    assert host.json("endpoint", "ls", "--network", yard) == []
    assert not {name for name in links(host) if name.startswith("mu")}


def test_a_restarted_daemon_knows_its_endpoints_in_containers_again(
    lab3: Lab, yard: str, attach: Attach
) -> None:
    host = lab3.hosts[1]
    end = attach(host, yard)
    host.kill()
    host.start()
    assert host.json("diff")["in_sync"]
    assert ping(end.ns, GATEWAY).lost == 0
    labnet.ip("-n", end.ns, "link", "del", "eth0")
    (missing,) = json.loads(host.meshctl("-o", "json", "diff").stdout)["missing"]
    assert missing["what"] == f"dev mu{end.endpoint['id'][:8]}"
    host.json("detach", yard, "--netns", end.path)
    wait_for("in sync again", 10.0, lambda: bool(host.json("diff")["in_sync"]))


def test_a_command_on_the_lan_leaves_nothing(lab3: Lab, yard: str) -> None:
    host = lab3.hosts[2]
    done = host.meshctl("run", yard, "--", "ping", "-c", "1", "-W", "1", GATEWAY)
    assert done.returncode == 0, done.stderr
    assert host.json("endpoint", "ls", "--network", yard) == []


def test_each_wrong_parent_is_one_clear_line_with_nothing_half_made(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    host = lab3.hosts[0]
    labnet.batch(host.ns, [
        "link add wbr type bridge", "link add w0 type veth peer name w1", "link set w0 master wbr",
        "link add w2 type veth peer name w3", "link set w3 up", "link set w2 up",
    ])  # fmt: skip
    ns = lab3.container("wrong")
    lan = ("-d", "macvlan", "--subnet")
    cases = {
        ("10.61.0.0/24", "--parent", "nix0"): "does not exist on this host",
        ("10.63.0.0/24", "--parent", "w0"): "is a port of bridge wbr",
        ("10.65.0.0/24", "--parent", "eth0"): "is on another LAN than 10.65.0.0/24: it has 192.0.2.1/24",
        ("10.66.0.0/24", "--parent", "nix0.10"): "cannot be made: nix0 does not exist on this host",
    }
    before = links(host)
    try:
        for flags, words in cases.items():
            host.json("network", "create", "wrong", *lan, *flags)
            assert words in refused(host, "attach", "wrong", "--netns", f"/run/netns/{ns}")
            host.json("network", "rm", "wrong")
        used = new_network(*lan, "10.67.0.0/24", "--parent", "w3")
        end = attach(host, used)
        assert "is used in macvlan mode bridge by network" in refused(
            host, "network", "create", "other", *lan, "10.68.0.0/24", "--parent", "w3", "--mode", "vepa"
        )
        host.json("detach", used, "--netns", end.path)
        assert links(host) == before
    finally:
        for device in ("wbr", "w0", "w2"):
            labnet.ip("-n", host.ns, "link", "del", device)


def test_what_this_kernel_lacks_is_refused_by_name_or_works(lab3: Lab, new_network: NewNetwork) -> None:
    """ip(8) says what the kernel has: a kernel without it gets the feature's name, one with it an endpoint."""
    host = lab3.hosts[0]
    ns = lab3.container("features")
    before = links(host)
    has = {}
    for kind, more in (("ipvlan", ()), ("vlan", ("id", "7"))):
        made = host.run("ip", "link", "add", "link", "eth0", "name", "t0", "type", kind, *more)
        has[kind] = made.returncode == 0
        host.run("ip", "link", "del", "t0")
    lan = ("--subnet", "10.71.0.0/24", "--opt", "check-subnet=no")
    if not has["ipvlan"]:
        assert "has no ipvlan (CONFIG_IPVLAN)" in refused(
            host, "network", "create", "ipv", "-d", "ipvlan", *lan
        )
    tagged = new_network("-d", "macvlan", *lan, "--parent", "eth0.10")
    where = ("attach", tagged, "--netns", f"/run/netns/{ns}")
    if not has["vlan"]:
        assert "has no 802.1Q VLAN devices (CONFIG_VLAN_8021Q)" in refused(host, *where)
    else:
        host.json(*where)
        assert "eth0.10" in links(host)
        host.json("detach", tagged, "--netns", f"/run/netns/{ns}")
    assert links(host) == before


def test_of_several_networks_the_first_is_the_way_out_and_the_next_takes_over(
    lab3: Lab, yard: str, new_network: NewNetwork
) -> None:
    host = lab3.hosts[0]
    ns = lab3.container("many")
    at = ("--netns", f"/run/netns/{ns}")
    blue, mute = new_network(), new_network("--opt", "default-route=no")
    for network, ifname in ((mute, "eth0"), (blue, "eth1"), (yard, "eth2")):
        host.json("attach", network, *at, "--ifname", ifname)

    def ways() -> list[str]:
        return [line.split()[4] for line in labnet.ip("-n", ns, "route", "show", "default").splitlines()]

    assert ways() == ["eth1", "eth2"]
    assert labnet.ip("-n", ns, "route", "get", "203.0.113.1").split()[4] == "eth1"
    host.json("detach", blue, *at)
    assert ways() == ["eth2"]
    assert ping(ns, GATEWAY).lost == 0
    for network in (mute, yard):
        host.json("detach", network, *at)


def test_none_and_host_take_no_endpoint_and_none_can_be_attached_later(lab3: Lab, yard: str) -> None:
    host = lab3.hosts[0]
    ns = lab3.container("plain")
    told = refused(host, "attach", "host", "--netns", f"/run/netns/{ns}")
    assert "network host is this host's own namespace" in told
    assert "network none is a namespace without any network" in refused(
        host, "attach", "none", "--netns", f"/run/netns/{ns}"
    )
    script = (
        f"meshctl run none -- sh -c 'echo $$ >{host.dir}/pid; exec sleep 30' & "
        f"while [ ! -s {host.dir}/pid ]; do sleep 0.02; done; pid=$(cat {host.dir}/pid); "
        f"meshctl attach {yard} --pid $pid >&2 && nsenter -t $pid -n ping -c 1 -W 1 {GATEWAY}; status=$?; "
        "kill $pid; wait; exit $status"
    )
    done = host.run("sh", "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    (left,) = host.json("endpoint", "ls", "--network", yard)
    host.json("detach", yard, "--endpoint", left["id"])
