"""Switches what a device is left to do, as ``ethtool -K`` does, which is not on every machine: imported, or run in a
namespace as ``python tests/ethtool.py DEVICE COMMAND VALUE``. Layouts: linux/ethtool.h (struct ethtool_value)."""

import array
import fcntl
import socket
import struct
import sys

SIOCETHTOOL = 0x8946
ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO = 0x17, 0x1F, 0x24


def switch(device: str, command: int, value: int) -> None:
    """Turn one of the above on (1) or off (0)."""
    with socket.socket() as any_socket:
        asked = array.array("B", struct.pack("=II", command, value))
        request = struct.pack("16sP16x", device.encode(), asked.buffer_info()[0])
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)


if __name__ == "__main__":
    switch(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
