"""The few rtnetlink messages that plumbing takes, packed by hand: find, move, rename and set a link, add an address
and a route. Knows no policy; every call is one message and waits for the kernel's verdict.

Layouts: linux/netlink.h, linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h. All of it is host byte order but
addresses. pyroute2 would cost more than all the rest of the command.
"""

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from meshctl.errors import Failed

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_ACK_TLVS = 0x200  # on an NLMSG_ERROR
NLMSGERR_ATTR_MSG = 1
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 270, 10, 11
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_GETROUTE = 16, 18, 20, 24, 26
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_AF_SPEC, IFLA_NET_NS_FD = 1, 3, 4, 26, 28
IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_NONE = 8, 1
IFF_UP = 0x1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_F_NODAD = 1, 2, 8, 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY = 1, 4, 5, 6
RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST = 254, 4, 1
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253

HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
IFINFO = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
IFADDR = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
RTMSG = struct.Struct(
    "=BBBBBBBBI"
)  # rtmsg: family, dst len, src len, tos, table, protocol, scope, type, flags
ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
ANSWER_MAX_BYTES = 64 * 1024  # a link with all its attributes is about 2 KiB


class KernelRefused(Failed):
    """The kernel said no. ``errno``: positive."""

    def __init__(self, what: str, errno: int, words: str) -> None:
        said = words or os.strerror(errno)
        super().__init__(f"{what}: {said[:1].lower()}{said[1:].rstrip('.')}")
        self.errno = errno


class Link(NamedTuple):
    """What is asked about a link. ``mac``: 6 bytes, or b"" where it has none."""

    number: int
    mac: bytes


class Default(NamedTuple):
    """A default route: its link's number and its metric."""

    number: int
    metric: int


