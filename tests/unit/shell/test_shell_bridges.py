"""Operators' bridges and their ports: records, deadlines, what is undone when. The kernel is a fake with devices and
what is on them; the moves themselves are tested on a real one."""

import msgspec
import pytest
import trio

from meshd.config import BRIDGE_KEEP_BACKOFF_MAX_S
from meshd.errors import BadRequest, Conflict, KernelError, NotFound, Unavailable
from meshd.plan import names
from meshd.plan.bridges import Belongings, Card
from meshd.plan.managers import Owner
from meshd.shell import bridgekeep, bridgeports, bridges, managers
from meshd.shell.bridgekeep import Keeper
from meshd.shell.bridgeports import PortRequest
from meshd.shell.bridges import BridgeRequest
from tests.unit.shell.fake_cluster import World

ETH_MAC, OTHER_MAC = bytes.fromhex("0200000000e0"), bytes.fromhex("0200000000e1")
REFUSED = KernelError("eth0 could not become a port: all is as it was", errno=16)


@pytest.fixture(autouse=True)
def boottime(monkeypatch):
    """Time since the boot goes with the test's."""
    for module in (bridges, bridgeports, bridgekeep):
        monkeypatch.setattr(
            module, "boottime_ms", lambda: 1_000_000 + round(trio.current_time() * 1000) % 10**9
        )


@pytest.fixture(autouse=True)
def no_managers(monkeypatch, tmp_path):
    monkeypatch.setattr(managers, "ROOT", tmp_path)


class Killed(Exception):
    """The daemon ends here."""


class Site:
    def __init__(self, nursery):
        self.world = World()
        self.world.nursery = nursery
        self.cluster = self.world.hosts[0]
        self.kernel = self.cluster.kernel.bridging
        self.kernel.cards = {
            "eth0": Card("eth0", index=2, up=True, mac=ETH_MAC),
            "eth1": Card("eth1", index=3, up=True, mac=OTHER_MAC),
        }
        self.kernel.on = {2: Belongings(b"", 3), 9: Belongings()}

    async def bridge(self, name="br0"):
        await bridges.create(self.cluster, BridgeRequest(name))
        bridge_id, bridge = bridges.find(self.cluster, name)
        alias = names.lan_bridge_alias(self.cluster.mark, bridge_id)
        self.kernel.cards[name] = Card(name, index=9, kind="bridge", alias=alias, up=True, mac=bridge.mac)
        return bridge_id

    async def add(self, card="eth0", bridge="br0", within=60.0):
        return await bridgeports.add(self.cluster, PortRequest(bridge, card, within))

    def restarted(self, boot=None):
        """Another daemon with the same disk."""
        other = self.world.hosts[0]
        other.alarms.clear()
        if boot:
            other.boot_id = boot

    @property
    def ports(self):
        return [(p.name, bool(p.deadline_ms)) for b in self.cluster.bridges.values() for p in b.ports]

    def master(self, card="eth0"):
        return self.kernel.cards[card].master

    def reverted(self):
        events = self.cluster.events.kept()
        return [event["why"] for event in events if event["kind"] == "bridge-port-reverted"]


@pytest.fixture
async def site(nursery, autojump_clock):
    made = Site(nursery)
    await made.bridge()
    return made


async def test_what_is_confirmed_in_time_stays(site, autojump_clock):
    added = await site.add()
    assert (site.ports, site.master()) == ([("eth0", True)], "br0")
    assert bridges.port_state(site.cluster, added.found, added.found.bridge.ports[0]) == ("unconfirmed", 60.0)
    assert "bridge-unconfirmed" in site.cluster.alarms
    await trio.sleep(59)
    found = await bridgeports.confirm(site.cluster)
    assert bridges.port_state(site.cluster, found, found.bridge.ports[0]) == ("up", None)
    await trio.sleep(1000)
    assert (site.ports, site.master(), site.reverted(), site.cluster.alarms) == (
        [("eth0", False)],
        "br0",
        [],
        {},
    )


