"""The classic BPF program of the event socket: news of neighbours that we wrote ourselves never reach this process,
nor wake it, and no route but those that carry our protocol. Of 100,000 endpoints programmed the former are a third of the
events, all of them known beforehand; a router's own routes may change by the thousand.

The kernel runs it over each message as sent (net/netlink/af_netlink.c, do_one_broadcast), netlink header first.
Only new neighbours name who asked for them (nlmsg_pid): rows of bridges and vxlan devices, and whatever is
deleted, name nobody, and echoes.py has to tell ours from others'.
"""

import ctypes
import socket
import struct

from meshd.config import ROUTE_PROTOCOL
from meshd.kernel.hostroutes import RTM_DELROUTE, RTM_NEWROUTE
from meshd.kernel.rows import AF_BRIDGE, RTM_NEWNEIGH
from meshd.wire.filter import Instruction, pack

_LD_WORD, _LD_HALF, _LD_BYTE = 0x20, 0x28, 0x30  # BPF_LD | size | BPF_ABS; both words are read as big-endian
_JUMP_EQ, _RETURN = 0x15, 0x06
_WHOLE, _NOTHING = 0xFFFFFFFF, 0
_TYPE_AT, _PORT_AT, _FAMILY_AT, _PROTOCOL_AT = 4, 12, 16, 21
_SO_ATTACH_FILTER = 26
_INSTRUCTION_BYTES = 8


def program(port_id: int) -> list[Instruction]:
    """Drop new neighbours that ``port_id`` asked for and others' routes, and let all else through."""
    return [
        Instruction(_LD_HALF, 0, 0, _TYPE_AT),
        Instruction(_JUMP_EQ, 2, 0, _as_read("=H", RTM_NEWNEIGH)),
        Instruction(_JUMP_EQ, 5, 0, _as_read("=H", RTM_NEWROUTE)),
        Instruction(_JUMP_EQ, 4, 7, _as_read("=H", RTM_DELROUTE)),
        Instruction(_LD_BYTE, 0, 0, _FAMILY_AT),
        Instruction(_JUMP_EQ, 5, 0, AF_BRIDGE),
        Instruction(_LD_WORD, 0, 0, _PORT_AT),
        Instruction(_JUMP_EQ, 2, 3, _as_read("=I", port_id)),
        Instruction(_LD_BYTE, 0, 0, _PROTOCOL_AT),
        Instruction(_JUMP_EQ, 1, 0, ROUTE_PROTOCOL),
        Instruction(_RETURN, 0, 0, _NOTHING),
        Instruction(_RETURN, 0, 0, _WHOLE),
    ]


def _as_read(layout: str, value: int) -> int:
    """Return a value of this machine's byte order as the program reads it."""
    return int.from_bytes(struct.pack(layout, value), "big")


def attach(sock: socket.socket, port_id: int) -> None:
    """Have the kernel run the program for ``sock``. Raises OSError."""
    packed = pack(program(port_id))
    buffer = ctypes.create_string_buffer(packed, len(packed))
    head = struct.pack("@HP", len(packed) // _INSTRUCTION_BYTES, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, head)
