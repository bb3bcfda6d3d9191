"""Operators' bridges and their ports, as the shell sees them: what the kernel says of a device, what is on it, and the
two moves. It judges nothing: plan/bridges.py does; how a move goes is portmove.py's.
"""

import errno
import struct

from meshd.errors import KernelError
from meshd.kernel import carried, forwarding, frames, linkdump, netlink, portmove
from meshd.kernel.carried import Device
from meshd.kernel.parents import IFF_LOOPBACK, SYSFS
from meshd.plan.bridges import Belongings, Card, Move

ARPHRD_ETHER = 1
IFF_LOWER_UP = 0x10000
IFLA_TXQLEN = 13
ON_TOP = ("macvlan", "macvtap", "ipvlan", "ipvtap")

_IFINFOMSG = struct.Struct("=BxHiII")


class Bridging:
    """The operator's bridges of one namespace, through one request socket."""

    def __init__(self, link: netlink.Netlink) -> None:
        self._netlink = link

    def card(self, name: str) -> Card:
        """Read a device. Raises KernelError."""
        devices: dict[int, linkdump.Seen] = {}
        told: dict[int, tuple[int, int]] = {}
        for chunk in self._netlink.dump(linkdump.dump_request()):
            for kind, _, start, end in frames.split(chunk):
                if kind == linkdump.RTM_NEWLINK:
                    seen = linkdump.parse(chunk, start, end)
                    _, sort, _, flags, _ = _IFINFOMSG.unpack_from(chunk, start + frames.HEADER_BYTES)
                    devices[seen.ifindex], told[seen.ifindex] = seen, (sort, flags)
        index = next((number for number, seen in devices.items() if seen.name == name), 0)
        if not index:
            return Card(name, missing=True)
        seen, (sort, flags) = devices[index], told[index]
        master = devices.get(seen.master)
        others = [other for other in devices.values() if other.ifindex != index]
        return Card(
            name=name,
            index=index,
            kind=seen.kind,
            alias=seen.alias,
            up=seen.up,
            carrier=bool(flags & IFF_LOWER_UP),
            loopback=bool(flags & IFF_LOOPBACK),
            ethernet=sort == ARPHRD_ETHER,
            wireless=(SYSFS / name / "phy80211").exists(),
            master=master.name if master else "",
            master_kind=master.kind if master else "",
            mtu=seen.mtu,
            mac=seen.mac,
            above=tuple(o.name for o in others if o.kind in ON_TOP and o.peer == index and not o.elsewhere),
            ports=tuple(o.name for o in others if o.master == index),
            accept_ra=self._accepts_ra(index),
        )

    def _accepts_ra(self, index: int) -> bool:
        forwards, accept_ra = forwarding.device_settings(self._netlink).get(index, (0, 0))
        return accept_ra == 2 or (accept_ra == 1 and not forwards)

    def brief(self, name: str) -> Card:
        """Read a device without asking for all others: what the rest of ``card`` tells is left out. Raises
        KernelError."""
        seen = self._seen(linkdump.get_request(name))
        if seen is None:
            return Card(name, missing=True)
        master = self._seen(linkdump.get_numbered(seen.master)) if seen.master else None
        return Card(
            name=name,
            index=seen.ifindex,
            kind=seen.kind,
            alias=seen.alias,
            up=seen.up,
            master=master.name if master else "",
            master_kind=master.kind if master else "",
            mtu=seen.mtu,
            mac=seen.mac,
        )

    def belongings(self, index: int) -> Belongings:
        """Read what the host has on a device. Raises KernelError."""
        things = carried.read(self._netlink, index)
        own = [thing for thing in things if not carried.is_link_local(thing)]
        return Belongings(
            packed=carried.pack(things),
            count=len(own),
            fits=portmove.fits(things),
            leased=tuple(carried.leased(things)),
            advertised=carried.advertised(things),
        )

    def join(self, move: Move) -> None:
        """Make a card a port, and move what is on it. Raises KernelError with everything as it was, or saying what
        is not."""
        card, bridge = self._device(move.card), self._device(move.bridge)
        if card is None or bridge is None:
            missing = move.bridge if bridge is None else move.card
            raise KernelError(f"device {missing} does not exist; nothing was changed", errno=errno.ENODEV)
        lost = carried.aged(carried.unpack(move.carried), move.elapsed_s) if move.restore else []
        source = Device(move.index, move.card)
        lost = [carried.of(thing, source, card) for thing in lost]
        portmove.join(self._netlink, card, bridge, move.mac, lost, queue=self._queue(move.bridge))

    def leave(self, move: Move) -> list[KernelError]:
        """Take a card out again with what is its on the bridge; with ``move.restore`` also what it had when it joined
        and has been lost. What the kernel refused is returned, all else is done. Raises KernelError."""
        card, bridge = self._device(move.card), self._device(move.bridge)
        if card is None:
            return []  # unplugged: what was on it went with it
        theirs = {carried.key(thing) for thing in carried.unpack(move.others)}
        stays = {carried.key(thing) for thing in carried.unpack(move.before)} | theirs
        had = carried.aged(carried.unpack(move.carried), move.elapsed_s)
        mine = {carried.key(thing) for thing in had}
        now = carried.read(self._netlink, bridge.number) if bridge is not None else []
        moving = [
            thing
            for thing in now
            if carried.key(thing) in mine - theirs or (not move.others and carried.key(thing) not in stays)
        ]
        there = {carried.key(thing) for thing in [*now, *carried.read(self._netlink, card.number)]}
        lost = [thing for thing in had if carried.key(thing) not in there] if move.restore else []
        return portmove.leave(
            self._netlink, card, bridge, move.mac, moving, lost, Device(move.index, move.card)
        )

    def _queue(self, name: str) -> int:
        """Return a device's txqueuelen, in packets."""
        (answer,) = self._netlink.get([linkdump.get_request(name)])
        if isinstance(answer, KernelError):
            raise answer
        said = frames.attributes(answer, frames.HEADER_BYTES + _IFINFOMSG.size, len(answer))
        return linkdump.number(said.get(IFLA_TXQLEN))

    def _device(self, name: str) -> Device | None:
        seen = self._seen(linkdump.get_request(name))
        return None if seen is None else Device(seen.ifindex, name)

    def _seen(self, request: bytes) -> linkdump.Seen | None:
        (answer,) = self._netlink.get([request])
        if isinstance(answer, KernelError):
            if answer.errno == errno.ENODEV:
                return None
            raise answer
        return linkdump.parse(answer, 0, len(answer))