async def test_what_is_not_goes_back_and_the_bridge_has_its_own_mac_again(site, autojump_clock):
    await site.add(within=5)
    assert site.kernel.cards["br0"].mac == ETH_MAC
    await trio.sleep(4.9)
    assert site.master() == "br0"
    await trio.sleep(0.2)
    bridge_id, bridge = bridges.find(site.cluster, "br0")
    assert (site.ports, site.master(), bridge.mac) == ([], "", names.lan_bridge_mac(bridge_id))
    assert site.kernel.cards["br0"].mac == bridge.mac
    assert site.kernel.moves[-1][1].restore
    assert (site.reverted(), site.cluster.alarms) == (["nobody confirmed it in time"], {})
    with pytest.raises(Conflict, match="no bridge port waits"):
        await bridgeports.confirm(site.cluster)


async def test_the_record_is_on_disk_before_the_kernel_is_asked(site, autojump_clock):
    seen = []
    join = site.kernel.join

    def look(move):
        seen.append(site.ports)
        join(move)

    site.kernel.join = look
    await site.add()
    assert seen == [[("eth0", True)]]


async def test_a_full_disk_leaves_the_kernel_alone(site, autojump_clock):
    site.cluster.disk_full = True
    with pytest.raises(Unavailable):
        await site.add()
    assert (site.kernel.moves, site.ports, site.master()) == ([], [], "")


async def test_what_the_kernel_refuses_is_forgotten(site, autojump_clock):
    site.kernel.refuse = REFUSED
    with pytest.raises(KernelError, match="all is as it was"):
        await site.add()
    assert (site.ports, site.reverted()) == ([], [])
    await trio.sleep(100)
    assert [what for what, _ in site.kernel.moves] == ["join"]


async def test_going_back_is_tried_until_it_works(site, autojump_clock):
    await site.add(within=5)
    site.kernel.refuse = REFUSED
    await trio.sleep(10)
    assert (site.ports, "cannot" in site.cluster.alarms["bridge-revert"]) == ([("eth0", True)], True)
    site.kernel.refuse = None
    await trio.sleep(2)
    assert (site.ports, site.master(), site.cluster.alarms) == ([], "", {})


async def test_what_does_not_come_back_with_the_card_is_said(site, autojump_clock):
    await site.add(within=5)
    site.kernel.kept_back = [KernelError("route default table 254 on eth0", errno=101, words="unreachable")]
    await trio.sleep(6)
    assert site.ports == []
    assert "route default table 254 on eth0: unreachable" in site.cluster.alarms["bridge-revert"]


async def test_one_change_waits_at_a_time(site, autojump_clock):
    await site.bridge("br1")
    await site.add()
    with pytest.raises(Conflict, match=r"eth0 in br0 is not confirmed yet, and goes back in 60 s"):
        await site.add("eth1", "br1")
    await bridgeports.confirm(site.cluster)
    await site.add("eth1", "br1")
    assert site.ports == [("eth0", False), ("eth1", True)]


async def test_a_second_card_leaves_the_bridges_mac_and_the_first_takes_it_along(site, autojump_clock):
    await site.add()
    await bridgeports.confirm(site.cluster)
    added = await site.add("eth1")
    assert any("loop" in line for line in added.warnings)
    await bridgeports.confirm(site.cluster)
    assert bridges.find(site.cluster, "br0")[1].mac == ETH_MAC
    await bridgeports.remove(site.cluster, "br0", "eth0")
    assert (site.ports, bridges.find(site.cluster, "br0")[1].mac) == ([("eth1", False)], OTHER_MAC)


async def test_a_port_that_cannot_be_taken_out_whole_stays(site, autojump_clock):
    await site.add()
    await bridgeports.confirm(site.cluster)
    site.kernel.kept_back = [REFUSED]
    with pytest.raises(KernelError):
        await bridgeports.remove(site.cluster, "br0", "eth0")
    assert (site.ports, site.master()) == ([("eth0", False)], "br0")


