"""sd_notify(3): tell the service manager READY, STATUS, RELOADING, STOPPING, WATCHDOG. Silent where none listens."""

import os
import socket

import trio

from meshd.config import NOTIFY_AGAIN_S, STATUS_S
from meshd.shell.cluster import Cluster
from meshd.swim.members import State


def notify(*lines: str) -> bool:
    """Send ``KEY=VALUE`` lines to the service manager, without waiting for it. False: it does not keep up, say it
    again. A manager that is gone is nobody to tell.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return True
    address = "\0" + path[1:] if path.startswith("@") else path
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    try:
        with socket.socket(socket.AF_UNIX, kind) as sock:
            sock.sendto("\n".join(lines).encode(), address)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


async def notify_surely(*lines: str) -> None:
    """Send what the manager waits for, however long it takes it to read."""
    while not notify(*lines):  # noqa: ASYNC110 - the manager's socket tells nobody when it was read
        await trio.sleep(NOTIFY_AGAIN_S)


def status_line(cluster: Cluster) -> str:
    """Say in one line how this host is: what `systemctl status` shows."""
    states = [member.state for member in cluster.members.values()]
    hosts = ", ".join(
        f"{count} {state}" for state in State if state != State.LEFT and (count := states.count(state))
    )
    counts = cluster.reconciler.counts()
    drift = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    said = [
        f"{cluster.host_name(cluster.me)}: hosts: {hosts}",
        f"{len(cluster.attachments)} endpoints here",
        f"kernel {drift or 'in sync'}",
    ]
    if trouble := len(cluster.health()):
        said.append(f"{trouble} to see to (meshctl status)")
    return "STATUS=" + "; ".join(said)


async def keep_told(cluster: Cluster) -> None:
    """Tell the manager how this host is, for ever, whenever that has changed."""
    told = ""
    while True:
        line = status_line(cluster)
        if line != told and notify(line):
            told = line
        await trio.sleep(STATUS_S)
