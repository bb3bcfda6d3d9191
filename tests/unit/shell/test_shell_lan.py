"""Attach to a network that is the LAN: which device, which address, and what is left when it fails. The kernel is a
fake with a LAN on it: who has which address, which devices there are."""

import ipaddress

import msgspec
import pytest
import trio.testing

from meshd.errors import BadRequest, Conflict, KernelError
from meshd.kernel.lan import Guest
from meshd.model import text_ip
from meshd.plan import names
from meshd.plan.parents import Parent, missing_feature
from meshd.shell import attach as use_case
from meshd.shell import lan, networks
from meshd.shell.attach import AttachRequest, Netns
from meshd.shell.orphans import Orphans, namespace_ended
from meshd.state.networks import NetworkRequest
from tests.unit.shell.fake_cluster import BOOT, World, free_counts

ETH = Parent("eth0", index=2, mtu=1500, mac=b"\x02ether", addresses=("10.44.0.1/24",))
STRANGER = bytes.fromhex("025566778899")
OTHERS = ((1, ETH.mac), (3, STRANGER), (4, STRANGER))  # this host's own address among them


class FakeLan:
    """``devices``: what can be a parent; ``held``: packed address -> MAC of whoever answers on the LAN."""

    def __init__(self, cluster):
        self.cluster, self.devices, self.held = cluster, {"eth0": ETH}, {}
        self.asked, self.kinds, self.refuse = [], {"macvlan", "ipvlan", "vlan"}, None

    def parent(self, name):
        return self.devices.get(name or "eth0", Parent(name or "eth0", missing=True))

    def supports(self, kind):
        return kind in self.kinds

    def make_guest(self, guest: Guest):
        assert guest.name in self.cluster.reconciler.being_made, "the reconciler would take it for stale"
        if self.refuse:
            raise self.refuse
        self.cluster.kernel.links[guest.name] = guest

    def make_vlan(self, name, parent, number, alias):
        if "vlan" not in self.kinds:
            raise missing_feature("vlan")
        self.devices[name] = msgspec.structs.replace(ETH, name=name, index=number)
        self.cluster.kernel.links[name] = alias
        return number

    def vlans(self, mark):
        return {name: alias for name, alias in self.cluster.kernel.links.items() if "." in name}

    def ask(self, index, ips):
        self.asked += [text_ip(ip) for ip in ips]
        return {}

    def answers(self, index, ips):
        return {ip: self.held[ip] for ip in ips if ip in self.held}

    def forget(self, index, ips):
        pass


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


def lab():
    (cluster,) = World().hosts
    cluster.kernel.lan = FakeLan(cluster)
    return cluster


def ask(network="yard", cookie=5, **more):
    return AttachRequest(network, Netns(cookie, BOOT), **more)


async def make(cluster, driver="macvlan", **more):
    told = {"subnets": ("10.44.0.0/24",), "gateways": ("10.44.0.254",)} | more
    return await networks.create_network(cluster, NetworkRequest("yard", driver, **told))


def packed(text):
    return ipaddress.ip_address(text).packed


async def test_an_endpoint_is_a_device_on_its_parent_with_its_own_mark_and_mac(autojump_clock):
    cluster = lab()
    network = await make(cluster)
    made = await use_case.attach(cluster, ask())
    guest = cluster.kernel.links[names.guest(made.id)]
    assert guest == Guest(
        names.guest(made.id), "macvlan", "bridge", names.guest_alias(cluster.mark, network.id, made.id),
        ETH.index, 1500, names.endpoint_mac(made.id),
    )  # fmt: skip
    assert made.attachment.host_if == made.attachment.peer_if == guest.name
    assert await use_case.detach(cluster, made.id)
    assert cluster.kernel.links == {}


