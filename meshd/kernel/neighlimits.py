"""How many neighbours the kernel will learn, per family: gc_thresh3 of its tables, read by netlink (no privilege
needed, other than /proc the same in every namespace: the tables are the machine's). Decides nothing.

Layout: struct ndtmsg, NDTA_* and struct ndt_stats of linux/neighbour.h. Each table comes once with its thresholds,
and again without them for every device.
"""

import struct
from typing import NamedTuple

from meshd.kernel import frames, netlink

RTM_NEWNEIGHTBL, RTM_GETNEIGHTBL = 64, 66
_NDTMSG = struct.Struct("=Bxxx")
_NDTA_THRESH3, _NDTA_STATS = 4, 7
_U32, _STATS = (
    struct.Struct("=I"),
    struct.Struct("=11Q"),
)  # the last of the statistics is table_fulls (since 4.2)


class NeighLimit(NamedTuple):
    """``most``: learned neighbours kept at most (permanent ones do not count); ``refused``: how often the table
    was full since boot, 0 where the kernel does not say."""

    most: int
    refused: int


def read(link: netlink.Netlink) -> dict[int, NeighLimit]:
    """Return the limits by address family. Raises KernelError."""
    found: dict[int, NeighLimit] = {}
    for chunk in link.dump(frames.request(RTM_GETNEIGHTBL, 0, _NDTMSG.pack(0))):
        for kind, _, start, end in frames.split(chunk):
            if kind != RTM_NEWNEIGHTBL:
                continue
            (family,) = _NDTMSG.unpack_from(chunk, start + frames.HEADER_BYTES)
            told = frames.attributes(chunk, start + frames.HEADER_BYTES + _NDTMSG.size, end)
            most = told.get(_NDTA_THRESH3)
            if most is None:
                continue
            stats = told.get(_NDTA_STATS, b"")
            refused = _STATS.unpack_from(stats)[-1] if len(stats) >= _STATS.size else 0
            found[family] = NeighLimit(_U32.unpack(most)[0], refused)
    return found