@pytest.mark.parametrize("passed_s", [10, 100])
async def test_a_restart_goes_on_waiting_or_undoes(site, autojump_clock, nursery, passed_s):
    site.world.nursery = None  # the first daemon is killed: nobody waits for the deadline
    await site.add(within=60)
    await trio.sleep(passed_s)
    site.world.nursery = nursery
    site.restarted()
    await bridgeports.recover(site.cluster)
    assert site.ports == ([("eth0", True)] if passed_s < 60 else [])
    await trio.sleep(60)
    assert (site.ports, site.master(), site.reverted()) == ([], "", ["nobody confirmed it in time"])


async def test_a_restart_undoes_what_was_recorded_and_not_done(site, autojump_clock, monkeypatch):
    def killed(_move):
        raise (
            trio.Cancelled._create(source="test", reason="killed", source_task="x")
            if False
            else KeyboardInterrupt
        )

    monkeypatch.setattr(site.kernel, "join", killed)

    async def lost(*_):
        raise Killed

    saved = bridgeports.save

    async def save_once(*args):
        monkeypatch.setattr(bridgeports, "save", lost)  # nothing more gets to the disk
        await saved(*args)

    monkeypatch.setattr(bridgeports, "save", save_once)
    with pytest.raises(Killed):
        await site.add()
    assert (site.ports, site.master()) == ([("eth0", True)], "")
    monkeypatch.setattr(bridgeports, "save", saved)
    await bridgeports.recover(site.cluster)
    assert (site.ports, site.reverted()) == ([], ["the daemon ended while it was added"])
    assert site.kernel.moves[-1][0] == "leave"
    assert site.kernel.moves[-1][1].restore


@pytest.mark.parametrize("confirmed", [False, True])
async def test_a_reboot_has_undone_what_was_unconfirmed_and_the_rest_joins_again(
    site, autojump_clock, confirmed
):
    await site.add()
    if confirmed:
        await bridgeports.confirm(site.cluster)
    site.kernel.cards["eth0"] = msgspec.structs.replace(site.kernel.cards["eth0"], master="", index=5)
    site.kernel.on[5] = Belongings(b"", 4)
    site.kernel.moves.clear()
    site.restarted(boot="another")
    await bridgeports.recover(site.cluster)
    await Keeper(site.cluster).look()
    if confirmed:
        ((what, move),) = site.kernel.moves
        assert (what, move.restore, site.ports) == ("join", False, [("eth0", False)])
        (port,) = bridges.find(site.cluster, "br0")[1].ports
        assert (port.boot_id, port.index) == ("another", 5)
    else:
        assert (site.kernel.moves, site.ports) == ([], [])
        assert site.reverted() == ["the host was restarted before anybody confirmed it"]


async def test_a_stop_undoes_what_is_unconfirmed_only(site, autojump_clock):
    await bridgeports.stop(site.cluster)
    await site.add()
    await bridgeports.stop(site.cluster)
    assert (site.ports, site.master()) == ([], "")
    await site.add()
    await bridgeports.confirm(site.cluster)
    await bridgeports.stop(site.cluster)
    assert (site.ports, site.master()) == ([("eth0", False)], "br0")


async def confirmed(site):
    await site.add()
    await bridgeports.confirm(site.cluster)
    site.kernel.on[2] = Belongings()
    site.kernel.moves.clear()
    return Keeper(site.cluster)


async def test_a_port_that_is_right_is_left_alone(site, autojump_clock):
    keeper = await confirmed(site)
    await keeper.look()
    assert (site.kernel.moves, await bridgekeep.findings(site.cluster)) == ([], [])


async def test_what_appears_on_a_port_follows(site, autojump_clock):
    keeper = await confirmed(site)
    site.kernel.on[2] = Belongings(b"", 1)
    await keeper.look()
    assert [what for what, _ in site.kernel.moves] == ["join"]


async def test_a_port_taken_out_again_and_again_joins_ever_later(site, autojump_clock):
    keeper = await confirmed(site)
    joined = 0
    for _ in range(600):
        site.kernel._master(site.kernel.moves[-1][1], "") if site.kernel.moves else None
        site.kernel.cards["eth0"] = msgspec.structs.replace(site.kernel.cards["eth0"], master="")
        await keeper.look()
        joined += site.master() == "br0"
        await trio.sleep(1)
    assert 6 < joined < 6 + 600 / BRIDGE_KEEP_BACKOFF_MAX_S + 2