async def test_an_address_asked_for_by_name_comes_back_with_its_id_and_mac_once_the_former_device_is_gone(
    autojump_clock,
):
    cluster = lab()
    await make(cluster)
    first = await use_case.attach(cluster, ask(cookie=1, ips=("10.44.0.9",)))
    cluster.kernel.fail_delete = KernelError("deleting", errno=16)
    await use_case.detach(cluster, first.id)
    assert first.attachment.host_if in cluster.kernel.links
    cluster.kernel.fail_delete, make_guest = None, cluster.kernel.lan.make_guest

    def made_once(guest):
        assert guest.name not in cluster.kernel.links
        make_guest(guest)

    cluster.kernel.lan.make_guest = made_once
    again = await use_case.attach(cluster, ask(cookie=2, ips=("10.44.0.9",)))
    assert (again.id, again.endpoint.mac) == (first.id, first.endpoint.mac)
    assert list(cluster.kernel.links) == [names.guest(first.id)]


async def test_an_id_whose_device_name_an_endpoint_on_the_lan_has_is_not_drawn_again(autojump_clock):
    cluster = lab()
    await make(cluster)
    made = await use_case.attach(cluster, ask())
    other = bytes(16)
    drawn = iter([made.id[:4] + bytes(12), other])
    cluster.entropy = lambda size: next(drawn)
    assert networks.fresh_endpoint_id(cluster) == other


@pytest.mark.parametrize(("driver", "mode"), [("ipvlan", "l2"), ("ipvlan", "l3"), ("macvlan", "passthru")])
async def test_where_the_parents_mac_is_all_there_is_the_record_says_so(autojump_clock, driver, mode):
    cluster = lab()
    await make(cluster, driver, mode=mode)
    with pytest.raises(BadRequest, match="have their parent's"):
        await use_case.attach(cluster, ask(mac="02:00:00:00:00:07"))
    made = await use_case.attach(cluster, ask())
    assert made.endpoint.mac == ETH.mac
    assert cluster.kernel.links[made.attachment.host_if].mac is None


async def test_a_strangers_address_is_passed_over_and_rests(autojump_clock):
    cluster = lab()
    network = await make(cluster)
    first = await use_case.attach(cluster, ask(cookie=1))
    cluster.kernel.lan.held = {packed(f"10.44.0.{n}"): STRANGER for n in (3, 4)}
    made = await use_case.attach(cluster, ask(cookie=2))
    assert [text_ip(ip) for end in (first, made) for ip in end.endpoint.ips] == ["10.44.0.2", "10.44.0.5"]
    assert free_counts(cluster) == {network.id: 2}, "nothing stays reserved for the stranger"
    cluster.kernel.lan.asked = []
    await use_case.attach(cluster, ask(cookie=3))
    assert "10.44.0.3" not in cluster.kernel.lan.asked, "it rests, so the next attach does not ask again"
    told = [event["text"] for event in cluster.events.kept() if event["kind"] == "conflict"]
    assert told == [f"in use on the LAN: 10.44.0.{n} by {mac.hex(':')}" for n, mac in OTHERS]


@pytest.mark.parametrize("held", [{packed("10.44.0.9"): STRANGER}, {}])
async def test_an_address_that_was_asked_for_and_is_taken_is_refused_with_the_mac(autojump_clock, held):
    """By a stranger on the LAN, or by this host itself, which its own LAN does not hear."""
    cluster = lab()
    await make(cluster)
    cluster.kernel.lan.held = held
    wanted, mac = ("10.44.0.9", STRANGER) if held else ("10.44.0.1", ETH.mac)
    with pytest.raises(Conflict) as caught:
        await use_case.attach(cluster, ask(ips=(wanted,)))
    assert f"{wanted} by {mac.hex(':')}" in caught.value.what
    assert (cluster.kernel.links, cluster.attachments, free_counts(cluster)) == ({}, {}, {})


async def test_a_port_of_the_host_leads_to_nobody_on_the_lan(autojump_clock):
    cluster = lab()
    await make(cluster)
    with pytest.raises(BadRequest, match="network yard is the LAN itself"):
        await use_case.attach(cluster, ask(published=("8080:80",)))
    assert (cluster.kernel.links, cluster.attachments, free_counts(cluster)) == ({}, {}, {})


