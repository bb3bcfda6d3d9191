"""The firewall's tables, their elements and their seal."""

import errno
import shutil
import struct
import subprocess
import time

import pytest

from meshd.errors import KernelError
from meshd.kernel import frames, netlink
from meshd.kernel.echoes import Echoes
from meshd.kernel.namespace import Namespace
from meshd.kernel.nft import UNKNOWN, Firewall
from meshd.plan.elements import element
from meshd.plan.firewall import member_elements, render
from meshd.plan.ops import DelElement, PutElement, SetFirewall

WAIT_S = 10.0
TEXT = render(gossip_port=7947, vxlan_port=4789)
OTHER = render(gossip_port=7000, vxlan_port=4789)
FIRST, SECOND, THIRD = (bytes((192, 0, 2, n)) for n in (1, 2, 3))
MEMBERS = member_elements([FIRST, SECOND])
PORT = element("everywhere4", b"\x06", (8080).to_bytes(2, "big"))
LEADS = bytes((10, 1, 0, 2)) + (80).to_bytes(2, "big") + bytes(2)
ELEMENTS = {**MEMBERS, PORT: LEADS}


@pytest.fixture
def host(netns):
    if shutil.which("nft") is None:
        pytest.skip("needs nft")
    if netns.run("nft", "add table inet probe; delete table inet probe", check=False).returncode:
        pytest.skip("nf_tables")
    netns.opened = []
    netns.firewall = restarted(netns)
    yield netns
    for firewall in netns.opened:
        firewall.close()


def restarted(host):
    """What a daemon knows that was started just now."""
    host.opened.append(Firewall(Echoes()))
    return host.opened[-1]


def listed(host, name):
    return host.run(
        "nft", "list", "set" if name.startswith("members") else "map", "inet", "meshd", name
    ).stdout


def test_the_tables_are_set_replaced_and_deleted(host):
    firewall = host.firewall
    assert host.call(firewall.current) == ("", {})
    for text, elements in ((TEXT, ELEMENTS), (OTHER, MEMBERS), (TEXT, ELEMENTS)):
        host.call(firewall.set, text, elements)
        assert host.call(firewall.current) == (text, elements)
        assert host.call(restarted(host).current, text) == (text, elements)
        assert ("tcp . 8080 : 10.1.0.2 . 80" in listed(host, "everywhere4")) == (text is TEXT)
        assert host.run("nft", "list", "table", "inet", "meshd").stdout.count("seal_") == 1
    host.call(firewall.set, "")
    assert host.call(firewall.current) == ("", {})
    assert host.run("nft", "list", "tables").stdout == ""


RULES_CHANGED = {
    "flushed": "flush table inet meshd",
    "the bridge family's flushed": "flush table bridge meshd",
    "one of two deleted": "delete table bridge meshd",
    "a rule more": "insert rule inet meshd input drop",
    "a chain more": "add chain inet meshd extra",
    "a set more": "add set inet meshd extra { type ipv4_addr; }",
    "policy changed": "chain inet meshd input { policy drop; }",
    "a seal more": "add chain inet meshd seal_0000000000000000_0000000000000000",
}


@pytest.mark.parametrize("change", RULES_CHANGED)
def test_any_change_of_the_rules_shows_and_is_put_right(host, change):
    host.call(host.firewall.set, TEXT, ELEMENTS)
    host.run("nft", RULES_CHANGED[change])
    assert host.call(host.firewall.current, TEXT)[0] == UNKNOWN
    host.call(host.firewall.set, TEXT, ELEMENTS)
    assert host.call(host.firewall.current) == (TEXT, ELEMENTS)
    again = restarted(host)
    assert host.call(again.current, TEXT) == (TEXT, ELEMENTS)


