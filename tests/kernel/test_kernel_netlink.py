"""The request socket: batches, errors by sequence number, dumps."""

import errno
import socket

import pytest

from meshd.config import NETLINK_BATCH
from meshd.errors import KernelError
from meshd.kernel import frames, linkdump, netlink, nexthops, rows
from meshd.plan.objects import FdbKey, FdbTarget, Nexthop


def key(n, device="vx0"):
    return FdbKey(device, b"\x02\x00" + n.to_bytes(4, "big"), "self")


def puts(numbers, index, target=None):
    target = target or FdbTarget(dst=bytes((192, 0, 2, 9)))
    return rows.put_fdb([(key(n), target) for n in numbers], index)


@pytest.fixture
def link(vxlan_bridge):
    opened = vxlan_bridge.call(netlink.Netlink)
    yield opened
    opened.close()


@pytest.fixture
def index(vxlan_bridge):
    return {seen["ifname"]: seen["ifindex"] for seen in vxlan_bridge.json("ip", "-j", "link")}


def test_each_error_goes_to_the_request_that_caused_it_and_the_others_are_done(link, index, vxlan_bridge):
    count = 2 * NETLINK_BATCH + 10
    bad = {3, NETLINK_BATCH - 1, NETLINK_BATCH, count - 1}
    nowhere = {"vx0": 999_999}
    messages = [puts([n], nowhere if n in bad else index)[0] for n in range(count)]

    answers = link.transact(messages)

    assert {n for n, answer in enumerate(answers) if answer is not None} == bad
    assert {answers[n].errno for n in bad} == {errno.ENODEV}
    there = {row["mac"] for row in vxlan_bridge.json("bridge", "-j", "fdb", "show", "dev", "vx0")}
    assert {key(n).mac.hex(":") for n in range(count) if n not in bad} <= there
    assert not {key(n).mac.hex(":") for n in bad} & there


def test_an_error_says_it_in_the_kernels_words(link, index):
    assert link.transact(puts([1], index)) == [None]
    nexthop, group = Nexthop(77, via=bytes((192, 0, 2, 2))), Nexthop(78, group=(77,))
    assert link.transact([nexthops.put(nexthop), nexthops.put(group)]) == [None, None]
    (error,) = link.transact(rows.put_fdb([(key(1), FdbTarget(nhid=78))], index, replace=True))
    assert error.errno == errno.EOPNOTSUPP
    assert error.words == "Cannot replace an existing non nexthop fdb with a nexthop"


def test_no_request_is_no_answer(link):
    assert link.transact([]) == []
    assert link.get([]) == []


def test_answers_come_in_the_order_of_the_requests(link, index):
    names = ["v0", "nosuch0", "br0", "lo"]
    answers = link.get([linkdump.get_request(name) for name in names])
    assert isinstance(answers[1], KernelError)
    assert answers[1].errno == errno.ENODEV
    found = [linkdump.parse(a, 0, len(a)).name for a in answers if isinstance(a, bytes)]
    assert found == ["v0", "br0", "lo"]


def fdb_macs(chunks):
    return [row.mac for chunk in chunks for row in rows.parse(chunk) if row.flags & rows.NTF_EXT_LEARNED]


def test_a_dump_of_many_buffers_has_every_row_once(link, index):
    link.transact(puts(range(3000), index))
    chunks = link.dump(rows.dump_request(rows.AF_BRIDGE))
    assert len(chunks) > 1
    assert sorted(fdb_macs(chunks)) == [key(n).mac for n in range(3000)]


def test_a_dump_that_does_not_fit_the_buffer_is_read_again_with_a_larger_one(link, index):
    link.transact(puts(range(200), index))
    link._buffer = bytearray(512)
    assert len(fdb_macs(link.dump(rows.dump_request(rows.AF_BRIDGE)))) == 200


class Interrupted(netlink.Netlink):
    """Marks the first ``times`` dumps as interrupted by a change, as the kernel would."""

    times = 0

    def _dump_once(self, message):
        self.marking, self.times = self.times > 0, self.times - 1
        return super()._dump_once(message)

    def _receive(self, flags=0):
        chunk = super()._receive(flags)
        if self.marking:
            chunk = bytearray(chunk)
            chunk[6] |= frames.DUMP_INTR
        return bytes(chunk)


@pytest.mark.parametrize("times", [1, 3])
def test_an_interrupted_dump_is_repeated(vxlan_bridge, times):
    link = vxlan_bridge.call(Interrupted)
    link.times = times
    found = linkdump.parse_all(link.dump(linkdump.dump_request()))
    link.close()
    assert {"lo", "br0", "vx0", "v0", "v1"} <= {seen.name for seen in found}
    assert len(found) == len({seen.name for seen in found})


def test_a_dump_that_is_interrupted_each_time_is_an_error(vxlan_bridge):
    link = vxlan_bridge.call(Interrupted)
    link.times = 99
    with pytest.raises(KernelError, match="interrupted"):
        link.dump(linkdump.dump_request())
    link.close()


def test_lost_acknowledgements_count_as_failures_and_the_socket_goes_on(link, index):
    nowhere = {"vx0": 999_999}
    link._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)  # room for a few errors
    answers = link.transact([*puts(range(100), nowhere), *puts([7], index)])
    assert all(answer is not None for answer in answers[:100])
    assert answers[100].errno in (errno.ENOBUFS, errno.EAGAIN)
    link._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    assert link.transact(puts([8], index)) == [None]


def test_the_kernels_dump_errors_are_errors_in_its_words(link):
    request = bytearray(rows.dump_request(rows.AF_BRIDGE))
    request[frames.HEADER_BYTES + 8] = 1  # a state, which a dump cannot be filtered by
    if not link.strict:
        pytest.skip("strict checking of dumps (kernel 4.20)")
    with pytest.raises(KernelError, match="Invalid values in header") as caught:
        link.dump(bytes(request))
    assert caught.value.errno == errno.EINVAL
    assert linkdump.parse_all(link.dump(linkdump.dump_request()))
