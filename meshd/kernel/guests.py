"""Endpoints' devices that are in containers' namespaces: found, and deleted there, without ever entering one.

A macvlan or ipvlan has no end that stays here. But when a device leaves our namespace the kernel gives the one it
goes to a number in ours (net/core/dev.c, __dev_change_net_namespace), and answers requests about that one to
whoever has CAP_NET_ADMIN over it (IFLA_TARGET_NETNSID, Linux 5.0). So such a device is seen, by the mark that its
alias carries, as long as its namespace is there; after a restart too, since the numbers are the kernel's.
"""

import struct
from collections.abc import Callable

from meshd.errors import KernelError
from meshd.kernel import frames, lanlinks, linkdump, netlink
from meshd.kernel.linkdump import Seen

RTM_NEWNSID, RTM_GETNSID = 88, 90
NETNSA_NSID = 1
_RTGENMSG = bytes(4)  # family, padded
_S32 = struct.Struct("=i")


class Guests:
    """``found``: the guests of the last look, by what ``name_of`` made of them: (namespace's number, ifindex)."""

    def __init__(self, link: netlink.Netlink) -> None:
        self._netlink = link
        self._any = True
        self.found: dict[str, tuple[int, int]] = {}

    def expected(self) -> None:
        """Say that a guest was made, so that looking is worth while again."""
        self._any = True

    def look(self, name_of: Callable[[Seen], str | None]) -> list[Seen]:
        """Return the guests in other namespaces. ``name_of``: a device's name in plans, None for what is no guest.

        Looking costs a request for each namespace known here. While nobody made a guest and there was none, it is
        left out.
        """
        self.found = {}
        if not self._any:
            return []
        guests: list[Seen] = []
        for nsid in self._namespaces():
            try:
                there = linkdump.parse_all(self._netlink.dump(lanlinks.dump_there(nsid)))
            except KernelError:
                continue  # it ended meanwhile, or its owner does not let us look
            for seen in there:
                name = name_of(seen)
                if name is not None:
                    self.found[name] = (nsid, seen.ifindex)
                    guests.append(seen)
        self._any = bool(guests)
        return guests

    def delete(self, name: str, name_of: Callable[[Seen], str | None]) -> KernelError | None:
        """Delete a guest wherever it is; one that is gone is a success."""
        self._any = True
        if name not in self.found:
            self.look(name_of)
        where = self.found.pop(name, None)
        if where is None:
            return None
        nsid, index = where
        (error,) = self._netlink.transact([lanlinks.delete_there(index, nsid)])
        if error is None:
            return None
        self.look(name_of)  # a number or an index may have been another's by then
        return error if name in self.found else None

    def _namespaces(self) -> list[int]:
        numbers: list[int] = []
        for chunk in self._netlink.dump(frames.request(RTM_GETNSID, 0, _RTGENMSG)):
            for kind, _, start, end in frames.split(chunk):
                value = frames.attributes(chunk, start + frames.HEADER_BYTES + len(_RTGENMSG), end)
                if kind == RTM_NEWNSID and NETNSA_NSID in value:
                    (number,) = _S32.unpack(value[NETNSA_NSID])
                    if number >= 0:
                        numbers.append(number)
        return numbers
