"""A network card becomes a port of a bridge and back: what the host has on it moves along, in one batch.

Decides the order of the messages and what a refused one leads to. A connection survives since at no moment an address
is on neither device: it is put on the target before it is taken off the source, which the kernel allows, and the card
carries frames as a port and as a device of its own. The kernel carries a batch out while we send it, so that a kill of
this process leaves all of it done or none. Addresses do not move by themselves when a card gets a master; on a port
the bridge takes every frame, and what IPv6 hears for an address of the port it does not answer.

Two things of the kernel cost packets unless they are seen to. A bridge that gets its first carrier sends nothing
until a work queue has run, its first ARP request is lost and comes again after a second: so its queue is set anew,
which starts it at once (dev_qdisc_change_tx_queue_len, dev_activate); and the neighbours known are told to it. The local route of a v6 address is also made by a work queue (addrconf_dad_work): so v6 addresses leave
the source in a second batch, once those of the target work.
"""

import errno
import time
from collections.abc import Iterable, Sequence

from meshd.config import (
    BRIDGE_V6_SETTLE_S,
    BRIDGE_V6_SETTLE_STEP_S,
    NETLINK_BATCH,
    NETLINK_BATCH_BYTES,
)
from meshd.errors import KernelError
from meshd.kernel import carried, frames, netlink
from meshd.kernel.carried import Device, Thing
from meshd.kernel.codec import link_message
from meshd.kernel.linkdump import RTM_NEWLINK

_THERE = (errno.EEXIST,)
_AWAY = (errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENODEV)
_ANY = (*range(1, 134),)  # errnos of Linux: of no consequence
_NAMED_MAX = 4  # things named in one error

_Step = tuple[bytes, tuple[int, ...], str]
"""A message, the errors that mean that there is nothing to do, and how people call it."""


def join(
    link: netlink.Netlink,
    card: Device,
    bridge: Device,
    mac: bytes,
    lost: Sequence[Thing] = (),
    *,
    queue: int,
) -> list[Thing]:
    """Make a card a port of a bridge that gets ``mac``, and move what is on it; return what that was. ``queue``: the
    bridge's txqueuelen. ``lost``: what a bridge that somebody deleted has taken along, and is to be there again.

    Raises KernelError with everything back where it was, or else saying what is not.
    """
    before = carried.read(link, card.number)
    on_bridge = carried.read(link, bridge.number)
    there = {carried.key(thing) for thing in [*before, *on_bridge]}
    again = [thing for thing in lost if carried.key(thing) not in there]
    later = [thing for thing in before if carried.is_v6_address(thing)]
    steps = [
        _link(bridge, f"MAC of {bridge.name}", [("IFLA_ADDRESS", mac.hex(":"))], up=True),
        _link(card, f"{card.name} as a port of {bridge.name}", [("IFLA_MASTER", bridge.number)]),
        *_start(bridge, queue),
        *_puts([*before, *again], card, bridge),
        *_drops([thing for thing in before if thing not in later], card),
    ]
    steps += _warm(link, card, bridge, len(steps))
    refused = _carry_out(link, steps)
    if not refused:
        _wait_for(link, later, bridge)
        refused = _carry_out(link, _drops(later, card))
    left = [thing for thing in carried.read(link, card.number) if not carried.is_link_local(thing)]
    if not refused and not left:
        return before
    why = refused[0] if refused else KernelError(f"{card.name} keeps {_told(left)}")
    wanted = {carried.key(thing) for thing in on_bridge}
    problems = _carry_out(link, _puts(before, card, card))
    _wait_for(link, later, card)
    put_back = [
        *_drops([t for t in carried.read(link, bridge.number) if carried.key(t) not in wanted], bridge),
        _link(card, f"{card.name} on its own", [("IFLA_MASTER", 0)]),
    ]
    problems += _carry_out(link, put_back)
    raise _undone(why, card, before, carried.read(link, card.number), problems)


