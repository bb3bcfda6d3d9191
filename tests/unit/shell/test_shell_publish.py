"""What stands against publishing a port is told before anything is made."""

import pytest
import trio

from meshd.errors import BadRequest, Conflict, KernelError
from meshd.kernel.nft import Elsewhere
from meshd.kernel.sockets import Listener
from meshd.plan.elements import element
from meshd.plan.ops import PutElement, SetFirewall
from meshd.plan.publish import Publication
from meshd.shell import networks
from meshd.shell.attach import AttachRequest, Netns, attach, detach
from meshd.shell.publish import Choice, choose
from meshd.state.networks import NetworkRequest
from tests.unit.shell.fake_cluster import BOOT, World

TCP, UDP = 6, 17
HERE, LOOPBACK = bytes((192, 0, 2, 1)), bytes((127, 0, 0, 1))


async def host_with_network(**kw):
    (host,) = World().hosts
    await networks.create_network(host, NetworkRequest("blue", "overlay", ("10.1.0.0/24",), **kw))
    return host


def ask(*published, cookie=7):
    return AttachRequest("blue", Netns(cookie, BOOT, "/ns"), published=published)


async def refused(host, error, words, *published):
    before = len(host.journal)
    with pytest.raises(error, match=words):
        await attach(host, ask(*published, cookie=99))
    assert (len(host.journal), host.desk.publishing) == (before, [])
    assert not host.kernel.links or len(host.kernel.links) == len(host.attachments)


async def test_what_is_published_is_kept_in_one_way_of_writing():
    host = await host_with_network()
    found = await attach(host, ask("8080:80", "192.0.2.1:53-54:53-54/udp", "8080:80/tcp"))
    assert found.endpoint.published == ("8080:80/tcp", "192.0.2.1:53-54:53-54/udp")
    again = await attach(host, ask("8080:80/tcp", "192.0.2.1:53-54:53-54/udp"))
    assert (again.id, again.created) == (found.id, False)
    with pytest.raises(Conflict, match=r"publish is .*, not 8081:80/tcp"):
        await attach(host, ask("8081:80"))


async def test_a_port_is_one_endpoints_and_free_again_when_that_is_gone():
    host = await host_with_network()
    found = await attach(host, ask("8080-8089:80-89"))
    name = found.endpoint.name
    await refused(host, Conflict, rf"port 8085/tcp of this host is endpoint {name}'s already", "8085:1")
    await attach(host, ask("8085:1/udp", cookie=8))
    await detach(host, found.id)
    await attach(host, ask("8085:1", cookie=9))


async def test_of_two_at_once_one_gets_the_port():
    host = await host_with_network()
    outcome = []

    async def one(cookie):
        try:
            outcome.append((await attach(host, ask("8080:80", cookie=cookie))).created)
        except Conflict as error:
            outcome.append(error.what)

    async with trio.open_nursery() as nursery:
        for cookie in range(1, 6):
            nursery.start_soon(one, cookie)
    assert sorted(map(str, outcome))[0] == "True"
    assert len([what for what in outcome if what is not True and "8080/tcp" in what]) == 4


SOCKETS = {
    "everywhere": (Listener(TCP, (4,), None, 8080, 33), "8080:80", True),
    "everywhere, both families": (Listener(TCP, (4, 6), None, 8080, 33), "192.0.2.1:8080:80", True),
    "v6 only": (Listener(TCP, (6,), None, 8080, 33), "0.0.0.0:8080:80", False),
    "on the loopback": (Listener(TCP, (4,), LOOPBACK, 8080, 33), "8080:80", True),
    "on another address": (Listener(TCP, (4,), LOOPBACK, 8080, 33), "192.0.2.1:8080:80", False),
    "of another protocol": (Listener(UDP, (4,), None, 8080, 33), "8080:80", False),
    "in the range": (Listener(UDP, (4,), None, 8085, 33), "8080-8089:80-89/udp", True),
    "beside the range": (Listener(UDP, (4,), None, 8090, 33), "8080-8089:80-89/udp", False),
}


@pytest.mark.parametrize("case", SOCKETS)
async def test_a_port_that_a_socket_of_the_host_has_is_refused(case):
    listener, published, taken = SOCKETS[case]
    host = await host_with_network()
    host.kernel.sockets = [listener]
    if taken:
        await refused(
            host,
            Conflict,
            rf"port {listener.port}/\w+ of this host is taken by a socket of uid 33",
            published,
        )
    else:
        await attach(host, ask(published))


WRONG = {
    "192.0.2.9:80:80": "192.0.2.9 is not an address of this host",
    "[2001:db8::1]:80:80": "network blue has no IPv6 subnet",
    "80": "not of the form",
}


@pytest.mark.parametrize("published", WRONG)
async def test_what_cannot_be_published_is_refused(published):
    await refused(await host_with_network(), BadRequest, WRONG[published], published)


async def test_a_port_that_another_cluster_publishes_here_is_refused_and_never_chosen():
    host = await host_with_network()
    host.kernel.elsewhere = [Elsewhere("meshd-8472", TCP, (4,), None, 8080)]
    await refused(
        host, Conflict, r"port 8080/tcp .* another cluster's .* \(table inet meshd-8472\)", "8080:80"
    )
    await attach(host, ask("8080:80/udp"))
    (wanted,) = (Publication.parse("8080:80"),)
    (chosen,) = await choose(host, [Choice(wanted, 8081, anywhere=False)])
    assert chosen.first == 8081


async def test_any_loopback_address_is_the_hosts():
    host = await host_with_network()
    assert (await attach(host, ask("127.0.0.53:53:53/udp"))).created


async def test_nothing_leads_into_an_internal_network():
    await refused(await host_with_network(internal=True), BadRequest, "network blue is internal", "80:80")


@pytest.mark.parametrize(
    "op", [SetFirewall("text"), PutElement(element("everywhere4", b"\x06", b"\x1f\x90"), b"")]
)
async def test_an_endpoint_that_the_firewall_does_not_know_goes_again(op):
    host = await host_with_network()
    host.reconciler.refused = {op: KernelError("the firewall", "install nftables", errno=2, words="no nft")}
    with pytest.raises(KernelError, match="no nft"):
        await attach(host, ask("8080:80"))
    assert host.attachments == {}
