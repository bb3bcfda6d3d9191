"""Who is at the other end of a local connection, and what that user may do. Decides on credentials that the
kernel recorded at connect(), never on anything the client wrote (snapd CVE-2019-7304). Knows no HTTP.
"""

import array
import errno
import socket
import struct
from typing import NamedTuple

from meshd import config

_SO_PEERGROUPS = 59
"""Linux 4.13, include/uapi/asm-generic/socket.h: supplementary groups at connect(); not in Python's socket."""
_UCRED = struct.Struct("=iII")


class Peer(NamedTuple):
    """The process that connected. ``groups`` are its primary and supplementary group ids."""

    uid: int
    gid: int
    pid: int
    groups: tuple[int, ...] = ()


def credentials(sock: socket.socket) -> Peer:
    """Read who connected (unix(7): SO_PEERCRED). Raises OSError when the socket is not a connected unix one.

    A peer with more groups than Python can read counts as being in none but its primary group.
    """
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    groups = array.array("I")
    try:
        groups.frombytes(sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, config.API_GROUPS_BYTES))
    except OSError as error:
        if error.errno not in (errno.ERANGE, errno.EINVAL, errno.ENOPROTOOPT):
            raise
    return Peer(uid, gid, pid, (gid, *groups))


class Access(NamedTuple):
    """The one rule of the local socket: root and the daemon's own user may do everything, group ``readers``
    may read, nobody else may do anything. ``readers`` is None where the group does not exist.
    """

    own_uid: int
    readers: int | None

    def may_change(self, peer: Peer) -> bool:
        """Say whether the peer may call what needs root."""
        return peer.uid in (0, self.own_uid)

    def may_read(self, peer: Peer) -> bool:
        """Say whether the peer may call anything at all."""
        return self.may_change(peer) or (
            self.readers is not None and self.readers in (peer.gid, *peer.groups)
        )