class Netlink:
    """One socket. It speaks for ever for the namespace that its thread was in when it was made."""

    def __init__(self) -> None:
        self.socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self.socket.bind((0, 0))
        self.socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self.socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self.sequence = 0

    def __enter__(self) -> "Netlink":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def link(self, name: str) -> Link | None:
        """Return the link of that name, or None."""
        body = IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _attribute(IFLA_IFNAME, name.encode() + b"\0")
        try:
            answer = self._ask(f"{name} cannot be looked up", RTM_GETLINK, 0, body)
        except KernelRefused as error:
            if error.errno == 19:  # ENODEV
                return None
            raise
        found = dict(_attributes(answer[IFINFO.size :]))
        return Link(IFINFO.unpack_from(answer)[2], found.get(IFLA_ADDRESS, b""))

    def move(self, what: str, index: int, namespace_fd: int, name: str) -> None:
        """Move a link into another namespace and name it there. Where the name is taken there, the kernel may have
        moved it already.
        """
        attributes = _attribute(IFLA_NET_NS_FD, struct.pack("=I", namespace_fd))
        self._set(what, index, attributes + _attribute(IFLA_IFNAME, name.encode() + b"\0"))

    def rename(self, what: str, index: int, name: str) -> None:
        """Rename a link that is down."""
        self._set(what, index, _attribute(IFLA_IFNAME, name.encode() + b"\0"))

    def set_mtu(self, what: str, index: int, mtu: int) -> None:
        """Set a link's MTU in bytes."""
        self._set(what, index, _attribute(IFLA_MTU, struct.pack("=I", mtu)))

    def no_link_local(self, what: str, index: int) -> None:
        """Keep the kernel from giving the link an IPv6 link-local address (ip link set addrgenmode none)."""
        mode = _attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([ADDR_GEN_NONE]))
        family = _attribute(socket.AF_INET6 | NLA_F_NESTED, mode)
        self._set(what, index, _attribute(IFLA_AF_SPEC | NLA_F_NESTED, family))

    def up(self, what: str, index: int) -> None:
        """Set a link up."""
        self._set(what, index, b"", IFF_UP)

    def add_address(self, what: str, index: int, cidr: str) -> None:
        """Add an address, e.g. 10.1.0.2/20, or leave it if it is there; IPv6 ones are usable at once (RFC 4862's
        duplicate detection is off: meshd never gives one out twice).
        """
        interface = ipaddress.ip_interface(cidr)
        family, packed = _family(interface.ip), interface.ip.packed
        body = IFADDR.pack(family, interface.network.prefixlen, 0, RT_SCOPE_UNIVERSE, index)
        body += _attribute(IFA_LOCAL, packed) + _attribute(IFA_ADDRESS, packed)
        if family == socket.AF_INET6:
            body += _attribute(IFA_FLAGS, struct.pack("=I", IFA_F_NODAD))
        self._ask(what, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body)

    def default_routes(self, what: str, family: int) -> list[Default]:
        """Return the default routes of the main table."""
        body = RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)
        found: list[Default] = []
        for answer in self._dump(what, RTM_GETROUTE, body):
            _, length, _, _, table, _, _, kind, _ = RTMSG.unpack_from(answer)
            if length or table != RT_TABLE_MAIN or kind != RTN_UNICAST:
                continue
            said = dict(_attributes(answer[RTMSG.size :]))
            number, metric = (int.from_bytes(said.get(k, b""), "little") for k in (RTA_OIF, RTA_PRIORITY))
            found.append(Default(number, metric))
        return found

    def add_route(
        self, what: str, index: int, destination: str, via: str | None, metric: int | None = None
    ) -> None:
        """Add a route (``destination``: CIDR or "default"). Raises KernelRefused with EEXIST where there is one."""
        if destination == "default":
            destination = "0.0.0.0/0" if via is None or ":" not in via else "::/0"
        network = ipaddress.ip_network(destination)
        scope = RT_SCOPE_LINK if via is None and network.version == 4 else RT_SCOPE_UNIVERSE
        body = RTMSG.pack(
            _family(network.network_address), network.prefixlen, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0
        )  # fmt: skip
        if network.prefixlen:
            body += _attribute(RTA_DST, network.network_address.packed)
        if via is not None:
            body += _attribute(RTA_GATEWAY, ipaddress.ip_address(via).packed)
        body += _attribute(RTA_OIF, struct.pack("=i", index))
        if metric is not None:
            body += _attribute(RTA_PRIORITY, struct.pack("=I", metric))
        self._ask(what, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body)

    def _set(self, what: str, index: int, attributes: bytes, flags: int = 0) -> None:
        self._ask(what, RTM_NEWLINK, 0, IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, flags) + attributes)

    def _dump(self, what: str, kind: int, body: bytes) -> list[bytes]:
        """Send one request for all there is of a kind; return the bodies of the answers."""
        self.sequence += 1
        header = HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, self.sequence, 0)
        self.socket.send(header + body)
        found: list[bytes] = []
        while True:
            for answered, _, sequence, payload in _messages(self.socket.recv(ANSWER_MAX_BYTES)):
                if sequence != self.sequence:
                    continue
                if answered not in (NLMSG_DONE, NLMSG_ERROR):
                    found.append(payload)
                    continue
                code = -int(struct.unpack_from("=i", payload)[0]) if len(payload) >= 4 else 0
                if code:
                    raise KernelRefused(what, code, "")
                return found

    def _ask(self, what: str, kind: int, flags: int, body: bytes) -> bytes:
        """Send one message; return the body of the answer to it, b"" for a bare acknowledgement."""
        self.sequence += 1
        asked = flags | NLM_F_REQUEST | NLM_F_ACK
        self.socket.send(HEADER.pack(HEADER.size + len(body), kind, asked, self.sequence, 0) + body)
        answer = b""
        while True:
            for answered, answer_flags, sequence, payload in _messages(self.socket.recv(ANSWER_MAX_BYTES)):
                if sequence != self.sequence:
                    continue
                if answered != NLMSG_ERROR:
                    answer = payload
                    continue
                code = -int(struct.unpack_from("=i", payload)[0])
                if code:
                    raise KernelRefused(what, code, _kernel_words(answer_flags, payload))
                return answer


def _kernel_words(flags: int, payload: bytes) -> str:
    """Return the extended acknowledgement's text, or ""."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    said = dict(_attributes(payload[4 + HEADER.size :])).get(NLMSGERR_ATTR_MSG, b"")
    return said.rstrip(b"\0").decode(errors="replace")


def _family(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _attribute(kind: int, payload: bytes) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(data)
        if length < ATTRIBUTE.size:
            return
        yield kind & NLA_TYPE_MASK, data[ATTRIBUTE.size : length]
        data = data[length + (-length % 4) :]


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    while len(data) >= HEADER.size:
        length, kind, flags, sequence, _ = HEADER.unpack_from(data)
        if length < HEADER.size:
            return
        yield kind, flags, sequence, data[HEADER.size : length]
        data = data[length + (-length % 4) :]