async def test_a_card_that_another_bridge_has_is_left_there(site, autojump_clock):
    keeper = await confirmed(site)
    eth0 = site.kernel.cards["eth0"]
    site.kernel.cards["eth0"] = msgspec.structs.replace(eth0, master="virbr0", master_kind="bridge")
    await keeper.look()
    assert site.kernel.moves == []
    assert "gave it to virbr0" in site.cluster.alarms["bridge-port eth0"]
    (finding,) = await bridgekeep.findings(site.cluster)
    assert (finding.object, finding.what) == ("port", "dev eth0 master br0")
    site.kernel.cards["eth0"] = eth0
    await keeper.look()
    assert site.cluster.alarms == {}


async def test_a_card_that_is_gone_is_said_to_be_and_joins_when_it_is_back(site, autojump_clock):
    keeper = await confirmed(site)
    card = site.kernel.cards.pop("eth0")
    await keeper.look()
    assert "does not exist" in site.cluster.alarms["bridge-port eth0"]
    site.kernel.cards["eth0"] = msgspec.structs.replace(card, master="", index=7)
    await keeper.look()
    assert (site.master(), site.cluster.alarms) == ("br0", {})


async def test_what_a_bridge_made_anew_lost_is_put_on_it(site, autojump_clock):
    keeper = await confirmed(site)
    site.kernel.cards["br0"] = msgspec.structs.replace(site.kernel.cards["br0"], index=12)
    site.kernel.cards["eth0"] = msgspec.structs.replace(site.kernel.cards["eth0"], master="")
    await keeper.look()
    assert [(what, move.restore) for what, move in site.kernel.moves] == [("join", True)]
    assert bridges.find(site.cluster, "br0")[1].ports[0].bridge_index == 12


async def test_an_unconfirmed_port_that_somebody_takes_out_goes_back_at_once(site, autojump_clock):
    await site.add()
    site.kernel.cards["eth0"] = msgspec.structs.replace(site.kernel.cards["eth0"], master="")
    await Keeper(site.cluster).look()
    await trio.sleep(0.1)
    assert (site.ports, site.reverted()) == ([], ["it is no port any more"])


PROGRAMS = {
    "systemd-networkd": "networkctl reload", "NetworkManager": "nmcli connection up br0-eth0", "netplan": "netplan try",
}  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_card_of_a_manager_that_keeps_at_it_is_refused_with_its_lines(
    site, autojump_clock, monkeypatch, program
):
    monkeypatch.setattr(
        managers, "owner", lambda card: Owner(program, "/etc/x") if card.name == "eth0" else None
    )
    with pytest.raises(Conflict, match=f"{program}.* looks after eth0 and would undo") as caught:
        await site.add()
    assert caught.value.lines[-1] == PROGRAMS[program]
    assert (site.ports, site.kernel.moves) == ([], [])


async def test_a_bridge_that_a_manager_takes_for_its_own_is_refused(site, autojump_clock, monkeypatch):
    owner = Owner("systemd-networkd", "/etc/systemd/network/all.network")
    monkeypatch.setattr(managers, "owner", lambda card: owner if card.name == "br0" else None)
    with pytest.raises(Conflict, match="looks after br0 too") as caught:
        await site.add()
    assert "Unmanaged=yes" in caught.value.hint
    assert caught.value.lines == ["networkctl reload"]


async def test_ifupdown_is_warned_of(site, autojump_clock, monkeypatch):
    monkeypatch.setattr(
        managers, "owner", lambda card: Owner("ifupdown", "/etc/network/interfaces", dhcp=True)
    )
    added = await site.add()
    assert "do not run ifdown eth0, and expect its lease" in added.warnings[0]


async def test_leases_and_advertisements(site, autojump_clock):
    site.kernel.on[2] = Belongings(b"", 3, leased=("192.0.2.5",), advertised=True)
    with pytest.raises(Conflict, match="router advertisements") as caught:
        await site.add()
    assert "net.ipv6.conf.br0.accept_ra=2" in caught.value.hint
    site.kernel.cards["br0"] = msgspec.structs.replace(site.kernel.cards["br0"], accept_ra=True)
    added = await site.add()
    assert "a DHCP client looks after 192.0.2.5 on eth0" in added.warnings[0]


