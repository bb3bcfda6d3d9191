"""Which checksums a network card is left to compute, and who made its driver: read by ioctl, which asks for no
privilege. Decides nothing of it.

Layouts: linux/ethtool.h (ETHTOOL_GDRVINFO, GSSET_INFO, GSTRINGS, GFEATURES), linux/sockios.h.
"""

import array
import fcntl
import socket
import struct
from collections.abc import Iterable, Iterator

import msgspec

from meshd.kernel import linkdump

SIOCETHTOOL = 0x8946
ETHTOOL_GDRVINFO, ETHTOOL_GSTRINGS, ETHTOOL_GSSET_INFO, ETHTOOL_GFEATURES = 0x03, 0x1B, 0x37, 0x3A
ETH_SS_FEATURES = 4
_STRING_BYTES = 32
_DRVINFO_BYTES, _DRIVER_AT = 196, 4
_BLOCK = struct.Struct(
    "=4I"
)  # struct ethtool_get_features_block: available, requested, active, never changed
_IFREQ = struct.Struct("16sP16x")

CHECKSUMS = ("tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-checksum-ipv6")
TUNNELS = ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")
"""As ``ethtool -k`` calls them."""


class Device(msgspec.Struct, frozen=True):
    """``active``: those of CHECKSUMS and TUNNELS that are on; ``driver``: "" where the kernel does not say."""

    name: str
    driver: str
    active: tuple[str, ...]

    @property
    def computes(self) -> bool:
        """Tell whether the card is left to compute checksums; else the kernel has done it before."""
        return any(name in self.active for name in CHECKSUMS)


def read(names: Iterable[str]) -> list[Device]:
    """Read these devices; one that is gone, or that ethtool knows nothing of, is left out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        found = [_read(any_socket.fileno(), name) for name in names]
    return [device for device in found if device is not None]


def stack(seen: Iterable[linkdump.Seen], tops: Iterable[int]) -> list[str]:
    """Return the names of the devices with these ifindexes and of those that they stand on, from the top: a bond's or
    bridge's ports, a VLAN's parent. Ports that lead into containers carry nothing of the underlay's."""
    devices = {each.ifindex: each for each in seen}
    found: dict[int, str] = {}
    todo = [*tops]
    while todo:
        index = todo.pop(0)
        if index in found or index not in devices:
            continue
        device = devices[index]
        found[index] = device.name
        todo += [
            at for at, each in devices.items() if each.master == index and each.kind not in ("veth", "vxlan")
        ]
        if device.kind != "veth" and not device.elsewhere:
            todo.append(device.peer)
    return [*found.values()]


def _read(any_socket: int, name: str) -> Device | None:
    try:
        active = tuple(_active(any_socket, name))
    except OSError:
        return None
    try:
        told = _ask(any_socket, name, struct.pack("=I", ETHTOOL_GDRVINFO).ljust(_DRVINFO_BYTES, b"\0"))
    except OSError:
        told = bytes(_DRVINFO_BYTES)
    return Device(name, _text(told[_DRIVER_AT : _DRIVER_AT + _STRING_BYTES]), active)


def _active(any_socket: int, name: str) -> Iterator[str]:
    """Yield those of CHECKSUMS and TUNNELS that are on. Raises OSError."""
    info = _ask(any_socket, name, struct.pack("=IIQI", ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0))
    (count,) = struct.unpack_from("=I", info, 16)
    head = struct.pack("=III", ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count)
    strings = _ask(any_socket, name, head + bytes(count * _STRING_BYTES))[len(head) :]
    blocks = (count + 31) // 32
    head = struct.pack("=II", ETHTOOL_GFEATURES, blocks)
    features = _ask(any_socket, name, head + bytes(blocks * _BLOCK.size))[len(head) :]
    for number in range(count):
        called = _text(strings[number * _STRING_BYTES : (number + 1) * _STRING_BYTES])
        _, _, active, _ = _BLOCK.unpack_from(features, number // 32 * _BLOCK.size)
        if called in CHECKSUMS + TUNNELS and active >> number % 32 & 1:
            yield called


def _ask(any_socket: int, name: str, request: bytes) -> bytes:
    """Have the kernel fill in a request of ethtool's. Raises OSError."""
    buffer = array.array("B", request)
    fcntl.ioctl(any_socket, SIOCETHTOOL, _IFREQ.pack(name.encode(), buffer.buffer_info()[0]))
    return buffer.tobytes()


def _text(value: bytes) -> str:
    return value.partition(b"\0")[0].decode(errors="replace")
