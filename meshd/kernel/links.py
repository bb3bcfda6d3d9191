"""Devices: make them, bring them to what they should be, delete them. It decides which requests turn what is
there into a ``Link``; not which links there should be.

If a later step of making a device fails (linkwrite.py), the device is deleted again: one without alias would
not be recognised as ours.
"""

import errno
import ipaddress
import secrets
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from meshd.config import LINKS_DELETED_TOGETHER
from meshd.errors import KernelError
from meshd.kernel import linkdump, linkwrite, netlink
from meshd.kernel.echoes import Echoes
from meshd.kernel.guests import Guests
from meshd.kernel.linkdump import Seen
from meshd.plan import names
from meshd.plan.objects import GUEST_KINDS, Link

_UNKNOWN_ATTRIBUTE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ERANGE)


class Birth(NamedTuple):
    """What a veth pair's other end is born with: name, MAC (b"": the kernel's choice), MTU in bytes, and the process in
    whose namespace (0: in this one)."""

    peer: str
    mac: bytes
    mtu: int
    pid: int = 0


def must_remake(want: Link, have: Link) -> str | None:
    """Say why the kernel cannot turn ``have`` into ``want``, or None if it can."""
    if want.kind != have.kind:
        return f"is a {have.kind}, not a {want.kind}"
    if want.vxlan is None or have.vxlan is None:
        return None
    for field in ("vni", "port"):
        old, new = getattr(have.vxlan, field), getattr(want.vxlan, field)
        if old != new:
            return f"{field} is {old}, not {new}"
    if len(have.vxlan.local) != len(want.vxlan.local):  # within a family the kernel changes it in place
        told = [ipaddress.ip_address(ip) if ip else "none" for ip in (have.vxlan.local, want.vxlan.local)]
        return f"local is {told[0]}, not {told[1]}"
    return None