async def test_what_does_not_move_in_one_step_does_not_move(site, autojump_clock):
    site.kernel.on[2] = Belongings(b"", 900, fits=False)
    with pytest.raises(Conflict, match="900 addresses and routes"):
        await site.add()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"missing": True}, "does not exist"),
        ({"loopback": True}, "loopback"),
        ({"alias": "meshd:1:2"}, "meshd's own"),
        ({"master": "bond0", "master_kind": "bond"}, "a port of bond bond0 already"),
        ({"kind": "bridge"}, "bridges do not nest"),
        ({"ethernet": False}, "no Ethernet"),
        ({"wireless": True}, "wireless"),
        ({"above": ("mv0", "mv1")}, "the parent of mv0, mv1"),
        ({"up": False}, "is down"),
    ],
)
async def test_a_device_that_cannot_be_a_port_is_refused_with_a_hint(site, autojump_clock, changes, words):
    site.kernel.cards["eth0"] = msgspec.structs.replace(site.kernel.cards["eth0"], **changes)
    with pytest.raises(Conflict, match=words) as caught:
        await site.add()
    assert (bool(caught.value.hint), site.ports, site.kernel.moves) == (True, [], [])


async def test_a_long_time_is_told_in_plain_digits(site, autojump_clock):
    with pytest.raises(BadRequest, match="3596400 is not 1 to 3600"):
        await site.add(within=3_596_400.0)


@pytest.mark.parametrize("within", [0, -1, 3601, float("nan")])
async def test_a_time_that_nobody_means(site, autojump_clock, within):
    with pytest.raises(BadRequest, match="confirm_within_s"):
        await site.add(within=within)


async def test_names(site, autojump_clock):
    for name in ("", "a/b", "x" * 16, "lo", "all", "mo01234567", "mo1", "a b"):
        with pytest.raises(BadRequest):
            await bridges.create(site.cluster, BridgeRequest(name))
    for name, words in (("br0", "exists already"), ("eth0", "exists on this host")):
        with pytest.raises(Conflict, match=words):
            await bridges.create(site.cluster, BridgeRequest(name))
    site.kernel.cards["old0"] = Card(
        "old0", kind="bridge", alias=names.lan_bridge_alias("deadbeef", bytes(16))
    )
    with pytest.raises(Conflict, match="no record of any more"):
        await bridges.create(site.cluster, BridgeRequest("old0"))
    with pytest.raises(NotFound):
        await site.add(bridge="nosuch")


async def test_a_bridge_that_a_manager_is_to_make_is_not_made(site, autojump_clock, tmp_path):
    folder = tmp_path / "etc/systemd/network"
    folder.mkdir(parents=True)
    (folder / "1.netdev").write_text("[NetDev]\nName=br5\nKind=bridge\n")
    with pytest.raises(Conflict, match="systemd-networkd is to make bridge br5"):
        await bridges.create(site.cluster, BridgeRequest("br5"))


async def test_a_bridge_goes_when_nothing_is_on_it(site, autojump_clock):
    await site.add()
    await bridgeports.confirm(site.cluster)
    with pytest.raises(Conflict, match="has ports: eth0") as caught:
        await bridges.remove(site.cluster, "br0")
    assert caught.value.hint == "meshctl bridge port rm br0 eth0"
    await bridgeports.remove(site.cluster, "br0", "eth0")
    site.kernel.cards["br0"] = msgspec.structs.replace(site.kernel.cards["br0"], ports=("tap0",))
    with pytest.raises(Conflict, match="tap0"):
        await bridges.remove(site.cluster, "br0")
    site.kernel.cards["br0"] = msgspec.structs.replace(site.kernel.cards["br0"], ports=())
    await bridges.remove(site.cluster, "br0")
    assert (site.cluster.bridges, list(site.cluster.store.live(35))) == ({}, [])
