"""The filter under an independent interpreter, and in the kernel on a loopback UDP socket."""

import ctypes
import errno
import random
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_material import Host, acquainted

from meshd.wire.filter import Instruction, pack, program

SO_ATTACH_FILTER = 26  # asm-generic/socket.h
TAG = b"\xde\xad\xbe\xef"


def interpret(instructions: list[Instruction], packet: bytes) -> int:
    """Classic BPF as bpf(4) describes it; a load beyond the packet returns 0."""
    accumulator, at = 0, 0
    while True:
        code, jump_true, jump_false, k = instructions[at]
        at += 1
        match code:
            case 0x80:
                accumulator = len(packet)
            case 0x20:
                if k + 4 > len(packet):
                    return 0
                accumulator = int.from_bytes(packet[k : k + 4], "big")
            case 0x30:
                if k >= len(packet):
                    return 0
                accumulator = packet[k]
            case 0x15:
                at += jump_true if accumulator == k else jump_false
            case 0x35:
                at += jump_true if accumulator >= k else jump_false
            case 0x06:
                return k
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


def wanted(payload: bytes) -> bool:
    return len(payload) >= 40 and payload[0] == 0x51 and payload[4:8] in (b"\0\0\0\0", TAG)


@given(
    st.sampled_from([b"\x51", b"\x50", b""]),
    st.binary(min_size=3, max_size=3),
    st.sampled_from([TAG, bytes(4), b"\xde\xad\xbe\xee", b"\0\0\0\1"]),
    st.binary(max_size=60),
)
def test_the_program_admits_exactly_what_it_should(version, rest, tag, tail):
    payload = version + rest + tag + tail
    assert interpret(program(TAG), bytes(8) + payload) == (0xFFFFFFFF if wanted(payload) else 0)


def test_a_tag_of_another_size_is_refused():
    with pytest.raises(ValueError):
        program(b"\0" * 8)


def test_the_packed_program_is_an_array_of_sock_filter():
    instructions = program(TAG)
    packed = pack(instructions)
    assert [struct.unpack_from("=HBBI", packed, at) for at in range(0, len(packed), 8)] == instructions


def attach(sock: socket.socket, packed: bytes) -> None:
    """SO_ATTACH_FILTER, as shell/ does it: struct sock_fprog {unsigned short len; struct sock_filter *filter}."""
    buffer = ctypes.create_string_buffer(packed, len(packed))
    sock.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(packed) // 8, ctypes.addressof(buffer))
    )


@pytest.mark.parametrize("family, address", [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_kernel_keeps_junk_out_of_the_socket(family, address):
    a, b = Host("a"), Host("b")
    b.sealer.learn(a.id, a.session)
    acquainted(a, b)
    rng = random.Random(1)
    good = [a.sealer.seal(b.id, bytes(n)) for n in (0, 1, 41, 1192)]
    hello = a.sealer.hello(0.0)
    junk = [
        b"",
        b"\x51",
        good[0][:39],
        b"\x50" + good[2][1:],
        good[2][:4] + b"\0\0\0\1" + good[2][8:],
        b.sealer.seal(a.id, bytes(50)),  # for another host
        *(rng.randbytes(rng.randrange(1, 1232)) for _ in range(50)),
    ]
    with (
        socket.socket(family, socket.SOCK_DGRAM) as receiver,
        socket.socket(family, socket.SOCK_DGRAM) as sender,
    ):
        try:
            receiver.bind((address, 0))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            pytest.skip(f"{address} is not on this host")
        attach(receiver, pack(program(b.sealer.tag)))
        receiver.settimeout(10.0)
        for one in junk:
            sender.sendto(one, receiver.getsockname())
        for one in (*good, hello):
            sender.sendto(one, receiver.getsockname())
        # Loopback keeps the order: had any junk been let in, it would come first.
        assert [receiver.recv(2048) for _ in range(len(good) + 1)] == [*good, hello]
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(2048)
