"""sd_notify(3): tell systemd READY, STATUS, STOPPING. Silent where no NOTIFY_SOCKET is set."""

import os
import socket


def notify(*lines: str) -> None:
    """Send ``KEY=VALUE`` lines to the service manager. A manager that is gone is nobody to tell."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto("\n".join(lines).encode(), address)
        except OSError:
            return
