"""The firewall's text and elements. What its rules do to packets is tested on the real kernel (tests/kernel, tests/lab)."""

import os
import re
import shutil
import subprocess

import msgspec
import pytest

from meshd.model import Network, Subnet
from meshd.plan import elements, firewall, names
from meshd.plan.desired import desired
from meshd.plan.diff import diff
from meshd.plan.ops import DelElement, PutElement, SetFirewall
from tests.plan_world import BLUE, BRIDGE, HOSTS, LAN, A, B, blue_on_two_hosts, facts, id_of, ip4

needs_nft = pytest.mark.skipif(
    shutil.which("nft") is None or shutil.which("unshare") is None or os.geteuid() != 0,
    reason="needs nft, unshare and root",
)


def table(gossip=7947, vxlan=4789):
    return firewall.render(gossip_port=gossip, vxlan_port=vxlan)


def said(found):
    """Elements as text, by set."""
    by_set = {}
    for of in sorted(found):
        by_set.setdefault(of.set, []).append(elements.text(of, found[of]))
    return by_set


def published(*texts, ips=("10.1.0.2",)):
    world = blue_on_two_hosts()
    id_ = world.endpoint("web", BLUE, A, *ips)
    world.endpoints[id_] = msgspec.structs.replace(world.endpoints[id_], published=texts)
    return world


def in_a_namespace(*commands, stdin):
    script = " && ".join(commands)
    return subprocess.run(
        ["unshare", "-n", "sh", "-c", script], input=stdin, capture_output=True, text=True, check=False
    )


def test_the_rules_depend_on_two_ports_and_nothing_else():
    world = blue_on_two_hosts()
    few = desired(world.view()).firewall
    for n in range(3, 60):
        world.endpoint(f"e{n}", BLUE, A, f"10.1.0.{n}")
    world.networks[LAN] = BRIDGE
    assert desired(world.view()).firewall == few == table()
    assert "udp dport { 4789, 7000 } iifname @bridges drop" in table(gossip=7000)
    assert "tcp dport 7000 iifname @bridges drop" in table(gossip=7000)


def test_on_another_port_the_tables_have_another_name_and_no_cluster_s_containers_speak_for_its_host():
    text = table(gossip=7000, vxlan=8472)
    assert "table inet meshd-8472 {" in text
    assert "table bridge meshd-8472 {" in text
    assert 'udp dport { 4789, 7000, 7947, 8472 } iifname "mo*" oifname != "mo*" drop' in text
    assert 'tcp dport { 7000, 7947 } iifname "mo*" oifname != "mo*" drop' in text
    assert "FROM" not in text
    assert "udp dport 8472 goto vxlan" in text


def test_without_networks_there_is_neither_table_nor_element():
    world = blue_on_two_hosts()
    world.networks.clear()
    world.release("web")
    kernel = desired(world.view())
    assert (kernel.firewall, kernel.elements) == ("", {})


def test_a_network_its_members_and_an_endpoint_are_elements():
    host_if = names.veth(id_of("web"))
    mac = names.endpoint_mac(id_of("web")).hex(":")
    assert said(desired(blue_on_two_hosts().view()).elements) == {
        "bridges": ['"mo11111111"'],
        "ways": ['"mo11111111"'],
        "same": ['"mo11111111" . "mo11111111"'],
        "vnis": ["0x001389"],
        "members4": ["192.0.2.1", "192.0.2.2", "192.0.2.3"],
        "ports": [f'"{host_if}"'],
        "macs": [f'"{host_if}" . {mac}'],
        "ips4": [f'"{host_if}" . 0x{mac.replace(":", "")}0800 . 0x0a010002'],
        "targets4": [f'"{host_if}" . 10.1.0.2'],
    }


def test_an_endpoint_with_v6_may_use_its_own_link_local_address():
    world = blue_on_two_hosts()
    v6 = bytes.fromhex("fd000001000000000000000000000002")
    world.endpoint("web", BLUE, A, "10.1.0.2", v6, mac=bytes.fromhex("02aabbccddee"))
    found = said(desired(world.view()).elements)
    port = f'"{names.veth(id_of("web"))}"'
    ips = ["0xfd000001000000000000000000000002", "0xfe8000000000000000aabbfffeccddee"]
    assert found["ips6"] == [f"{port} . 0x02aabbccddee86dd . {ip}" for ip in ips]
    assert [one.rpartition(" ")[2] for one in found["targets6"]] == ips


def test_an_internal_network_is_marked_so_and_a_bridge_network_has_no_vni():
    inside = Network("dark", "overlay", (Subnet("10.1.16.0/20", ""),), vni=5002, internal=True)
    assert said(firewall.network_elements("mo22222222", inside))["internal"] == ['"mo22222222"']
    assert set(said(firewall.network_elements("mo33333333", BRIDGE))) == {"bridges", "ways", "same"}