async def test_a_lan_full_of_strangers_ends_in_one_clear_line(autojump_clock):
    cluster = lab()
    await make(cluster)
    cluster.kernel.lan.held = {packed(f"10.44.0.{n}"): STRANGER for n in range(2, 250)}
    with pytest.raises(Conflict, match="8 addresses in a row are in use on the LAN of eth0"):
        await use_case.attach(cluster, ask())
    assert (cluster.kernel.links, free_counts(cluster)) == ({}, {})


async def test_a_device_that_the_kernel_refuses_leaves_nothing(autojump_clock):
    cluster = lab()
    await make(cluster)
    cluster.kernel.lan.refuse = KernelError("macvlan device", errno=16, words="device or resource busy")
    with pytest.raises(KernelError):
        await use_case.attach(cluster, ask())
    assert (cluster.kernel.links, cluster.attachments, free_counts(cluster)) == ({}, {}, {})


async def test_a_vlan_sub_interface_is_made_when_missing_and_goes_with_its_last_user(autojump_clock):
    cluster = lab()
    network = await make(cluster, parent="eth0.10")
    ends = [await use_case.attach(cluster, ask(cookie=n)) for n in (1, 2)]
    assert cluster.kernel.links["eth0.10"] == names.alias(cluster.mark, network.id)
    assert cluster.kernel.links[ends[0].attachment.host_if].parent == 10
    await use_case.detach(cluster, ends[0].id)
    assert "eth0.10" in cluster.kernel.links
    await use_case.detach(cluster, ends[1].id)
    assert cluster.kernel.links == {}


async def test_a_vlan_sub_interface_of_an_attach_that_fails_goes_again(autojump_clock):
    cluster = lab()
    await make(cluster, parent="eth0.10", mtu=1500)
    cluster.kernel.lan.refuse = KernelError("macvlan device", errno=16, words="device or resource busy")
    with pytest.raises(KernelError):
        await use_case.attach(cluster, ask())
    assert cluster.kernel.links == {}


async def test_one_that_the_operator_made_is_used_and_left(autojump_clock):
    cluster = lab()
    cluster.kernel.lan.devices["eth0.10"] = msgspec.structs.replace(ETH, name="eth0.10")
    await make(cluster, parent="eth0.10")
    made = await use_case.attach(cluster, ask())
    await use_case.detach(cluster, made.id)
    assert "eth0.10" in cluster.kernel.lan.devices


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
async def test_a_network_of_a_kind_that_this_kernel_lacks_is_refused_by_the_features_name(driver):
    cluster = lab()
    cluster.kernel.lan.kinds = {"vlan"}
    with pytest.raises(Exception, match=f"this host's kernel has no {driver}") as caught:
        await make(cluster, driver)
    assert (caught.value.code, cluster.networks) == ("unavailable", {})


async def test_two_networks_in_two_modes_do_not_share_the_device_that_both_found(autojump_clock):
    cluster = lab()
    await make(cluster)
    await use_case.attach(cluster, ask(cookie=1))
    other = NetworkRequest("other", "macvlan", subnets=("10.45.0.0/24",), mode="vepa",
                           options={"check-subnet": "no"})  # fmt: skip
    await networks.create_network(cluster, other)
    with pytest.raises(
        Conflict, match="eth0 of network other is used in macvlan mode bridge by network yard"
    ):
        await use_case.attach(cluster, ask("other", cookie=2))
    assert len(cluster.kernel.links) == 1


# --- a parent that went away -----------------------------------------------------------------------------------
WHY = "its parent eth0 went away"