class Links:
    """The devices of one namespace, through one request socket."""

    def __init__(self, link: netlink.Netlink, echoes: Echoes, guests: Guests | None = None) -> None:
        self._netlink = link
        self._guests = guests
        self._echoes = echoes
        # Without IPv6 in the kernel the attribute is refused; every namespace has a loopback device to ask.
        self._inet6 = self._get(["lo"]).get("lo", _NOTHING).inet6

    def indices(self, wanted: Sequence[str]) -> dict[str, int]:
        """Return the ifindex of each of these devices that exists."""
        return {name: linkdump.index_of(answer) for name, answer in self._ask(wanted).items()}

    def ensure(
        self, links: Sequence[Link], births: Mapping[str, Birth] | None = None
    ) -> list[KernelError | None]:
        """Make each device, or bring the existing one to ``link``; in one send, or two when a bridge and its
        ports are new. ``births``: of endpoints' pairs that may be made, by the host end's name. Returns per link why it
        failed, or None; a device that could not be made as it should be is not left behind."""
        outcome: list[KernelError | None] = [None] * len(links)
        bridges = [i for i, link in enumerate(links) if link.master is None and not link.peer]
        ports = [i for i, link in enumerate(links) if link.master is not None]
        far_ends = [
            i for i, link in enumerate(links) if link.master is None and link.peer
        ]  # born with a port
        for turn in (bridges, ports, far_ends):
            if turn:
                self._ensure_turn([links[i] for i in turn], turn, outcome, births or {})
        return outcome

    def delete(self, wanted: Sequence[str]) -> list[KernelError | None]:
        """Delete devices; one that is gone is a success, one without our mark is refused."""
        found = self._get(wanted)
        outcome: list[KernelError | None] = [None] * len(wanted)
        turn: list[int] = []
        doomed: list[int] = []
        for i, name in enumerate(wanted):
            seen = found.get(name)
            if seen is None:
                if self._guests is not None and name.startswith(names.GUEST):
                    outcome[i] = self._guests.delete(name, _guest_name)
                continue
            if not marked(seen):
                outcome[i] = _foreign(name)
                continue
            turn.append(i)
            self._echoes.device(name, None)
            doomed.append(seen.ifindex)
        for i, error in zip(turn, self._delete_numbered(doomed), strict=True):
            if error is not None and error.errno != errno.ENODEV:
                outcome[i] = _about(wanted[i], error)
        return outcome

    def _delete_numbered(self, indices: Sequence[int]) -> list[KernelError | None]:
        """Delete devices by ifindex, several in one go; one by one where that is refused, which says of each why."""
        answers: list[KernelError | None] = []
        for start in range(0, len(indices), LINKS_DELETED_TOGETHER):
            some = indices[start : start + LINKS_DELETED_TOGETHER]
            if len(some) > 1:
                group = secrets.randbits(31) | 1 << 30  # drawn each time: whoever else is in it would go too
                together = [linkwrite.doom(index, group) for index in some]
                together.append(linkwrite.delete_doomed(group))
                if not any(self._netlink.transact(together)):
                    answers += [None] * len(some)
                    continue
            answers += self._netlink.transact([*map(linkwrite.delete, some)])
        return answers

    def rename(self, old: str, new: str) -> KernelError | None:
        """Give a device another name; all that is on it stays. Kernels before 6.2 rename only what is down."""
        found = self._get([old, new])
        if old not in found:
            return _gone(old)
        if not marked(found[old]):
            return _foreign(old)
        if new in found:
            return (
                _foreign(new) if not marked(found[new]) else _about(new, KernelError("", errno=errno.EEXIST))
            )
        index = found[old].ifindex
        (error,) = self._netlink.transact([linkwrite.rename(index, new)])
        if error is not None and error.errno == errno.EBUSY:
            error = next(filter(None, self._netlink.transact(linkwrite.rename_down(index, new))), None)
        return None if error is None else _about(new, error)

    def _ensure_turn(
        self,
        links: Sequence[Link],
        places: Sequence[int],
        outcome: list[KernelError | None],
        births: Mapping[str, Birth],
    ) -> None:
        """Do one send's worth of ``ensure``; links[n] reports to outcome[places[n]]."""
        below = [name for link in links for name in (link.master, link.parent) if name]
        found = self._get([link.name for link in links] + below)
        messages: list[bytes] = []
        spans: list[tuple[int, Link, int, bool]] = []  # outcome, link, first message, whether it is new
        for place, link in zip(places, links, strict=True):
            seen = found.get(link.name)
            master = found.get(link.master) if link.master else None
            parent = found.get(link.parent) if link.parent else None
            birth = births.get(link.name) if seen is None else None
            error = _objection(link, seen, parent.ifindex if parent else 0) if birth is None else None
            if link.master and master is None:
                error = _gone(link.master)
            if link.parent and parent is None:
                error = KernelError(
                    f"its parent {link.parent} is not on this host; made again once it is back"
                )
            if error is not None:
                outcome[place] = error
                continue
            index = master.ifindex if master else 0
            if seen is not None and _is_right(link, seen, index):
                continue
            self._echoes.device(link.name, link)
            spans.append((place, link, len(messages), seen is None))
            if birth is not None:
                messages += linkwrite.create_pair(link, index, *birth, inet6=self._inet6)
            elif seen is None and link.peer:
                messages += linkwrite.create_pair(link, index, link.peer, b"", link.mtu, inet6=self._inet6)
                messages.append(linkwrite.mark(link.peer, link.alias))
            elif seen is None:
                on = parent.ifindex if parent else 0
                messages += linkwrite.create(link, index, inet6=self._inet6, parent=on)
            else:
                messages += linkwrite.adjust(link, seen, index, inet6=self._inet6)
        if not spans:
            return
        answers = self._netlink.transact(messages)
        ends = [first for _, _, first, _ in spans[1:]] + [len(messages)]
        for (place, link, first, new), end in zip(spans, ends, strict=True):
            if not new:
                refused = next((answer for answer in answers[first:end] if answer is not None), None)
                outcome[place] = None if refused is None else _about(link.name, refused)
                continue
            error = self._made(link.name, answers[first:end])
            if error is not None and link.vxlan is not None and error.errno in _UNKNOWN_ATTRIBUTE:
                # A kernel before 5.1 may refuse the DF setting; its routes' path MTU then does the job.
                index = found[link.master].ifindex if link.master else 0
                again = linkwrite.create(link, index, inet6=self._inet6, df=False)
                error = self._made(link.name, self._netlink.transact(again))
            outcome[place] = error

    def _made(self, name: str, answers: Sequence[KernelError | None]) -> KernelError | None:
        """Judge the answers to *new*, *settle*, *up*; undo a device that is not as it should be."""
        refused = next((answer for answer in answers if answer is not None), None)
        if refused is None:
            return None
        if answers[0] is None:
            self._netlink.transact([linkwrite.delete_named(name)])
        return _about(name, refused)

    def _get(self, wanted: Sequence[str]) -> dict[str, Seen]:
        """Ask for devices by name; what does not exist is left out."""
        return {name: linkdump.parse(answer, 0, len(answer)) for name, answer in self._ask(wanted).items()}

    def _ask(self, wanted: Sequence[str]) -> dict[str, bytes]:
        """Do the same without reading more of the answers than which there are."""
        distinct = list(dict.fromkeys(wanted))
        found: dict[str, bytes] = {}
        for name, answer in zip(
            distinct, self._netlink.get([*map(linkdump.get_request, distinct)]), strict=True
        ):
            if isinstance(answer, bytes):
                found[name] = answer
            elif answer.errno != errno.ENODEV:
                raise _about(name, answer)
        return found


