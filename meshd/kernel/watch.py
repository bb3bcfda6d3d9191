"""The kernel's own news: an asynchronous stream of what changed in our namespace, and whether we did it. It
decides which notifications are worth waking for; what to do about them is the reconciler's.

Left out: rows and addresses of devices that are not named like ours (addresses of others stay: the underlay's
may be among them), routes without our protocol number, neighbours that the kernel learns or ages, a device's own MAC, other firewall tables but for
their base chains, which gates.py may have to look at. A
link event is passed on only where something changed that plan/objects.py can say.
"""

import collections
import errno
import select
import socket
from typing import Literal, Self

import msgspec
import trio

from meshd.config import EVENT_GATHER_S, EVENTS_PER_READ, NETLINK_RCVBUF_BYTES
from meshd.errors import KernelError
from meshd.kernel import (
    addresses,
    eventfilter,
    frames,
    gates,
    hostroutes,
    linkdump,
    netlink,
    nexthops,
    nft,
    rows,
)
from meshd.kernel.echoes import Echoes
from meshd.plan import names
from meshd.plan.objects import BROADCAST, FdbKey, Link, NeighKey

What = Literal["link", "fdb", "neighbour", "address", "route", "nexthop", "firewall"]

RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_NEXTHOP = 1, 3, 5, 9, 32
RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE = 7, 11
NFNLGRP_NFTABLES = 7
_GROUPS = (
    RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE,
    RTNLGRP_NEXTHOP,
)  # fmt: skip
_TABLE_NAME = 1  # NFTA_{TABLE_NAME,CHAIN_TABLE,RULE_TABLE,SET_TABLE,SET_ELEM_LIST_TABLE,OBJ_TABLE}
_CHAIN_CHANGES = (3, 5)  # NFT_MSG_NEWCHAIN, NFT_MSG_DELCHAIN
_CHAIN_NAME, _CHAIN_HOOK = 3, 4
_RECEIVE_BYTES = 1 << 16


class KernelEvent(msgspec.Struct, frozen=True):
    """Something changed. ``index`` and ``name``: of the device, 0 and "" where there is none; ``gone``: it was
    deleted; ``mine``: this daemon did it; ``row``: which FDB row or neighbour, where that is what changed."""

    what: What
    index: int = 0
    name: str = ""
    gone: bool = False
    mine: bool = False
    row: FdbKey | NeighKey | None = None

    @property
    def overrun(self) -> bool:
        """Tell it from Overrun."""
        return False


class Overrun(msgspec.Struct, frozen=True):
    """The kernel dropped events because its buffer was full: anything may have changed."""

    @property
    def overrun(self) -> bool:
        """Tell it from KernelEvent."""
        return True


