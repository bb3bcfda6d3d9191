"""Devices, made and adjusted by us, looked at with iproute2."""

import errno
import secrets
import subprocess
import sys

import pytest
from layout import (
    ALIAS,
    BRIDGE,
    ENDPOINTS,
    MARK,
    MTU,
    NETWORK,
    VXLAN,
    host_end,
    ip,
    kernel,
    mac,
    make_pair,
)

from meshd.errors import KernelError
from meshd.kernel.links import must_remake
from meshd.kernel.namespace import Namespace
from meshd.plan import names
from meshd.plan.diff import diff
from meshd.plan.objects import BROADCAST, Addr, FdbKey, FdbTarget, Kernel, Link, Port, Vxlan
from meshd.plan.ops import DelFdb, DelLink, PutFdb, PutLink, RemakeLink, RenameLink

QUIET = {
    "learning": False,
    "flood": False,
    "mcast_flood": False,
    "bcast_flood": False,
    "neigh_suppress": True,
}
VETH, PEER = host_end(0).name, "mpe0e0e0e0"


@pytest.fixture
def host(netns):
    with netns.call(Namespace) as namespace:
        netns.kernel = namespace
        yield netns


def devices(host):
    return {seen["ifname"]: seen for seen in host.json("ip", "-d", "-j", "link", "show")}


def put(host, *links):
    return [error.what for _, error in host.kernel.apply([PutLink(link) for link in links])]


def bring_up(host, family=4):
    desired = kernel(0, family)
    assert put(host, desired.links[BRIDGE], desired.links[VXLAN]) == []
    return desired