def test_a_table_that_another_process_owns_is_seen_to_be_so_and_taken_back_once_that_ends(host):
    host.call(host.firewall.set, TEXT, ELEMENTS)
    with subprocess.Popen(
        ["ip", "netns", "exec", host.name, "nft", "-i"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as theirs:
        try:
            theirs.stdin.write("delete table bridge meshd; add table bridge meshd { flags owner; }\n")
            theirs.stdin.flush()
            deadline = time.monotonic() + WAIT_S
            while "owner" not in host.run("nft", "list", "table", "bridge", "meshd").stdout:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert host.call(host.firewall.current, TEXT)[0] == UNKNOWN
            with pytest.raises(KernelError) as refused:
                host.call(host.firewall.set, TEXT, ELEMENTS)
            assert refused.value.errno == errno.EPERM
        finally:
            theirs.stdin.close()
    host.call(host.firewall.set, TEXT, ELEMENTS)
    assert host.call(restarted(host).current, TEXT) == (TEXT, ELEMENTS)


ELEMENTS_CHANGED = {
    "add element inet meshd members4 { 192.0.2.3 }": {**ELEMENTS, **member_elements([THIRD])},
    "delete element inet meshd members4 { 192.0.2.1 }": {k: v for k, v in ELEMENTS.items() if k.key != FIRST},
    "flush map inet meshd everywhere4": MEMBERS,
}


@pytest.mark.parametrize("change", ELEMENTS_CHANGED)
def test_a_changed_element_shows_as_just_that(host, change):
    host.call(host.firewall.set, TEXT, ELEMENTS)
    host.run("nft", change)
    assert host.call(host.firewall.current) == (TEXT, ELEMENTS_CHANGED[change])


def test_a_flushed_ruleset_shows_as_no_table(host):
    host.call(host.firewall.set, TEXT, ELEMENTS)
    host.run("nft", "flush", "ruleset")
    assert host.call(host.firewall.current, TEXT) == ("", {})


def test_elements_are_added_changed_and_deleted_without_nft(host, monkeypatch):
    host.call(host.firewall.set, TEXT, MEMBERS)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    steps = [
        ({PORT: LEADS, **member_elements([THIRD])}, {}, ["192.0.2.3", "10.1.0.2 . 80"]),
        ({PORT: LEADS[:3] + b"\x09" + LEADS[4:]}, {}, ["192.0.2.3", "10.1.0.9 . 80"]),
        ({}, {PORT: b"", **member_elements([FIRST])}, ["192.0.2.3"]),
    ]
    want = dict(MEMBERS)
    for puts, deletes, seen in steps:
        host.call(host.firewall.change, puts, deletes)
        want = {key: data for key, data in {**want, **puts}.items() if key not in deletes}
        assert host.call(host.firewall.current) == (
            TEXT,
            want,
        )  # known without asking: our commits are counted
        text = listed(host, "members4") + listed(host, "everywhere4")
        assert all(word in text for word in seen)
    monkeypatch.undo()
    assert host.call(restarted(host).current, TEXT) == (TEXT, want)


def test_somebody_elses_commit_has_all_of_it_read_again(host):
    host.call(host.firewall.set, TEXT, MEMBERS)
    host.run("nft", "delete element inet meshd members4 { 192.0.2.1 }")
    host.call(host.firewall.change, {PORT: LEADS}, {})
    assert host.call(host.firewall.current) == (TEXT, {PORT: LEADS, **member_elements([SECOND])})


@pytest.mark.parametrize("damage", ["flush ruleset", "delete element inet meshd members4 { 192.0.2.1 }"])
def test_a_change_that_meets_damage_makes_the_tables_anew(host, damage):
    host.call(host.firewall.set, TEXT, MEMBERS)
    host.run("nft", damage)
    host.call(host.firewall.change, {PORT: LEADS}, member_elements([FIRST]))
    assert host.call(host.firewall.current) == (TEXT, {PORT: LEADS, **member_elements([SECOND])})


def test_a_change_of_tables_that_are_known_to_be_gone_is_refused(host):
    host.call(host.firewall.set, TEXT, MEMBERS)
    host.run("nft", "flush", "ruleset")
    assert host.call(host.firewall.current) == ("", {})
    with pytest.raises(KernelError, match="tables are gone"):
        host.call(host.firewall.change, {PORT: LEADS}, {})
    host.call(host.firewall.set, TEXT, ELEMENTS)
    assert host.call(restarted(host).current, TEXT) == (TEXT, ELEMENTS)


def messages_of_group(sock):
    """Count the notifications of nf_tables by kind."""
    found = []
    while True:
        try:
            chunk = sock.recv(1 << 16)
        except BlockingIOError:
            return found
        found += [kind & 0xFF for kind, *_ in frames.split(chunk)]


def test_one_more_element_is_the_same_messages_at_10_and_at_10_000(host):
    def listen():
        sock = netlink.open_socket(netlink.NETLINK_NETFILTER, 1 << 26)
        sock.setsockopt(netlink.SOL_NETLINK, netlink.NETLINK_ADD_MEMBERSHIP, 7)
        sock.setblocking(False)
        return sock

    told = []
    for many in (10, 10_000):
        host.call(
            host.firewall.set, TEXT, member_elements(struct.pack(">I", 0x0A000000 + n) for n in range(many))
        )
        with host.call(listen) as sock:
            host.call(host.firewall.change, {PORT: LEADS}, {})
            host.call(host.firewall.change, {}, {PORT: b""})
            told.append(messages_of_group(sock))
        assert len(host.call(host.firewall.current)[1]) == many
    assert told == [[12, 15, 14, 15]] * 2  # new element, new generation, deleted element, new generation


def test_a_restarted_daemon_knows_its_own_rules_by_the_text_it_wants(host):
    host.call(host.firewall.set, TEXT, ELEMENTS)
    again = restarted(host)
    assert host.call(again.current)[0] == UNKNOWN
    assert host.call(again.current, OTHER)[0] == UNKNOWN
    assert host.call(again.current, TEXT) == (TEXT, ELEMENTS)


def test_setting_what_is_there_leaves_the_tables_alone(host):
    host.call(host.firewall.set, TEXT, ELEMENTS)
    before = host.json("nft", "-j", "-a", "list", "ruleset")
    again = restarted(host)
    host.call(again.set, TEXT, ELEMENTS)
    assert host.json("nft", "-j", "-a", "list", "ruleset") == before


def test_an_unchanged_ruleset_is_not_read_again(host, monkeypatch):
    host.call(host.firewall.set, TEXT, ELEMENTS)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert host.call(host.firewall.current) == (TEXT, ELEMENTS)


def test_a_text_that_nft_refuses_leaves_the_old_tables(host):
    host.call(host.firewall.set, TEXT, ELEMENTS)
    with pytest.raises(KernelError, match=r"left as it was.*syntax error"):
        host.call(host.firewall.set, "table inet meshd { nonsense }")
    assert host.call(host.firewall.current) == (TEXT, ELEMENTS)


def test_other_tables_are_left_alone(host):
    host.run("nft", "add table inet other; add table ip meshd2")
    host.call(host.firewall.set, TEXT, ELEMENTS)
    host.call(host.firewall.set, "")
    assert host.run("nft", "list", "tables").stdout.splitlines() == ["table inet other", "table ip meshd2"]


def test_without_nft_the_error_says_so_and_reading_still_works(host, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with host.call(Namespace) as kernel:
        ((op, error),) = host.call(kernel.apply, [SetFirewall(TEXT)])
        assert (op, error.errno) == (SetFirewall(TEXT), errno.ENOENT)
        assert "nft is not installed" in error.what
        assert host.call(kernel.apply, [SetFirewall("")]) == []


def test_elements_go_through_the_applier_in_one_transaction_a_run(host):
    with host.call(Namespace) as kernel:
        host.call(kernel.apply, [SetFirewall(TEXT, tuple(MEMBERS.items()))])
        third = element("members4", THIRD)
        before = host.call(kernel._firewall.generation)
        todo = [PutElement(third, b""), PutElement(PORT, LEADS), DelElement(element("members4", FIRST))]
        assert host.call(kernel.apply, todo) == []
        assert host.call(kernel._firewall.generation) - before == 2
        found = host.call(kernel.dump, "0badcafe", TEXT).ours
        assert found.elements == {PORT: LEADS, third: b"", element("members4", SECOND): b""}


def test_many_elements_are_several_messages_and_all_there(host):
    host.call(host.firewall.set, TEXT, {})
    many = {element("macs", f"mh{n:08x}".encode(), n.to_bytes(6, "big")): b"" for n in range(5_000)}
    host.call(host.firewall.change, many, {})
    assert host.call(restarted(host).current, TEXT) == (TEXT, many)
    host.call(host.firewall.change, {}, many)
    assert host.call(restarted(host).current, TEXT) == (TEXT, {})


def test_a_socket_of_ours_is_known_by_its_port(host):
    echoes = Echoes()
    firewall = Firewall(echoes)
    host.call(firewall.generation)
    assert echoes.is_port(firewall._netlink.port_id)
    firewall.close()
