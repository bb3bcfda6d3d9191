"""Frames made by hand: Ethernet, ARP, IPv4, IPv6, UDP, ICMPv6, VXLAN. Checksums only where a receiver would look."""

import struct

ARP, IP, IP6, VLAN = 0x0806, 0x0800, 0x86DD, 0x8100


def ether(dst, src, kind, payload):
    return dst + src + struct.pack(">H", kind) + payload


def udp(sport, dport, payload):
    return struct.pack(">HHHH", sport, dport, 8 + len(payload), 0) + payload


def _sum(data):
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip4(src, dst, payload, protocol=17):
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0, src, dst)
    return head[:10] + struct.pack(">H", _sum(head)) + head[12:] + payload


def ip6(src, dst, payload, protocol=17):
    return struct.pack(">IHBB16s16s", 6 << 28, len(payload), protocol, 255, src, dst) + payload


def icmp6(kind, body):
    return struct.pack(">BBH", kind, 0, 0) + body


def neighbour(kind, target, tail=b""):
    """Neighbour solicitation (135) or advertisement (136)."""
    return icmp6(kind, bytes(4) + target + tail)


def arp(operation, sender_mac, sender, target_mac, target):
    return struct.pack(">HHBBH6s4s6s4s", 1, IP, 6, 4, operation, sender_mac, sender, target_mac, target)


def vxlan(vni, frame):
    return struct.pack(">II", 0x08000000, vni << 8) + frame


def checked(src, dst, protocol, segment):
    """A UDP or TCP segment in a packet, its checksum right, so that a receiver's conntrack takes it for valid."""
    at = {17: 6, 6: 16}[protocol]
    if len(src) == 4:
        pseudo = struct.pack(">4s4sBBH", src, dst, 0, protocol, len(segment))
    else:
        pseudo = struct.pack(">16s16sIHBB", src, dst, len(segment), 0, 0, protocol)
    segment = segment[:at] + struct.pack(">H", _sum(pseudo + segment) or 0xFFFF) + segment[at + 2 :]
    return (ip4 if len(src) == 4 else ip6)(src, dst, segment, protocol)


def syn(sport, dport, payload):
    """A TCP segment that begins a connection, with data, which a listener ignores."""
    return struct.pack(">HHIIBBHHH", sport, dport, 1, 0, 5 << 4, 2, 65535, 0, 0) + payload
