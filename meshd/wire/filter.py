"""The classic BPF program that keeps junk out of the process: a UDP socket with it (SO_ATTACH_FILTER, which
needs no privilege) queues only datagrams that could be for this session. Decides nothing about keys.

The kernel runs a UDP socket's filter with offset 0 at the UDP header (net/ipv4/udp.c,
udp_queue_rcv_one_skb: sk_filter_trim_cap(sk, skb, sizeof(struct udphdr))), so the payload is at offset 8
and the length includes those 8 bytes. Loading it is shell/'s: a ``struct sock_fprog`` is
``unsigned short len; struct sock_filter *filter``.
"""

import struct
from typing import NamedTuple

from meshd.config import HEADER_BYTES, TAG_BYTES
from meshd.wire.header import DST_TAG_OFFSET, TAG_SIZE, VERSION

UDP_HEADER_BYTES = 8

# linux/bpf_common.h
_LD_WORD_LENGTH = 0x80  # BPF_LD | BPF_W | BPF_LEN
_LD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_LD_BYTE = 0x30  # BPF_LD | BPF_B | BPF_ABS
_JUMP_GE = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_JUMP_EQ = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_WHOLE = 0xFFFFFFFF  # keep every byte
_NOTHING = 0


class Instruction(NamedTuple):
    """``struct sock_filter``: jumps count the instructions to skip."""

    code: int
    jump_true: int
    jump_false: int
    k: int


def program(tag: bytes) -> list[Instruction]:
    """Admit datagrams of this wire version, at least as long as an empty sealed one, addressed to nobody yet
    known (destination tag 0: greetings) or to ``tag`` (4 bytes: ``Sealer.tag``).
    """
    if len(tag) != TAG_SIZE:
        raise ValueError("a destination tag is 4 bytes")
    return [
        Instruction(_LD_WORD_LENGTH, 0, 0, 0),
        Instruction(_JUMP_GE, 0, 6, UDP_HEADER_BYTES + HEADER_BYTES + TAG_BYTES),
        Instruction(_LD_BYTE, 0, 0, UDP_HEADER_BYTES),
        Instruction(_JUMP_EQ, 0, 4, VERSION),
        Instruction(_LD_WORD, 0, 0, UDP_HEADER_BYTES + DST_TAG_OFFSET),
        Instruction(_JUMP_EQ, 1, 0, 0),
        Instruction(_JUMP_EQ, 0, 1, int.from_bytes(tag, "big")),
        Instruction(_RETURN, 0, 0, _WHOLE),
        Instruction(_RETURN, 0, 0, _NOTHING),
    ]


def pack(instructions: list[Instruction]) -> bytes:
    """Lay the program out as an array of ``struct sock_filter`` (8 bytes each, this machine's byte order)."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
