"""The firewall table and its seal."""

import errno
import shutil

import pytest

from meshd.errors import KernelError
from meshd.kernel.echoes import Echoes
from meshd.kernel.namespace import Namespace
from meshd.kernel.nft import UNKNOWN, Firewall
from meshd.plan.ops import SetFirewall

TEXT = """
table inet meshd {
    set peers { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.2 } }
    set seen { type ipv4_addr; flags dynamic, timeout; timeout 1m; }
    map ports { type inet_service : inet_service; elements = { 80 : 8080 } }
    chain input {
        type filter hook input priority 0; policy accept;
        ip saddr @peers counter accept
        ip daddr 127.0.0.1 add @seen { ip saddr }
    }
}
"""
OTHER = TEXT.replace("192.0.2.2", "192.0.2.3")
BRIDGED = TEXT + "table bridge meshd {\n chain pass { type filter hook forward priority 0; }\n}\n"


@pytest.fixture
def host(netns):
    if shutil.which("nft") is None:
        pytest.skip("needs nft")
    if netns.run("nft", "add table inet probe; delete table inet probe", check=False).returncode:
        pytest.skip("nf_tables")
    netns.firewall = Firewall(Echoes())
    yield netns
    netns.firewall.close()


def restarted(host):
    """What a daemon knows that was started just now."""
    return Firewall(Echoes())


def test_a_table_is_set_replaced_and_deleted(host):
    firewall = host.firewall
    assert host.call(firewall.current) == ""
    for text in (TEXT, OTHER, TEXT):
        host.call(firewall.set, text)
        assert host.call(firewall.current) == text
        listed = host.run("nft", "list", "table", "inet", "meshd").stdout
        assert ("192.0.2.2" in listed) == (text is TEXT)
        assert listed.count("seal_") == 1
    host.call(firewall.set, "")
    assert host.call(firewall.current) == ""
    assert host.run("nft", "list", "tables").stdout == ""


CHANGES = {
    "flushed": "flush table inet meshd",
    "an element more": "add element inet meshd peers { 192.0.2.9 }",
    "an element less": "delete element inet meshd peers { 192.0.2.1 }",
    "a map's element changed": "delete element inet meshd ports { 80 : 8080 }",
    "a rule more": "insert rule inet meshd input drop",
    "a chain more": "add chain inet meshd extra",
    "policy changed": "chain inet meshd input { policy drop; }",
    "a seal more": "add chain inet meshd seal_0000000000000000_0000000000000000",
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_the_table_shows_and_is_put_right(host, change):
    host.call(host.firewall.set, TEXT)
    host.run("nft", CHANGES[change])
    assert host.call(host.firewall.current, TEXT) == UNKNOWN
    host.call(host.firewall.set, TEXT)
    assert host.call(host.firewall.current) == TEXT
    again = restarted(host)
    assert host.call(again.current, TEXT) == TEXT
    again.close()


def test_a_flushed_ruleset_shows_as_no_table(host):
    host.call(host.firewall.set, TEXT)
    host.run("nft", "flush", "ruleset")
    assert host.call(host.firewall.current, TEXT) == ""


def test_what_packets_change_is_no_change(host):
    host.call(host.firewall.set, TEXT)
    host.run("ping", "-c", "1", "-W", "1", "127.0.0.1")
    assert "127.0.0.1" in host.run("nft", "list", "set", "inet", "meshd", "seen").stdout.split("elements")[1]
    host.run("nft", "add table inet other")  # so that the generation moves and the table is read again
    assert host.call(host.firewall.current) == TEXT


def test_a_restarted_daemon_knows_its_own_table_by_the_text_it_wants(host):
    host.call(host.firewall.set, TEXT)
    again = restarted(host)
    assert host.call(again.current) == UNKNOWN
    assert host.call(again.current, OTHER) == UNKNOWN
    assert host.call(again.current, TEXT) == TEXT
    again.close()


def test_setting_what_is_there_leaves_the_table_alone(host):
    host.call(host.firewall.set, TEXT)
    before = host.json("nft", "-j", "-a", "list", "table", "inet", "meshd")
    again = restarted(host)
    host.call(again.set, TEXT)
    again.close()
    assert host.json("nft", "-j", "-a", "list", "table", "inet", "meshd") == before


def test_an_unchanged_ruleset_is_not_read_again(host, monkeypatch):
    host.call(host.firewall.set, TEXT)

    def no_nft(*_):
        raise AssertionError("nft was run")

    monkeypatch.setattr(host.firewall, "_nft", no_nft)
    assert host.call(host.firewall.current) == TEXT


def test_tables_of_two_families_are_one_firewall(host):
    host.call(host.firewall.set, BRIDGED)
    assert host.call(host.firewall.current) == BRIDGED
    host.run("nft", "flush table bridge meshd; delete table bridge meshd")
    assert host.call(host.firewall.current, BRIDGED) == UNKNOWN
    host.call(host.firewall.set, BRIDGED)
    assert host.call(host.firewall.current) == BRIDGED
    host.call(host.firewall.set, TEXT)
    assert host.run("nft", "list", "tables").stdout.split() == ["table", "inet", "meshd"]


def test_a_text_that_nft_refuses_leaves_the_old_table(host):
    host.call(host.firewall.set, TEXT)
    with pytest.raises(KernelError, match=r"left as it was.*syntax error"):
        host.call(host.firewall.set, "table inet meshd { nonsense }")
    assert host.call(host.firewall.current) == TEXT


def test_other_tables_are_left_alone(host):
    host.run("nft", "add table inet other; add table ip meshd2")
    host.call(host.firewall.set, TEXT)
    host.call(host.firewall.set, "")
    assert host.run("nft", "list", "tables").stdout.splitlines() == ["table inet other", "table ip meshd2"]


def test_without_nft_the_error_says_so_and_reading_still_works(host, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with host.call(Namespace) as kernel:
        ((op, error),) = host.call(kernel.apply, [SetFirewall(TEXT)])
        assert (op, error.errno) == (SetFirewall(TEXT), errno.ENOENT)
        assert "nft is not installed" in error.what
        assert host.call(kernel.apply, [SetFirewall("")]) == []
        assert host.call(kernel.dump, "0badcafe").ours.firewall == ""


def test_ten_thousand_elements_are_one_table(host):
    elements = ", ".join(f"10.0.{n // 256}.{n % 256}" for n in range(10_000))
    text = f"table inet meshd {{\n set many {{ type ipv4_addr; elements = {{ {elements} }} }}\n}}\n"
    host.call(host.firewall.set, text)
    assert host.call(host.firewall.current) == text
    host.run("nft", "delete element inet meshd many { 10.0.7.7 }")
    assert host.call(host.firewall.current) == UNKNOWN