@pytest.mark.parametrize("name", ["bridges", "ways"])
def test_an_element_knows_its_device(name):
    assert elements.device(elements.element(name, b"mo11111111")) == "mo11111111"


def test_a_v6_member_is_in_a_set_of_its_own():
    world = blue_on_two_hosts(hosts={**HOSTS, B: facts(bytes.fromhex("20010db8000000000000000000000002"))})
    found = said(desired(world.view()).elements)
    assert (found["members6"], found["members4"]) == (["2001:db8::2"], ["192.0.2.1", "192.0.2.3"])


PUBLISHED = {
    "8080:80/tcp": {"everywhere4": ["tcp . 8080 : 10.1.0.2 . 80"]},
    "0.0.0.0:53:53/udp": {"everywhere4": ["udp . 53 : 10.1.0.2 . 53"]},
    "[::]:53:53/udp": {},
    "192.0.2.1:90-91:80-81/sctp": {
        "publish4": ["192.0.2.1 . sctp . 90 : 10.1.0.2 . 80", "192.0.2.1 . sctp . 91 : 10.1.0.2 . 81"]
    },
}


@pytest.mark.parametrize("text", PUBLISHED)
def test_a_published_port_is_an_element_that_leads_to_the_endpoint(text):
    found = said(desired(published(text).view()).elements)
    assert {name: listed for name, listed in found.items() if name[:3] in ("pub", "eve")} == PUBLISHED[text]


def test_both_families_lead_to_the_address_of_their_own():
    world = published("8080:80/tcp", ips=("10.1.0.2", bytes.fromhex("fd000001000000000000000000000002")))
    found = said(desired(world.view()).elements)
    assert found["everywhere6"] == ["tcp . 8080 : fd00:1::2 . 80"]
    assert found["everywhere4"] == ["tcp . 8080 : 10.1.0.2 . 80"]


def test_a_bridge_takes_loopback_addresses_only_while_something_is_published():
    assert desired(published("8080:80/tcp").view()).links["mo11111111"].localnet
    assert not desired(published().view()).links["mo11111111"].localnet


def test_another_hosts_published_port_is_no_business_of_this_one():
    world = blue_on_two_hosts()
    id_ = world.endpoint("db", BLUE, B, "10.1.0.66")
    world.endpoints[id_] = msgspec.structs.replace(world.endpoints[id_], published=("8080:80/tcp",))
    assert "everywhere4" not in said(desired(world.view()).elements)


@pytest.mark.parametrize("there", [10, 400])
def test_one_more_endpoint_is_the_same_few_elements_however_many_there_are(there):
    world = blue_on_two_hosts()
    for n in range(there):
        world.endpoint(f"e{n}", BLUE, A, ip4(f"10.1.{1 + n // 250}.{n % 250}"))
    before = desired(world.view())
    id_ = world.endpoint("new", BLUE, A, "10.1.0.3")
    world.endpoints[id_] = msgspec.structs.replace(world.endpoints[id_], published=("8080:80/tcp",))
    after = desired(world.view())
    sort = (PutElement, DelElement, SetFirewall)
    added = [op for op in diff(after, before, deletions=True) if isinstance(op, sort)]
    assert sorted(op.element.set for op in added) == [
        "everywhere4",
        "ips4",
        "loops",
        "macs",
        "ports",
        "selves4",
        "targets4",
    ]
    removed = [op for op in diff(before, after, deletions=True) if isinstance(op, sort)]
    assert removed == [DelElement(op.element) for op in added]


def everything():
    world = published("8080:80/tcp", "[2001:db8::1]:9000:90/udp", ips=("10.1.0.2", bytes(15) + b"\x02"))
    world.networks[LAN] = BRIDGE
    return desired(world.view()).elements


@needs_nft
def test_nft_accepts_the_tables_and_accepts_them_again_over_themselves():
    text = firewall.script(table(), everything())
    replace = "".join(f"table {f} meshd\ndelete table {f} meshd\n" for f in ("inet", "bridge")) + text
    twice = in_a_namespace("nft -f - ", "nft list ruleset >&2", stdin=replace + replace)
    assert twice.returncode == 0, twice.stderr
    assert "masquerade" in twice.stderr
    for listed in ("192.0.2.2", "tcp . 8080 : 10.1.0.2 . 80", "2001:db8::1 . udp . 9000 : ::2 . 90"):
        assert listed in twice.stderr


@needs_nft
def test_nft_lists_the_rules_as_they_were_written():
    listed = in_a_namespace("nft -f -", "nft list ruleset", stdin=table())

    def words(text):  # nft orders what is between braces as it likes
        return sorted(re.sub(r"[\s,]+", " ", text).split())

    assert words(listed.stdout) == words(table())
