"""The firewall's text. What its rules do to packets is tested on the real kernel (tests/kernel, tests/lab)."""

import os
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.plan.firewall import Fence, render

BLUE = Fence("mo11111111", ("10.1.0.0/20", "fd00:1::/64"))
LAN = Fence("mb33333333", ("172.20.0.0/24",))
DARK = Fence("mo22222222", ("10.1.16.0/20",), internal=True)

needs_nft = pytest.mark.skipif(
    shutil.which("nft") is None or shutil.which("unshare") is None or os.geteuid() != 0,
    reason="needs nft, unshare and root",
)


def table(*fences, gossip=7947, vxlan=4789):
    return render(fences, gossip_port=gossip, vxlan_port=vxlan)


def elements(text, name):
    block = re.search(rf"set {name} \{{(.*?)\n\t\}}", text, re.DOTALL)[1]
    listed = re.search(r"elements = \{ (.*) \}", block)
    return listed[1].split(", ") if listed else []


def rules(text):
    """Everything but elements."""
    return [line for line in text.splitlines() if "elements" not in line]


def in_a_namespace(*commands, stdin):
    script = " && ".join(commands)
    return subprocess.run(
        ["unshare", "-n", "sh", "-c", script], input=stdin, capture_output=True, text=True, check=False
    )


def test_without_networks_there_is_no_table():
    assert table() == ""


def test_networks_are_elements_and_the_rules_are_the_same_for_any_of_them():
    assert rules(table(BLUE)) == rules(table(BLUE, LAN))
    text = table(BLUE, LAN, DARK)
    assert elements(text, "bridges") == ['"mb33333333"', '"mo11111111"', '"mo22222222"']
    assert elements(text, "internal") == ['"mo22222222"']
    assert elements(text, "same") == [
        '"mb33333333" . "mb33333333"',
        '"mo11111111" . "mo11111111"',
        '"mo22222222" . "mo22222222"',
    ]
    assert elements(text, "outward6") == ["fd00:1::/64"]


def test_an_internal_networks_subnet_is_ours_but_does_not_leave():
    text = table(BLUE, DARK)
    assert elements(text, "own4") == ["10.1.0.0/19"]  # adjacent: one element
    assert elements(text, "outward4") == ["10.1.0.0/20"]


def test_gossip_is_closed_on_both_protocols_and_vxlan_on_udp():
    text = table(LAN, gossip=7000, vxlan=8472)
    assert elements(text, "closed_udp") == ["7000", "8472"]
    assert elements(text, "closed_tcp") == ["7000"]


@given(st.permutations([BLUE, LAN, DARK, BLUE]))
def test_the_text_does_not_depend_on_the_order_of_networks(fences):
    assert table(*fences) == table(BLUE, LAN, DARK)


@needs_nft
@pytest.mark.parametrize(
    "fences",
    [
        (LAN,),
        (DARK,),
        (BLUE, LAN, DARK),
        (
            BLUE,
            Fence("mb44444444", ("10.1.4.0/24",)),
        ),  # overlaps: allowed on one host's bridges, not in a set
        tuple(Fence(f"mo{n:08x}", (f"10.{n}.0.0/20", f"fd00:{n:x}::/64"), n % 2 == 0) for n in range(60)),
    ],
)
def test_nft_accepts_the_table_and_accepts_it_again_over_itself(fences):
    text = table(*fences)
    check = in_a_namespace("nft -c -f -", stdin=text)
    assert check.returncode == 0, check.stderr
    replace = "table inet meshd\ndelete table inet meshd\n" + text
    twice = in_a_namespace("nft -f - ", "nft list table inet meshd >&2", stdin=replace + replace)
    assert twice.returncode == 0, twice.stderr
    assert "masquerade" in twice.stderr


@needs_nft
def test_nft_lists_the_table_as_it_was_written():
    text = table(BLUE, LAN, DARK)
    listed = in_a_namespace("nft -f -", "nft list table inet meshd", stdin=text)

    def words(table_text):  # nft wraps and orders elements as it likes
        return sorted(re.sub(r"[\s,]+", " ", table_text).split())

    assert words(listed.stdout) == words(text)
