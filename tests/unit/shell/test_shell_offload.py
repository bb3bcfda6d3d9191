"""Whether checksums of overlay packets arrive right: whom a host tries, what the outcome means, what it says."""

import msgspec
import pytest

from meshd.config import OFFLOAD_TRIES
from meshd.kernel.offload import Device
from meshd.model import Attachment, Endpoint, text_ip
from meshd.plan import names
from meshd.shell import networks
from meshd.shell.offload import ALARM, Offload, trial
from meshd.state.networks import NetworkRequest
from tests.unit.shell.fake_cluster import BOOT, World

CARD = Device("eth0", "vmxnet3", ("tx-checksum-ip-generic", "tx-udp_tnl-segmentation"))


def kernel(*, whole=(), bare=()):
    """Answer like the other kernel: packets with a checksum as ``whole`` says in turn, those without as ``bare``; the
    last one for ever."""
    asked = []

    async def ask(source, target, checksum):
        asked.append((text_ip(source), text_ip(target), checksum))
        answers = whole if checksum else bare
        number = sum(one[2] == checksum for one in asked) - 1
        return answers[min(number, len(answers) - 1)]

    return ask, asked


@pytest.mark.parametrize(
    ("whole", "bare", "outcome"),
    [
        ([True], [False], "right"),
        ([False, True], [True], "right"),  # one was lost
        ([False], [False], "untested"),
        ([False], [True], "wrong"),
        ([False], [True, True, False], "untested"),  # the way was shut meanwhile
        ([False], [True] * OFFLOAD_TRIES + [False], "untested"),
    ],
)
async def test_wrong_is_only_what_fails_again_and_again_while_packets_without_a_checksum_pass(
    whole, bare, outcome
):
    ask, _ = kernel(whole=whole, bare=bare)
    assert await trial(b"\x0a\0\0\1", b"\x0a\0\0\2", ask) == outcome


async def overlay(*, host_access=True, hosts=3):
    world = World(hosts)
    first = world.hosts[0]
    network = await networks.create_network(
        first, NetworkRequest("blue", "overlay", ("10.1.0.0/24", "fd01::/64"), host_access=host_access)
    )
    for number, host in enumerate(world.hosts, 1):
        id_ = bytes([number]) * 16
        ips = (bytes((10, 1, 0, 10 + number)), bytes(15) + bytes([number]))
        name = names.host(network.id) if host_access else "eth0"
        endpoint = Endpoint(network.id, host.me, f"h{number}", 10 + number, ips, bytes(6), name)
        for each in world.hosts:
            each.endpoints[id_] = endpoint
        host.attachments[id_] = Attachment(BOOT, 1, "", name, names.veth(id_), name)
    return world


async def test_each_living_host_has_its_turn_by_the_addresses_that_hosts_have_themselves():
    world = await overlay()
    first, second, third = world.hosts
    offload = Offload()
    ask, asked = kernel(whole=[True])
    for _ in range(3):
        world.time += 5
        await offload.look(first, ask)
    assert {one[:2] for one in asked} == {("10.1.0.11", "10.1.0.12"), ("10.1.0.11", "10.1.0.13")}
    assert (offload.outcome, offload.detail(first.host_name)) == ("right", "right at host2, host3")
    world.down |= {second.me, third.me}
    await offload.look(first, ask)
    assert offload.outcome == "untested"


async def test_nothing_is_tried_where_the_host_itself_is_on_no_overlay():
    world = await overlay(host_access=False)
    ask, asked = kernel(whole=[True])
    offload = Offload()
    await offload.look(world.hosts[0], ask)
    assert (asked, offload.outcome) == ([], "untested")
    assert (
        offload.detail(str)
        == "no network with --host-access has endpoints both here and on another living host"
    )


async def test_a_wrong_checksum_is_an_alarm_with_the_command_that_mends_it_until_it_is_right():
    world = await overlay(hosts=2)
    (first, _), offload = world.hosts, Offload()
    offload.devices = [CARD, Device("vlan7", "", ())]
    await offload.look(first, kernel(whole=[False], bare=[True])[0])
    assert offload.outcome == "wrong"
    assert first.alarms[ALARM] == (
        "checksums of overlay packets that leave by eth0 (vmxnet3), vlan7 arrive wrong at host2: TCP and UDP do not pass; "
        "run: ethtool -K eth0 tx-checksum-ip-generic off tx-udp_tnl-segmentation off"
    )
    offload.devices = [msgspec.structs.replace(CARD, active=())]
    await offload.look(first, kernel(whole=[False], bare=[True])[0])
    assert first.alarms[ALARM].endswith("no card here computes any: look at what is between them")
    await offload.look(first, kernel(whole=[True])[0])
    assert ALARM not in first.alarms
