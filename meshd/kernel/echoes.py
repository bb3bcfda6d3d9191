"""Which kernel events are echoes of what we did ourselves. Netlink says who caused most of them (nlmsg_pid), but
not for rows of bridges and vxlan devices, deleted neighbours, v6 addresses and most changes of devices: there
it is 0. So what is about to be written is noted here, and its event crosses it off.

A row's note that no event crosses off (replacing a row by the same makes none) can hide only an event that
says what we had just written. A device passes through states on its way, so all its events are ours until
it is seen as it should be, for ECHO_DEVICE_S at most.

The worker thread notes, the loop's thread takes; each is one operation on a set or dict.
"""

import collections
import time
from collections.abc import Iterable

import msgspec

from meshd.config import ECHO_DEVICE_S, ECHOES_MAX
from meshd.plan.objects import Link

_CHILDREN = 8

RowNote = tuple[str, bool, int, bytes, int | bytes | None]
"""(kind of row, put or deleted, ifindex, MAC or address, what tells this version of it from another)."""


class Echoes:
    """Notes of own changes; kept only while somebody ``listens``."""

    def __init__(self) -> None:
        self.listens = False
        self._rows: set[int] = set()
        self._devices: dict[str, tuple[Link | None, float]] = {}
        self._until = 0.0  # when the last of those is not expected any more
        self._ports: set[int] = set()
        self._children: collections.deque[int] = collections.deque(maxlen=_CHILDREN)

    def port(self, port_id: int) -> None:
        """Note the netlink port of a socket of ours."""
        self._ports.add(port_id)

    def child(self, process_id: int) -> None:
        """Note an nft that we started: the kernel names a process's first netlink socket after it. Only the
        latest are kept, since process ids come round again."""
        self._children.append(process_id)

    def is_port(self, port_id: int) -> bool:
        """Tell whether a port is ours."""
        return port_id in self._ports or port_id in self._children

    def row(self, note: RowNote) -> None:
        """Note a row about to be written or deleted."""
        if self.listens:
            if len(self._rows) >= ECHOES_MAX:
                self._rows.clear()
            self._rows.add(hash(note))

    def rows(self, notes: Iterable[RowNote]) -> None:
        """Note many rows at once: they are written 100,000 at a time."""
        if self.listens:
            if len(self._rows) >= ECHOES_MAX:
                self._rows.clear()
            self._rows.update(map(hash, notes))

    def take_row(self, note: RowNote) -> bool:
        """Cross a row off and tell whether it was noted."""
        noted = hash(note) in self._rows
        self._rows.discard(hash(note))
        return noted

    def device(self, name: str, final: Link | None) -> None:
        """Note a device about to become ``final``, or None: to be deleted."""
        if self.listens:
            self._until = time.monotonic() + ECHO_DEVICE_S
            self._devices[name] = (final, self._until)

    def expects_devices(self) -> bool:
        """Tell whether a change of a device by us is under way, of which the kernel tells a dozen times."""
        return bool(self._devices) and time.monotonic() <= self._until

    def take_device(self, name: str, state: Link | None) -> bool:
        """Tell whether a device's new state (None: gone) is on the way to what was noted; its arrival there
        crosses it off."""
        final, until = self._devices.get(name, (None, 0.0))
        if time.monotonic() > until:
            self._devices.pop(name, None)
            return False
        if state is not None and final is not None:
            mac, narrow = None if final.mac is None else state.mac, state.narrow and final.narrow
            mtu = state.mtu if final.mtu else 0
            state = msgspec.structs.replace(state, mac=mac, mtu=mtu, narrow=narrow, peer=final.peer)
        if state == final:
            self._devices.pop(name, None)
        return True

    def leaving(self, name: str) -> bool:
        """Tell whether we are deleting a device: its rows and addresses go with it."""
        final, until = self._devices.get(name, (None, 0.0))
        return final is None and time.monotonic() <= until

    def forget(self) -> None:
        """Events were lost: what is still noted may never come."""
        self._rows.clear()
        self._devices.clear()