def leave(
    link: netlink.Netlink,
    card: Device,
    bridge: Device | None,
    mac: bytes,
    moving: Sequence[Thing],
    lost: Sequence[Thing] = (),
    source: Device | None = None,
) -> list[KernelError]:
    """Take a card out of a bridge, which gets ``mac``, and give it ``moving``, what the bridge has of it; and
    ``lost``, what it had and is nowhere now, as read when it had the ifindex and name of ``source``. ``bridge`` None:
    it is gone. Returns what the kernel refused; all else is done. Raises KernelError where nothing can be asked."""
    away = _link(card, f"{card.name} on its own", [("IFLA_MASTER", 0)])
    put_back = _puts(lost, source or card, card)
    if bridge is None:
        return _carry_out(link, [*put_back, away])
    later = [thing for thing in moving if carried.is_v6_address(thing)]
    steps = [
        *_puts(moving, bridge, card),
        *put_back,
        *_drops([thing for thing in moving if thing not in later], bridge),
    ]
    steps += _warm(link, bridge, card, len(steps))
    refused = _carry_out(link, steps)
    _wait_for(link, later, card)
    new_mac = _link(bridge, f"MAC of {bridge.name}", [("IFLA_ADDRESS", mac.hex(":"))])
    return refused + _carry_out(link, [*_drops(later, bridge), away, new_mac])


def _start(bridge: Device, queue: int) -> list[_Step]:
    """Have a bridge send from now on; its queue is as long as before."""
    lengths = (queue + 1, queue)
    return [_link(bridge, f"{bridge.name}'s queue", [("IFLA_TXQLEN", length)]) for length in lengths]


def _warm(link: netlink.Netlink, source: Device, target: Device, used: int) -> list[_Step]:
    """Tell ``target`` the neighbours that are known on ``source``, as far as the batch has room."""
    known = carried.neighbours(link, source.number)[: max(0, NETLINK_BATCH - used)]
    return [(message, _ANY, "neighbours") for message in carried.put(known, source, target)]


def _wait_for(link: netlink.Netlink, things: Sequence[Thing], device: Device) -> None:
    """Wait until v6 addresses work on a device, for BRIDGE_V6_SETTLE_S at most: no error if they don't, just a packet
    lost. One that is still being asked for on the LAN (DAD) does not work yet and is not waited for long."""
    wanted = {carried.address_of(thing) for thing in things}
    until = time.monotonic() + BRIDGE_V6_SETTLE_S
    while wanted - carried.local_v6(link, device.number) and time.monotonic() < until:
        time.sleep(BRIDGE_V6_SETTLE_STEP_S)


def fits(things: Iterable[Thing]) -> bool:
    """Tell whether a move is one batch: as many messages to put as to take away, and the links."""
    count, size = 0, 0
    for thing in things:
        count += 2
        size += 2 * len(carried.pack([thing])) + frames.HEADER_BYTES
    return count + _LINK_STEPS <= NETLINK_BATCH and size + _LINK_STEPS_BYTES <= NETLINK_BATCH_BYTES


_LINK_STEPS, _LINK_STEPS_BYTES = 4, 1024


def _link(device: Device, what: str, attrs: list[tuple[str, object]], up: bool | None = None) -> _Step:
    return link_message(RTM_NEWLINK, frames.REQUEST, attrs, index=device.number, up=up), (), what


def _puts(things: Sequence[Thing], source: Device, target: Device) -> list[_Step]:
    ordered = carried.ordered(things)
    named = [carried.text(thing) for thing in ordered]
    return [
        (message, _THERE, f"{what} on {target.name}")
        for message, what in zip(carried.put(ordered, source, target), named, strict=True)
    ]


def _drops(things: Sequence[Thing], device: Device) -> list[_Step]:
    return [
        (message, _AWAY, f"taking what is moved off {device.name}")
        for message in carried.drop(things, device)
    ]


def _carry_out(link: netlink.Netlink, steps: Sequence[_Step]) -> list[KernelError]:
    answers = link.transact([message for message, _, _ in steps])
    return [
        KernelError(what, errno=error.errno, words=error.words or error.what)
        for (_, tolerated, what), error in zip(steps, answers, strict=True)
        if error is not None and error.errno not in tolerated
    ]


def _undone(
    why: KernelError,
    card: Device,
    before: Sequence[Thing],
    now: Sequence[Thing],
    problems: Sequence[KernelError],
) -> KernelError:
    """Say why, and whether all is as before."""
    have = {carried.key(thing) for thing in now}
    missing = [thing for thing in before if carried.key(thing) not in have]
    if missing or problems:
        told = _told(missing) if missing else problems[0].what
        return KernelError(
            f"{card.name} could not become a port ({why.what}), and lacks {told} now",
            "set it up anew as this host's own network configuration does, e.g. ifup or networkctl reconfigure",
            errno=why.errno,
        )
    return KernelError(f"{card.name} could not become a port: {why.what}; all is as it was", errno=why.errno)


def _told(things: Sequence[Thing]) -> str:
    named = [carried.text(thing) for thing in things[:_NAMED_MAX]]
    more = len(things) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