class Watch:
    """Iterate over it: ``with Watch(echoes) as watch: async for event in watch``. Events queue in the kernel
    from the moment it is made, in the namespace it is made in. ``own``: pass on own changes as well; else
    ``port_id``, of the socket that writes, keeps some of them in the kernel; ``table``: ours. Raises KernelError."""

    def __init__(
        self,
        echoes: Echoes,
        *,
        own: bool = False,
        receive_bytes: int = NETLINK_RCVBUF_BYTES,
        port_id: int | None = None,
        table: str = names.MARK,
    ) -> None:
        self._table = table.encode()
        self._echoes = echoes
        self._own = own
        self._queue: collections.deque[KernelEvent | Overrun] = collections.deque()
        self._sockets: list[socket.socket] = []
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._more = False  # the sockets were not empty after the last reading
        self._epoll = select.epoll()
        try:
            self._join(netlink.NETLINK_ROUTE, _GROUPS, receive_bytes, None if own else port_id)
            try:
                self._join(netlink.NETLINK_NETFILTER, (NFNLGRP_NFTABLES,), receive_bytes, None)
            except OSError as error:
                if error.errno != errno.EPROTONOSUPPORT:
                    raise
            self._devices = {seen.ifindex: seen for seen in self._read_devices()}
        except OSError as error:
            self.close()
            raise KernelError(
                "watching the kernel", errno=error.errno or 0, words=error.strerror or str(error)
            ) from None
        except KernelError:
            self.close()
            raise
        self._ours = {index for index, seen in self._devices.items() if names.is_ours(seen.name)}
        echoes.listens = True

    def _join(self, protocol: int, groups: tuple[int, ...], receive_bytes: int, port_id: int | None) -> None:
        sock = netlink.open_socket(protocol, receive_bytes)
        self._sockets.append(sock)
        sock.setblocking(False)
        if port_id is not None:
            eventfilter.attach(sock, port_id)
        for group in groups:
            try:
                sock.setsockopt(netlink.SOL_NETLINK, netlink.NETLINK_ADD_MEMBERSHIP, group)
            except OSError:
                if group != RTNLGRP_NEXTHOP:  # kernel before 5.3
                    raise
        self._epoll.register(sock, select.EPOLLIN)

    def _read_devices(self) -> list[linkdump.Seen]:
        link = netlink.Netlink()
        try:
            return linkdump.parse_all(link.dump(linkdump.dump_request()))
        finally:
            link.close()

    def close(self) -> None:
        """Close the sockets."""
        self._echoes.listens = False
        self._epoll.close()
        for sock in self._sockets:
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> KernelEvent | Overrun:
        while not self._queue:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            if not self._more and self._echoes.expects_devices():
                await trio.sleep(EVENT_GATHER_S)
            self._read()
        return self._queue.popleft()

    def _read(self) -> None:
        """Take what the sockets have, at most EVENTS_PER_READ messages each."""
        self._more = False
        for sock, parse in zip(self._sockets, (self._rtnetlink, self._nftables), strict=False):
            for _ in range(EVENTS_PER_READ):
                try:
                    size = sock.recv_into(self._buffer)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    self._echoes.forget()
                    self._queue.append(Overrun())
                    continue
                chunk = bytes(memoryview(self._buffer)[:size])
                for kind, _, start, end in frames.split(chunk):
                    event = parse(kind, chunk, start, end)
                    if event is not None and (self._own or not event.mine):
                        self._queue.append(event)
            else:
                self._more = True

    def _rtnetlink(self, kind: int, chunk: bytes, start: int, end: int) -> KernelEvent | None:
        if kind in (rows.RTM_NEWNEIGH, rows.RTM_DELNEIGH):
            return self._row(chunk if end - start == len(chunk) else chunk[start:end])
        mine = self._echoes.is_port(frames.HEADER.unpack_from(chunk, start)[4])
        if kind in (linkdump.RTM_NEWLINK, linkdump.RTM_DELLINK):
            return self._link(kind == linkdump.RTM_DELLINK, mine, chunk, start, end)
        if kind in (nexthops.RTM_NEWNEXTHOP, nexthops.RTM_DELNEXTHOP):
            return KernelEvent("nexthop", gone=kind == nexthops.RTM_DELNEXTHOP, mine=mine)
        if kind in (hostroutes.RTM_NEWROUTE, hostroutes.RTM_DELROUTE):
            index, gone = hostroutes.parse_event(chunk, start, end), kind == hostroutes.RTM_DELROUTE
            name = self._name(index)
            mine = mine or (gone and self._echoes.leaving(name))
            return KernelEvent("route", index, name, gone, mine) if index else None
        if kind in (addresses.RTM_NEWADDR, addresses.RTM_DELADDR):
            address = addresses.parse_event(chunk, start, end)
            put = kind == addresses.RTM_NEWADDR
            note = ("addr", put, address.ifindex, address.ip, address.prefix)
            name = self._name(address.ifindex)
            mine = self._echoes.take_row(note) or mine or (not put and self._echoes.leaving(name))
            return KernelEvent("address", address.ifindex, name, not put, mine)
        return None

    def _row(self, message: bytes) -> KernelEvent | None:
        row = next(rows.parse(message, self._ours), None)
        if row is None:
            return None
        put = row.kind == rows.RTM_NEWNEIGH
        fdb = row.family == rows.AF_BRIDGE
        lasting = row.state & (rows.NUD_NOARP | rows.NUD_PERMANENT) or row.flags & rows.NTF_EXT_LEARNED
        kernels = (row.mac[:1] and row.mac[0] & 1 and not row.dst) or (
            row.master and row.state & rows.NUD_PERMANENT and not row.flags & rows.NTF_EXT_LEARNED
        )
        # A deleted neighbour has lost its marks by the time it is told of; a deleted FDB row has not.
        if kernels or not (lasting or (not put and not fdb)):
            return None
        if fdb:
            where, target = ("master" if row.master else "self"), (row.nhid or row.dst) if put else None
            noted = self._echoes.take_row((where, put, row.ifindex, row.mac, target))
        else:
            noted = self._echoes.take_row(("neigh", put, row.ifindex, row.dst or b"", None))
        name = self._name(row.ifindex)
        key: FdbKey | NeighKey = NeighKey(name, row.dst or b"")
        if fdb:
            every = not row.master and row.mac == BROADCAST
            key = FdbKey(name, row.mac, "master" if row.master else "self", row.dst or b"" if every else b"")
        mine = noted or self._echoes.is_port(frames.HEADER.unpack_from(message)[4])
        mine = mine or (not put and self._echoes.leaving(name))
        return KernelEvent("fdb" if fdb else "neighbour", row.ifindex, name, not put, mine, key)

    def _link(self, gone: bool, mine: bool, chunk: bytes, start: int, end: int) -> KernelEvent | None:
        """Keep the devices up to date; pass on only changes that show."""
        if chunk[start + frames.HEADER_BYTES] == rows.AF_BRIDGE:
            index, port = linkdump.parse_port(chunk, start, end)
            known = self._devices.get(index)
            if gone or known is None or known.port is None:
                return None  # a device that joins or leaves a bridge has an event of its own
            seen = known._replace(port=port)
        else:
            seen = linkdump.parse(chunk, start, end)
        if not gone and seen == self._devices.get(seen.ifindex):
            return None  # every other one that an attach causes
        before = self._devices.pop(seen.ifindex, None)
        self._ours.discard(seen.ifindex)
        if not gone:
            self._devices[seen.ifindex] = seen
            if names.is_ours(seen.name):
                self._ours.add(seen.ifindex)
            if before is not None and self._visible(before) == self._visible(seen):
                return None
        if before is not None and _lost_its_name(before.name, seen.name):
            return KernelEvent("link", seen.ifindex, before.name, gone=True)
        if seen.name.startswith(names.PEER) and names.is_ours(seen.name):
            return None  # on its way into a namespace; what matters happens to the other end
        state = None if gone else self._link_of(seen)
        noted = self._echoes.take_device(seen.name, state)
        return KernelEvent("link", seen.ifindex, seen.name, gone, noted or mine)

    def _visible(self, seen: linkdump.Seen) -> object:
        """What of a device can differ from what is wanted."""
        plain = (seen.name, seen.up, seen.mtu, seen.mac, seen.master)
        return plain, self._link_of(seen)

    def _link_of(self, seen: linkdump.Seen) -> Link | None:
        return linkdump.to_link(seen, self._name(seen.master) or None, self._name(seen.peer) or None)

    def _nftables(self, kind: int, chunk: bytes, start: int, end: int) -> KernelEvent | None:
        if kind >> 8 != nft.SUBSYSTEM or kind & 0xFF == nft.NFT_MSG_NEWGEN:
            return None
        said = frames.attributes(chunk, start + frames.HEADER_BYTES + 4, end)
        ours = said.get(_TABLE_NAME, b"").rstrip(b"\0") == self._table
        if not ours and not self._is_gate(kind & 0xFF, said, chunk[start:end]):
            return None
        return KernelEvent("firewall", mine=self._echoes.is_port(frames.HEADER.unpack_from(chunk, start)[4]))

    def _is_gate(self, kind: int, said: dict[int, bytes], message: bytes) -> bool:
        """Tell whether a change of somebody else's table may be one of a forward chain, or of our accepts in it."""
        if kind in _CHAIN_CHANGES:
            return (
                _CHAIN_HOOK in said or said.get(_CHAIN_NAME, b"").rstrip(b"\0") == gates.DOCKER_USER.encode()
            )
        return gates.PURPOSE.encode() in message

    def _name(self, index: int) -> str:
        seen = self._devices.get(index)
        return seen.name if seen else ""


def _lost_its_name(before: str, now: str) -> bool:
    """Tell whether a device of ours is called otherwise now; peers are, on their way into a namespace."""
    return names.is_ours(before) and not before.startswith(names.PEER) and not names.is_ours(now)
