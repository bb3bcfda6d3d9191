"""Whose device went with the card that it was on."""

from meshd.model import Attachment
from meshd.plan.orphans import orphans

ONE, TWO, THREE = (bytes([n]) * 16 for n in (1, 2, 3))


def on(parent, index):
    return Attachment("boot", 5, "/run/netns/a", "eth0", "mu0", "mu0", parent=parent, parent_index=index)


def test_a_device_that_is_missing_while_its_parent_is_there_is_none():
    attachments = {ONE: on("eth1", 7), TWO: on("eth1", 7), THREE: on("", 0)}
    assert orphans(attachments, attachments, {1: "lo", 7: "eth1"}) == {}
    assert orphans(attachments, attachments, {1: "lo", 7: "lan0"}) == {}, "renamed it is the same card"


def test_a_card_that_is_gone_or_another_of_its_name_took_it_along():
    attachments = {ONE: on("eth1", 7), TWO: on("eth2", 8), THREE: on("", 0)}
    found = orphans([ONE, THREE], attachments, {1: "lo"})
    assert list(found) == [ONE]
    assert found[ONE].startswith("its parent eth1 went away, and took")
    found = orphans(attachments, attachments, {1: "lo", 8: "eth2", 9: "eth1"})
    assert list(found) == [ONE]
    assert found[ONE].startswith("its parent eth1 went away and came back, and took")