async def test_an_endpoint_that_lost_its_device_is_attached_again_with_what_it_had(autojump_clock):
    cluster = lab()
    await make(cluster)
    made = await use_case.attach(cluster, ask())
    name = names.guest(made.id)
    del cluster.kernel.links[name]
    assert (await use_case.attach(cluster, ask())).attachment == made.attachment, (
        "nobody says that it is lost"
    )
    assert cluster.kernel.links == {}
    cluster.reconciler.lost = {made.id: WHY}
    cluster.kernel.lan.devices["eth0"] = msgspec.structs.replace(ETH, index=12)
    again = await use_case.attach(cluster, ask())
    assert (again.id, again.endpoint, again.created) == (made.id, made.endpoint, False)
    assert (again.attachment.parent, again.attachment.parent_index) == ("eth0", 12)
    assert cluster.attachments[made.id] == again.attachment
    assert cluster.kernel.links[name].parent == 12
    assert [event["kind"] for event in cluster.events.kept()][-1] == "endpoint-up"


async def test_one_that_cannot_be_made_again_stays_as_it_is(autojump_clock):
    cluster = lab()
    await make(cluster)
    made = await use_case.attach(cluster, ask())
    cluster.kernel.links.clear()
    cluster.reconciler.lost = {made.id: WHY}
    cluster.kernel.lan.devices.clear()
    with pytest.raises(Conflict, match="does not exist on this host"):
        await use_case.attach(cluster, ask())
    cluster.kernel.lan.devices["eth0"] = ETH
    cluster.disk_full = True
    with pytest.raises(Exception, match="disk"):
        await use_case.attach(cluster, ask())
    assert cluster.kernel.links == {}
    assert cluster.attachments[made.id] == made.attachment


async def test_a_passthru_endpoint_can_be_made_again_on_its_parent_of_the_same_mac(autojump_clock):
    cluster = lab()
    await make(cluster, mode="passthru")
    made = await use_case.attach(cluster, ask())
    cluster.kernel.links.clear()
    cluster.reconciler.lost = {made.id: WHY}
    await use_case.attach(cluster, ask())
    cluster.kernel.lan.devices["eth0"] = msgspec.structs.replace(ETH, mac=b"\x02other")
    with pytest.raises(Conflict, match="eth0 has another now"):
        await use_case.attach(cluster, ask())


async def test_a_vlan_sub_interface_is_made_again_with_its_parent_and_not_before(autojump_clock):
    cluster = lab()
    await make(cluster, parent="eth0.10", options={"check-subnet": "no"})
    made = await use_case.attach(cluster, ask())
    devices = cluster.kernel.lan.devices
    devices.clear()
    cluster.kernel.links.clear()
    cluster.reconciler.lost = {made.id: WHY}
    await lan.tend(cluster)
    assert cluster.kernel.links == {}
    devices["eth0"] = msgspec.structs.replace(ETH, up=False)
    await lan.tend(cluster)
    assert cluster.kernel.links == {}, "a VLAN on what is down is down"
    devices["eth0"] = ETH
    await lan.tend(cluster)
    assert list(cluster.kernel.links) == ["eth0.10"]
    await lan.sweep(cluster)
    assert list(cluster.kernel.links) == ["eth0.10"], "who lost it still wants it"
    await use_case.detach(cluster, made.id)
    assert cluster.kernel.links == {}
    await lan.tend(cluster)
    assert cluster.kernel.links == {}, "nobody wants it"


async def test_who_lost_a_device_is_told_of_once_and_released_with_its_namespace(autojump_clock, tmp_path):
    cluster = lab()
    await make(cluster)
    here = tmp_path / "ns"
    here.touch()
    request = AttachRequest("yard", Netns(5, BOOT, str(here)))
    made = await use_case.attach(cluster, request)
    cluster.reconciler.lost = {made.id: WHY}
    orphans = Orphans()
    for _ in range(2):
        assert await orphans.look(cluster) == f"{made.endpoint.name}: {WHY}"
    assert [event["kind"] for event in cluster.events.kept()].count("endpoint-stale") == 1
    here.unlink()
    assert await orphans.look(cluster) == ""
    assert made.id not in cluster.endpoints


def test_a_namespace_named_by_a_process_or_not_to_be_looked_at_counts_as_there(tmp_path):
    assert namespace_ended(str(tmp_path / "gone"))
    assert not namespace_ended(str(tmp_path))
    assert not namespace_ended("/proc/4194305/ns/net")
    assert not namespace_ended("")