@pytest.mark.parametrize("family", [4, 6])
def test_bridge_and_vxlan_come_up_as_designed_in_one_call(host, family):
    desired = bring_up(host, family)
    bridge, vxlan = devices(host)[BRIDGE], devices(host)[VXLAN]

    assert "UP" in bridge["flags"]
    assert (bridge["mtu"], bridge["ifalias"]) == (MTU, ALIAS)
    assert bridge["address"] == desired.links[BRIDGE].mac.hex(":")
    assert bridge["inet6_addr_gen_mode"] == "none"
    data = bridge["linkinfo"]["info_data"]
    assert (data["stp_state"], data["mcast_snooping"]) == (0, 0)

    assert "UP" in vxlan["flags"]
    assert (vxlan["mtu"], vxlan["ifalias"], vxlan["master"]) == (MTU, ALIAS, BRIDGE)
    assert vxlan["address"] == desired.links[VXLAN].mac.hex(":")
    assert vxlan["inet6_addr_gen_mode"] == "none"
    data = vxlan["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["ttl"], data["learning"]) == (4097, 4789, 64, False)
    assert data["local" if family == 4 else "local6"] == {4: "192.0.2.1", 6: "2001:db8::1"}[family]
    assert (data["udp_csum"], data["df"]) == (True, "set")
    assert not any(data.get(option) for option in ("proxy", "l2miss", "l3miss", "udp_zero_csum6_tx"))
    port = vxlan["linkinfo"]["info_slave_data"]
    assert {field: port[field] for field in QUIET} == QUIET
    addresses = host.json("ip", "-j", "addr", "show", "dev", VXLAN)[0]["addr_info"]
    assert addresses == []


def test_a_bridge_keeps_its_mac_and_mtu_whatever_joins_it(host):
    desired = bring_up(host)
    host.run("ip", "link", "add", "x0", "address", "00:00:00:00:00:01", "mtu", "1280", "type", "veth")
    host.run("ip", "link", "set", "x0", "master", BRIDGE)
    bridge = devices(host)[BRIDGE]
    assert (bridge["address"], bridge["mtu"]) == (desired.links[BRIDGE].mac.hex(":"), MTU)


def test_a_bridge_with_the_default_mtu_keeps_it_too(host):
    assert put(host, Link(BRIDGE, "bridge", ALIAS, 1500)) == []
    host.run("ip", "link", "add", "x0", "mtu", "1280", "type", "veth")
    host.run("ip", "link", "set", "x0", "master", BRIDGE)
    assert devices(host)[BRIDGE]["mtu"] == 1500


def test_putting_what_is_right_touches_nothing(host):
    desired = bring_up(host)
    with host.call(lambda: host.kernel.watch(own=True)) as watch:
        assert put(host, desired.links[BRIDGE], desired.links[VXLAN]) == []
        watch._read()
        assert list(watch._queue) == []


DRIFTS = {
    "down": ["link", "set", VXLAN, "down"],
    "mtu": ["link", "set", VXLAN, "mtu", "1300"],
    "mac": ["link", "set", VXLAN, "address", "02:00:00:00:00:09"],
    "no master": ["link", "set", VXLAN, "nomaster"],
    "other master": ["link", "set", VXLAN, "master", "br9"],
    "learning": ["link", "set", VXLAN, "type", "bridge_slave", "learning", "on"],
    "flood": ["link", "set", VXLAN, "type", "bridge_slave", "flood", "on"],
    "multicast flood": ["link", "set", VXLAN, "type", "bridge_slave", "mcast_flood", "on"],
    "broadcast flood": ["link", "set", VXLAN, "type", "bridge_slave", "bcast_flood", "on"],
    "suppression": ["link", "set", VXLAN, "type", "bridge_slave", "neigh_suppress", "off"],
    "own address": ["link", "set", VXLAN, "type", "vxlan", "local", "192.0.2.7"],
    "bridge down": ["link", "set", BRIDGE, "down"],
    "bridge mtu": ["link", "set", BRIDGE, "mtu", "1300"],
    "bridge mac": ["link", "set", BRIDGE, "address", "02:00:00:00:00:09"],
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_a_drifted_field_shows_in_the_dump_and_is_put_right(host, drift):
    desired = bring_up(host)
    host.run("ip", "link", "add", "br9", "type", "bridge")
    index = devices(host)[VXLAN]["ifindex"]
    host.run("ip", *DRIFTS[drift])
    links = {name: desired.links[name] for name in (BRIDGE, VXLAN)}
    assert host.kernel.dump(MARK).ours.links != links
    assert put(host, *links.values()) == []
    assert host.kernel.dump(MARK).ours.links == links
    assert devices(host)[VXLAN]["ifindex"] == index


REMAKES = {
    "vni": (Vxlan(4098, bytes((192, 0, 2, 1)), 4789), "vni is 4097, not 4098"),
    "family": (Vxlan(4097, bytes(15) + b"\x07", 4789), "local is 192.0.2.1, not ::7"),
    "port": (Vxlan(4097, bytes((192, 0, 2, 1)), 4790), "port is 4789, not 4790"),
}


@pytest.mark.parametrize("field", REMAKES)
def test_what_the_kernel_cannot_change_is_said_and_remade(host, field):
    desired = bring_up(host)
    vxlan, why = REMAKES[field]
    old = desired.links[VXLAN]
    new = Link(VXLAN, "vxlan", ALIAS, MTU, mac=old.mac, master=BRIDGE, port=old.port, vxlan=vxlan)
    assert must_remake(new, old) == why
    assert put(host, new) == [f"device {VXLAN} has to be made anew: {why}"]
    assert host.kernel.dump(MARK).ours.links[VXLAN] == old
    assert host.kernel.apply([RemakeLink(new, why)]) == []
    assert host.kernel.dump(MARK).ours.links[VXLAN] == new


def test_another_kind_has_to_be_remade():
    bridge, veth = Link("a", "bridge", ALIAS, 1500), Link("a", "veth", ALIAS, 1500)
    assert must_remake(bridge, veth) == "is a veth, not a bridge"
    assert must_remake(bridge, bridge) is None


def test_a_device_without_our_mark_is_neither_adjusted_nor_deleted(host):
    host.run("ip", "link", "add", BRIDGE, "type", "bridge")
    before = devices(host)[BRIDGE]
    (refused,) = put(host, Link(BRIDGE, "bridge", ALIAS, MTU))
    assert "without meshd's mark" in refused
    for op in (DelLink(BRIDGE), RemakeLink(Link(BRIDGE, "bridge", ALIAS, MTU), "")):
        ((_, error),) = host.kernel.apply([op])
        assert error.errno == errno.EEXIST
    assert devices(host)[BRIDGE] == before


def test_one_failure_does_not_hold_up_the_others(host):
    links = [
        Link("mo00000001", "bridge", ALIAS, MTU),
        Link(
            "mv00000002", "vxlan", ALIAS, MTU, master="nosuch0", vxlan=Vxlan(5, bytes((192, 0, 2, 1)), 4789)
        ),
        Link("mv00000003", "vxlan", ALIAS, MTU, vxlan=Vxlan(2**24, bytes((192, 0, 2, 1)), 4789)),
        Link("mv00000004", "vxlan", ALIAS, MTU, vxlan=Vxlan(7, bytes((192, 0, 2, 1)), 4789)),
        Link("mh00000005", "veth", ALIAS, MTU),
    ]
    failed = {op.link.name: error for op, error in host.kernel.apply([PutLink(link) for link in links])}
    assert set(failed) == {"mv00000002", "mv00000003", "mh00000005"}
    assert failed["mv00000002"].what == "device nosuch0: does not exist"
    assert failed["mv00000003"].words
    assert failed["mh00000005"].errno == errno.ENODEV
    assert {"mo00000001", "mv00000004"} == devices(host).keys() - {"lo"}


def test_two_vxlans_of_one_vni_are_refused_in_the_kernels_words_and_leave_nothing(host):
    bring_up(host)
    twin = Link("mv00000009", "vxlan", ALIAS, MTU, vxlan=Vxlan(4097, bytes((192, 0, 2, 1)), 4789))
    (refused,) = put(host, twin)
    assert "VNI already exists" in refused
    assert "mv00000009" not in devices(host)


def test_a_device_that_cannot_be_finished_is_not_left_behind(host):
    odd = Link("mo00000001", "bridge", "x" * 300, MTU)  # IFALIASZ is 256, and the alias comes second
    assert len(put(host, odd)) == 1
    assert "mo00000001" not in devices(host)


def test_a_veth_pair_is_made_with_its_peer_and_goes_with_it(host):
    bring_up(host)
    make_pair(host.kernel, host_end(0), PEER, mac(0), 1400)
    here, peer = devices(host)[VETH], devices(host)[PEER]
    assert (here["mtu"], here["ifalias"], here["master"]) == (MTU, ALIAS, BRIDGE)
    assert "UP" in here["flags"]
    assert here["linkinfo"]["info_slave_data"]["learning"] is False
    assert here["linkinfo"]["info_slave_data"]["flood"] is False
    assert (peer["mtu"], peer["address"], "UP" in peer["flags"]) == (1400, mac(0).hex(":"), False)
    assert "ifalias" not in peer
    assert host.kernel.links_exist([VETH, PEER, "nosuch0"]) == {VETH, PEER}
    host.kernel.delete_link(VETH)
    host.kernel.delete_link(VETH)
    assert host.kernel.links_exist([VETH, PEER]) == set()


def test_many_devices_go_together_and_nothing_else_goes(host):
    bring_up(host)
    ends = [Link(f"mh0000000{n}", "veth", ALIAS, MTU, master=BRIDGE, port=Port()) for n in range(4)]
    for n, end in enumerate(ends):
        make_pair(host.kernel, end, f"mp0000000{n}", mac(0), MTU)
    host.run("ip", "link", "add", "x0", "type", "veth", "peer", "name", "x1")
    assert (
        host.kernel.apply([DelLink(end.name) for end in [*ends[:3], Link("mh99999999", "veth", "", 0)]]) == []
    )
    left = {name for name in devices(host) if name.startswith(("mh", "mp", "x"))}
    assert left == {ends[3].name, "mp00000003", "x0", "x1"}


def test_devices_that_cannot_go_together_go_one_by_one(host, monkeypatch):
    """Somebody's device of a kind that the kernel does not delete is of the same group."""
    bring_up(host)
    monkeypatch.setattr(secrets, "randbits", lambda _: 1 << 30)
    host.run("ip", "link", "set", "lo", "group", str(1 << 30))
    make_pair(host.kernel, host_end(0), PEER, mac(0), MTU)
    assert host.kernel.apply([DelLink(VETH), DelLink(VXLAN), DelLink(BRIDGE)]) == []
    assert devices(host).keys() == {"lo"}


def test_no_two_deletions_are_of_one_group(host, monkeypatch):
    """Whoever saw the number of one and put a device of his into it would lose it in the next."""
    drawn = []
    monkeypatch.setattr(secrets, "randbits", lambda bits: drawn.append(bits) or len(drawn))
    for _ in range(2):
        bring_up(host)
        assert host.kernel.apply([DelLink(VXLAN), DelLink(BRIDGE)]) == []
    assert drawn == [31, 31]


def test_the_other_end_of_a_pair_is_born_in_the_namespace_of_a_process(host, make_netns):
    bring_up(host)
    other = make_netns()
    command = ["ip", "netns", "exec", other.name, "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(b"in")
        process.stdin.flush()
        assert process.stdout.read(2) == b"in"  # ip has entered it and become cat
        make_pair(host.kernel, host_end(0), "eth0", mac(0), 1400, process.pid)
        with pytest.raises(KernelError, match="File exists"):
            make_pair(host.kernel, host_end(1), "eth0", mac(1), 1400, process.pid)
        process.stdin.close()
    inside = {link["ifname"]: link for link in other.json("ip", "-j", "link", "show")}
    assert (inside["eth0"]["mtu"], inside["eth0"]["address"]) == (1400, mac(0).hex(":"))
    assert "eth0" not in devices(host)
    assert devices(host).keys() & {VETH, host_end(1).name} == {VETH}


def test_a_veth_pair_without_its_bridge_is_refused_and_leaves_nothing(host):
    with pytest.raises(KernelError, match=f"device {BRIDGE}: does not exist"):
        make_pair(host.kernel, host_end(0), PEER, mac(0), MTU)
    assert devices(host).keys() == {"lo"}


def test_a_veth_pair_that_exists_stays_as_it_is(host):
    bring_up(host)
    make_pair(host.kernel, host_end(0), PEER, mac(0), MTU)
    before = devices(host)[VETH]["ifindex"]
    make_pair(host.kernel, host_end(0), PEER, mac(0), MTU)
    assert devices(host)[VETH]["ifindex"] == before


def test_a_plain_veth_is_adjusted_to_a_port_of_the_bridge(host):
    bring_up(host)
    make_pair(host.kernel, Link(VETH, "veth", ALIAS, MTU), PEER, mac(0), MTU)
    assert "master" not in devices(host)[VETH]
    assert put(host, Link(VETH, "veth", ALIAS, MTU, master=BRIDGE, port=Port())) == []
    assert devices(host)[VETH]["master"] == BRIDGE
    assert devices(host)[VETH]["linkinfo"]["info_slave_data"]["learning"] is False


def test_many_devices_are_made_in_one_call(host):
    links = []
    for n in range(40):
        links.append(Link(f"mo{n:08x}", "bridge", ALIAS, MTU))
        links.append(
            Link(
                f"mv{n:08x}",
                "vxlan",
                ALIAS,
                MTU,
                master=f"mo{n:08x}",
                port=Port(neigh_suppress=True),
                vxlan=Vxlan(5000 + n, bytes((192, 0, 2, 1)), 4789),
            )
        )
    assert put(host, *reversed(links)) == []  # a port before its bridge is no trouble either
    found = host.kernel.dump(MARK).ours.links
    assert found.keys() == {link.name for link in links}
    assert host.kernel.apply([DelLink(link.name) for link in links]) == []
    assert devices(host).keys() == {"lo"}


def test_pyroute2_is_not_imported_whole_and_is_there_for_others():
    script = (
        "import sys\n"
        "import meshd.kernel.namespace\n"
        "mine = [name for name in sys.modules if name.startswith('pyroute2')]\n"
        "assert 'pyroute2' not in mine and 'asyncio' not in sys.modules, mine\n"
        "assert len(mine) < 40, mine\n"
        "from pyroute2 import IPRoute\n"
        "import pyroute2\n"
        "assert pyroute2.__version__\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_renamed_device_gets_its_name_back_with_its_ports_and_stays_up(host):
    bring_up(host)
    before = devices(host)
    for name in (BRIDGE, VXLAN):
        host.run("ip", "link", "set", name, "name", "mine0")
        assert host.kernel.apply([RenameLink("mine0", name)]) == []
    after = devices(host)
    for name in (BRIDGE, VXLAN):
        assert (after[name]["ifindex"], after[name].get("master"), after[name]["flags"]) == (
            before[name]["ifindex"], before[name].get("master"), before[name]["flags"],
        )  # fmt: skip


def test_a_name_that_somebody_else_uses_is_not_taken_from_him(host):
    bring_up(host)
    host.run("ip", "link", "set", VXLAN, "name", "mine0")
    host.run("ip", "link", "add", VXLAN, "type", "bridge")
    ((_, error),) = host.kernel.apply([RenameLink("mine0", VXLAN)])
    assert (error.errno, error.words) == (errno.EEXIST, "it exists without meshd's mark")
    host.run("ip", "link", "add", "theirs0", "type", "bridge")
    ((_, error),) = host.kernel.apply([RenameLink("theirs0", BRIDGE)])
    assert error.words == "it exists without meshd's mark"


def test_a_pair_with_both_ends_here_is_made_narrow_kept_and_made_again(netns):
    near, far = names.veth(ENDPOINTS[0]), names.host(NETWORK)
    want = Kernel(
        links={
            BRIDGE: Link(BRIDGE, "bridge", ALIAS, MTU, mac=names.gateway_mac(NETWORK), narrow=True),
            near: Link(near, "veth", ALIAS, MTU, master=BRIDGE, port=Port(), peer=far),
            far: Link(far, "veth", ALIAS, MTU, mac=mac(0), peer=near, narrow=True),
        },
        addrs={
            Addr(BRIDGE, ip("10.77.0.1"), 32),
            Addr(far, ip("10.77.0.2"), 24),
            Addr(far, ip("fd77::2"), 64),
        },
        fdb={FdbKey(near, mac(0), "master"): FdbTarget(local=True)},
    )

    def repair():
        with Namespace() as namespace:
            done = namespace.apply(diff(want, namespace.dump(MARK).ours, deletions=True))
            return done, diff(want, namespace.dump(MARK).ours, deletions=True)

    for damage in (None, ["link", "del", far], ["link", "set", far, "down"], ["addr", "flush", "dev", far]):
        if damage:
            netns.run("ip", *damage)
        assert netns.call(repair) == ([], []), damage
    conf = "/proc/sys/net/ipv4/conf"
    for device in (BRIDGE, far):
        values = netns.run(
            "cat", *(f"{conf}/{device}/{key}" for key in ("arp_ignore", "arp_announce", "rp_filter"))
        )
        assert values.stdout.split() == ["1", "2", "2"]
    netns.run("sh", "-c", f"echo 0 >{conf}/{far}/arp_ignore")
    assert netns.call(repair) == ([], [])
    assert netns.run("cat", f"{conf}/{far}/arp_ignore").stdout.strip() == "1"
    assert netns.call(repair) == ([], [])


def test_frames_for_all_have_a_row_for_each_host_which_comes_and_goes_alone(host):
    bring_up(host)
    keys = [FdbKey(VXLAN, BROADCAST, "self", ip(f"192.0.2.{n}")) for n in (2, 3, 4)]
    puts = [PutFdb(key, FdbTarget(dst=key.to)) for key in keys]
    assert host.kernel.apply(puts) == []
    assert host.kernel.apply(puts) == []
    assert {key for key in host.kernel.dump(MARK).ours.fdb if key.to} == set(keys)
    assert host.kernel.apply([DelFdb(keys[1])]) == []
    assert {key for key in host.kernel.dump(MARK).ours.fdb if key.to} == {keys[0], keys[2]}
    assert host.kernel.apply([DelFdb(keys[1])]) == []
    told = [
        row["dst"]
        for row in host.json("bridge", "-j", "fdb", "show", "dev", VXLAN)
        if row["mac"] == "00:00:00:00:00:00"
    ]
    assert sorted(told) == ["192.0.2.2", "192.0.2.4"]


def test_strangers_vxlan_devices_are_told_with_what_they_occupy_and_ours_are_not(host):
    bring_up(host)
    for name, *more in (
        ("vx4", "id", "7", "dstport", "4789", "local", "192.0.2.9"),
        ("vx6", "id", "7", "dstport", "4789", "local", "2001:db8::9"),
        ("vxx", "external", "dstport", "8472"),
    ):
        host.run("ip", "link", "add", name, "type", "vxlan", *more)
    other = "vx-another"
    host.run("ip", "link", "add", other, "type", "vxlan", "id", "8", "dstport", "4790")
    host.run("ip", "link", "set", other, "alias", names.alias("feedbeef", NETWORK))
    assert host.kernel.foreign_vxlans(MARK) == [
        (other, 8, 4790, 4, False),
        ("vx4", 7, 4789, 4, False),
        ("vx6", 7, 4789, 6, False),
        ("vxx", 0, 8472, 0, True),
    ]
