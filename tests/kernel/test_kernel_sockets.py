"""Which ports this host's own sockets have: iproute2's ss is not asked, the sockets are real."""

import contextlib
import socket

import pytest

from meshd.kernel.sockets import Listener, listeners

TCP, UDP = 6, 17
V6 = bytes(15) + b"\x01"


@pytest.fixture
def opened_here(netns):
    """Open sockets in the namespace: ``opened_here(family, kind, address)`` gives the port."""
    with contextlib.ExitStack() as stack:

        def open_one(family, kind, address, *, v6only=None, to=None):
            def work():
                sock = stack.enter_context(socket.socket(family, kind))
                if v6only is not None:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
                sock.bind((address, 0))
                if to is not None:
                    sock.connect(to)
                elif kind == socket.SOCK_STREAM:
                    sock.listen()
                return sock.getsockname()[1]

            return netns.call(work)

        yield open_one


def test_listening_and_bound_sockets_are_found_with_address_and_families(netns, opened_here):
    tcp = opened_here(socket.AF_INET, socket.SOCK_STREAM, "0.0.0.0")
    local = opened_here(socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1")
    udp = opened_here(socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1")
    both = opened_here(socket.AF_INET6, socket.SOCK_STREAM, "::", v6only=0)
    only = opened_here(socket.AF_INET6, socket.SOCK_DGRAM, "::", v6only=1)
    one = opened_here(socket.AF_INET6, socket.SOCK_STREAM, "::1")
    found = netns.call(listeners)
    assert len({one.inode for one in found} - {0}) == 6
    assert {one._replace(inode=0) for one in found} == {
        Listener(TCP, (4,), None, tcp, 0),
        Listener(TCP, (4,), bytes((127, 0, 0, 1)), local, 0),
        Listener(UDP, (4,), bytes((127, 0, 0, 1)), udp, 0),
        Listener(TCP, (4, 6), None, both, 0),
        Listener(UDP, (6,), None, only, 0),
        Listener(TCP, (6,), V6, one, 0),
    }


def test_a_connected_socket_has_no_port_for_others(netns, opened_here):
    opened_here(socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1", to=("127.0.0.1", 9))
    assert netns.call(listeners) == []


def test_the_kernels_own_vxlan_socket_shows_too(netns):
    netns.run("ip", "link", "add", "vx9", "type", "vxlan", "id", "9", "dstport", "4789", "local", "127.0.0.1")
    netns.run("ip", "link", "set", "vx9", "up")
    assert [(found.protocol, found.port) for found in netns.call(listeners)] == [(UDP, 4789)]