def marked(seen: Seen) -> bool:
    """Tell whether a device carries our mark, of whichever cluster."""
    return seen.alias.startswith(f"{names.MARK}:")


def _guest_name(seen: Seen) -> str | None:
    """Return what plans call a guest, of whichever cluster."""
    endpoint = names.alias_endpoint(seen.alias, seen.alias.split(":")[1]) if marked(seen) else None
    return None if endpoint is None or seen.kind not in GUEST_KINDS else names.guest(endpoint)


def _objection(link: Link, seen: Seen | None, parent: int) -> KernelError | None:
    """Say why the device can be neither made nor adjusted, if so. ``parent``: ifindex of the device it is to be on."""
    if seen is None:
        made_here = link.kind != "veth" or (link.peer and link.master)
        return None if made_here else _gone(link.name)
    if not marked(seen):
        return _foreign(link.name)
    have = linkdump.to_link(seen, None)
    why = must_remake(link, have) if have is not None else f"is a {seen.kind or 'device'}, not a {link.kind}"
    if why is None and link.parent and (have is None or (seen.peer, have.mode) != (parent, link.mode)):
        why = f"is not on {link.parent} in mode {link.mode}"
    if why is None:
        return None
    return KernelError(f"device {link.name} has to be made anew", errno=errno.EEXIST, words=why)


def _is_right(link: Link, seen: Seen, master: int) -> bool:
    """Tell whether a device is as it should be."""
    have = linkdump.to_link(seen, link.master)
    if have is not None:
        have = msgspec.structs.replace(
            have,
            mac=None if link.mac is None else have.mac,
            mtu=have.mtu if link.mtu else 0,
            narrow=have.narrow and link.narrow,
            peer=link.peer,
            parent=link.parent,
        )
    return have == link and seen.master == master


def _gone(name: str) -> KernelError:
    return KernelError(f"device {name}", errno=errno.ENODEV, words="does not exist")


def _foreign(name: str) -> KernelError:
    return KernelError(
        f"device {name} was left alone",
        "delete or rename it, if nothing else needs it",
        errno=errno.EEXIST,
        words="it exists without meshd's mark",
    )


def _about(name: str, error: KernelError) -> KernelError:
    return KernelError(f"device {name}", error.hint, errno=error.errno, words=error.words)


_NOTHING = Seen(0, "", "", "", False, 0, b"", 0, 0, False, False, b"", {}, None)
