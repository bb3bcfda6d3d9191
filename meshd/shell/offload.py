"""Tells people whether the checksums of overlay packets arrive right, by trying it: cards and hypervisors are known
that compute those inside a tunnel wrong, and then pings pass while TCP and UDP do not.

Decides when what is tried, and what the outcome means. From this host's own address on an overlay (--host-access, the
only one it has there) a UDP packet goes to another host's, to a port that nobody has: its kernel refuses it, but only
where the checksum is right. The same packet without a checksum tells a wrong one from a way that is closed. So it is
this host's card, and the way up to the other's kernel, that is tried; without such addresses nothing is.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Literal

import trio

from meshd.config import OFFLOAD_ANSWER_S, OFFLOAD_HOSTS_NAMED, OFFLOAD_PERIOD_S, OFFLOAD_PORT, OFFLOAD_TRIES
from meshd.kernel.offload import CHECKSUMS, TUNNELS, Device
from meshd.model import HostId, NetworkId, text_ip
from meshd.plan import names
from meshd.shell.usecase import ClusterLike

Outcome = Literal["right", "wrong", "untested"]
ALARM = "checksum-offload"
IPV4_BYTES = 4
SO_NO_CHECK = 11  # asm-generic/socket.h
_PAYLOAD = b"meshd: are checksums right?"


class Offload:
    """``devices``: what packets leave by, and what that stands on, as far as it has been read."""

    def __init__(self) -> None:
        self.devices: Sequence[Device] = ()
        self._found: dict[HostId, Outcome] = {}
        self._turn: dict[HostId, float] = {}  # when each was tried last

    async def run(self, cluster: ClusterLike) -> None:
        """Try one host at a time, for ever."""
        while True:
            await self.look(cluster, answered)
            await trio.sleep(OFFLOAD_PERIOD_S)

    async def look(self, cluster: ClusterLike, ask: Callable[[bytes, bytes, bool], Awaitable[bool]]) -> None:
        """Try the host whose turn it is, and raise or take back the alarm. ``ask``: see answered."""
        ways = dict(_ways(cluster))
        for seen in (self._found, self._turn):
            for host in seen.keys() - ways.keys():
                del seen[host]
        if ways:
            host = min(ways, key=lambda host: (self._turn.get(host, 0.0), host))
            self._found[host] = await trial(*ways[host], ask)
            self._turn[host] = cluster.now()
        wrong = self._hosts("wrong", cluster.host_name)
        if wrong:
            cluster.alarm(ALARM, trouble(self.devices, wrong))
        else:
            cluster.calm(ALARM)

    @property
    def outcome(self) -> Outcome:
        """What has been found on all ways together: wrong where it is on one."""
        outcomes: tuple[Outcome, ...] = ("wrong", "right")
        return next((each for each in outcomes if each in self._found.values()), "untested")

    def detail(self, name: Callable[[HostId], str]) -> str:
        """Say how the outcome came about, in words."""
        tried = {each: self._hosts(each, name) for each in ("wrong", "right", "untested")}
        if not self._found:
            return "no network with --host-access has endpoints both here and on another living host"
        words = {"wrong": "wrong at", "right": "right at", "untested": "no answer from"}
        return "; ".join(f"{words[each]} {_few(hosts)}" for each, hosts in tried.items() if hosts)

    def _hosts(self, outcome: str, name: Callable[[HostId], str]) -> list[str]:
        return sorted(name(host) for host, found in self._found.items() if found == outcome)


def _ways(cluster: ClusterLike) -> Iterator[tuple[HostId, tuple[bytes, bytes]]]:
    """Yield each living host with this host's address and its, on an overlay where both have one of their own."""
    alive = set(cluster.alive()) - {cluster.me}
    for id_, network in cluster.networks.items():
        if network.driver != "overlay" or not network.host_access:
            continue
        mine = _own_address(cluster, id_, cluster.me)
        for host in sorted(alive & cluster.endpoints.users(id_).keys()) if mine else ():
            theirs = _own_address(cluster, id_, host)
            if theirs:
                yield host, (mine, theirs)


def _own_address(cluster: ClusterLike, network: NetworkId, host: HostId) -> bytes:
    """Return the IPv4 address that a host itself has on a network, b"" if none: IPv6 knows no packet without a
    checksum."""
    for id_ in cluster.endpoints.at(network, host):
        endpoint = cluster.endpoints[id_]
        if endpoint.ifname == names.host(network):
            return next((ip for ip in endpoint.ips if len(ip) == IPV4_BYTES), b"")
    return b""


async def trial(
    source: bytes, target: bytes, ask: Callable[[bytes, bytes, bool], Awaitable[bool]]
) -> Outcome:
    """Find out whether checksums arrive right. Wrong is only what fails OFFLOAD_TRIES times while the same without a
    checksum is answered each time, before and after."""
    if await ask(source, target, True):
        return "right"
    for _ in range(OFFLOAD_TRIES):
        if not await ask(source, target, False):
            return "untested"
        if await ask(source, target, True):
            return "right"
    return "wrong" if await ask(source, target, False) else "untested"


async def answered(source: bytes, target: bytes, checksum: bool) -> bool:
    """Send one packet to a host's own address on an overlay; tell whether its kernel took it for whole."""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        try:
            if not checksum:
                sock.setsockopt(trio.socket.SOL_SOCKET, SO_NO_CHECK, 1)
            await sock.bind((text_ip(source), 0))
            await sock.connect((text_ip(target), OFFLOAD_PORT))
            await sock.send(_PAYLOAD)
            with trio.move_on_after(OFFLOAD_ANSWER_S):
                await sock.recv(1)
                return True  # somebody has that port, and got it
        except ConnectionRefusedError:
            return True
        except OSError:
            return False  # the address or the route is not there yet, or goes just now
    return False


def trouble(devices: Sequence[Device], wrong: Sequence[str]) -> str:
    """Say what is wrong and what to do about it: to have the kernel compute what the cards are left to now."""
    off = [
        f"ethtool -K {each.name} {' '.join(f'{name} off' for name in CHECKSUMS + TUNNELS if name in each.active)}"
        for each in devices
        if each.active
    ]
    by = ", ".join(f"{each.name} ({each.driver})" if each.driver else each.name for each in devices)
    does = f"run: {' && '.join(off)}" if off else "no card here computes any: look at what is between them"
    return (
        f"checksums of overlay packets that leave by {by or 'this host'} arrive wrong at {_few(wrong)}: "
        f"TCP and UDP do not pass; {does}"
    )


def _few(hosts: Sequence[str]) -> str:
    more = len(hosts) - OFFLOAD_HOSTS_NAMED
    return ", ".join(hosts[:OFFLOAD_HOSTS_NAMED]) + (f" and {more} more" if more > 0 else "")
