"""macvlan, ipvlan and VLAN devices of one namespace: made, found and deleted. It ties requests together and undoes
what fails half-way; which devices there should be is shell/lan.py's.
"""

import errno
from collections.abc import Sequence

import msgspec

from meshd.errors import KernelError
from meshd.kernel import conflict, lanlinks, linkdump, linkwrite, netlink, parents
from meshd.kernel.guests import Guests
from meshd.plan import names
from meshd.plan.parents import Parent, missing_feature


class Guest(msgspec.Struct, frozen=True):
    """An endpoint's device to be made. ``parent``: ifindex; ``mac`` None: its parent's; ``mtu`` bytes."""

    name: str
    kind: str
    mode: str
    alias: str
    parent: int
    mtu: int
    mac: bytes | None


class Lan:
    """Blocking, as all of kernel/; one thread at a time."""

    def __init__(self, link: netlink.Netlink, guests: Guests) -> None:
        self._netlink = link
        self._guests = guests

    def parent(self, name: str | None) -> Parent:
        """Read a device, or the default route's. Raises Unavailable, KernelError."""
        return parents.read_parent(self._netlink, name)

    def supports(self, kind: str) -> bool:
        """Tell whether the kernel can make devices of a kind: "macvlan", "ipvlan", "vlan"."""
        (error,) = self._netlink.transact([lanlinks.trial(kind)])
        return error is None or error.errno != errno.EOPNOTSUPP

    def make_guest(self, guest: Guest) -> None:
        """Make an endpoint's device, down. Raises Unavailable naming the feature that the kernel lacks, or
        KernelError; nothing is left behind."""
        new = lanlinks.new_guest(guest.name, guest.kind, guest.mode, guest.parent, guest.mtu, guest.mac)
        self._make(guest.name, guest.kind, new, guest.alias, up=False)

    def make_vlan(self, name: str, parent: int, number: int, alias: str) -> int:
        """Make the VLAN sub-interface of a device, up; return its ifindex. Raises as ``make_guest``."""
        return self._make(name, "vlan", lanlinks.new_vlan(name, parent, number), alias, up=True)

    def vlans(self, mark: str) -> dict[str, str]:
        """Return the VLAN sub-interfaces that are ours: name -> alias. ``mark``: names.cluster_mark."""
        found = linkdump.parse_all(self._netlink.dump(linkdump.dump_request()))
        return {
            seen.name: seen.alias
            for seen in found
            if seen.kind == "vlan" and names.alias_network(seen.alias, mark) is not None
        }

    def ask(self, index: int, ips: Sequence[bytes]) -> dict[bytes, bytes]:
        """Ask once on a device who has these packed addresses; return what needs no asking. Raises KernelError."""
        return conflict.ask(self._netlink, index, ips)

    def answers(self, index: int, ips: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return who has answered so far: packed address -> 6-byte MAC. Raises KernelError."""
        return conflict.answers(self._netlink, index, ips)

    def forget(self, index: int, ips: Sequence[bytes]) -> None:
        """Take away what asking left in the host's neighbour table. Raises KernelError."""
        conflict.forget(self._netlink, index, ips)

    def _make(self, name: str, kind: str, new: bytes, alias: str, *, up: bool) -> int:
        messages = [new, *(lanlinks.settle(name, alias, inet6=inet6) for inet6 in (False, True))]
        if up:
            messages.append(lanlinks.set_up(name, up=True))
        self._guests.expected()
        answers = self._netlink.transact(messages)
        if answers[2] is not None and answers[2].errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            answers[2] = None  # a kernel without IPv6
        refused = next((answer for answer in answers if answer is not None), None)
        if refused is None:
            (found,) = self._netlink.get([linkdump.get_request(name)])
            if isinstance(found, bytes):
                return linkdump.parse(found, 0, len(found)).ifindex
            refused = found
        if answers[0] is None:
            self._netlink.transact([linkwrite.delete_named(name)])
        elif refused.errno == errno.EOPNOTSUPP:
            raise missing_feature(kind)
        raise KernelError(f"{kind} device {name}", refused.hint, errno=refused.errno, words=refused.words)
