"""The lab's wires: network namespaces that stand for hosts, containers and the LAN between the hosts.

Decides names and addresses; runs ``ip``. Must not know what runs in a namespace. All names of one lab start
with its id, so that whatever is left of it can be found; all addresses are documentation ranges (RFC 5737,
RFC 3849) and live only inside these namespaces.
"""

import os
import secrets
import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress

from meshctl.errors import Failed

UNDERLAY_MTU = 1500
LAN_BRIDGE = "br0"
GATEWAY_NUMBER = 254  # the LAN bridge's own address: the hosts' default route, and an "outside" to reach


def new_id() -> str:
    """Return an id for a lab, which starts the names of all its namespaces."""
    return f"ml-{secrets.token_hex(3)}"


def host_namespace(lab: str, number: int) -> str:
    """Name host ``number``'s namespace; numbers start at 1."""
    return f"{lab}-h{number}"


def lan_namespace(lab: str) -> str:
    """Name the namespace with the bridge that joins the hosts."""
    return f"{lab}-lan"


def container_namespace(lab: str, name: str) -> str:
    """Name the namespace that stands for a container on this machine."""
    return f"{lab}-c{name}"


def address(number: int, family: int = 4) -> str:
    """Return host ``number``'s underlay address (``family`` 4 or 6)."""
    return f"192.0.2.{number}" if family == 4 else f"2001:db8::{number:x}"


def ip(*args: str) -> str:
    """Run ``ip ARGS`` and return what it printed. Raises Failed with the kernel's words."""
    done = subprocess.run(["ip", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"ip {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


def batch(namespace: str, commands: Iterable[str]) -> None:
    """Run many ``ip`` commands in one process, in a namespace. Raises Failed with the kernel's words."""
    done = subprocess.run(
        ["ip", "-n", namespace, "-batch", "-"],
        input="\n".join(commands),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed(f"ip -n {namespace}: {done.stderr.strip()}")


def set_sysctls(namespace: str, values: dict[str, str]) -> None:
    """Write /proc/sys knobs of a namespace: names with slashes, below ``net/``."""
    script = 'while [ $# -gt 1 ]; do echo "$2" >"/proc/sys/net/$1"; shift 2; done'
    pairs = [word for pair in values.items() for word in pair]
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, "sh", "-ec", script, "sh", *pairs],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Failed(f"sysctl in {namespace}: {done.stderr.strip()}")


def make_lan(lab: str, hosts: int, mtu: int = UNDERLAY_MTU) -> None:
    """Make the LAN and ``hosts`` namespaces on it, each with eth0, addresses, a default route and forwarding.
    ``mtu``: bytes that the LAN carries."""
    lan = lan_namespace(lab)
    ip("netns", "add", lan)
    set_sysctls(lan, {"ipv6/conf/default/accept_dad": "0"})
    batch(lan, [
        "link set lo up",
        f"link add {LAN_BRIDGE} type bridge mcast_snooping 0",
        f"addr add {address(GATEWAY_NUMBER)}/24 dev {LAN_BRIDGE}",
        f"addr add {address(GATEWAY_NUMBER, 6)}/64 dev {LAN_BRIDGE} nodad",
        f"link set {LAN_BRIDGE} up",
    ])  # fmt: skip
    for number in range(1, hosts + 1):
        host = host_namespace(lab, number)
        ip("netns", "add", host)
        # what systemd/90-meshd.conf sets on a real host
        set_sysctls(host, {
            "ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
            "ipv4/conf/all/arp_notify": "1", "ipv6/conf/all/ndisc_notify": "1",
        })  # fmt: skip
        batch(lan, [
            f"link add p{number} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {host}",
            f"link set p{number} master {LAN_BRIDGE} up",
        ])  # fmt: skip
        batch(host, [
            "link set lo up",
            "link set eth0 up",
            f"addr add {address(number)}/24 dev eth0",
            f"addr add {address(number, 6)}/64 dev eth0 nodad",
            f"route add default via {address(GATEWAY_NUMBER)}",
            f"route add default via {address(GATEWAY_NUMBER, 6)}",
        ])  # fmt: skip


def make_container(lab: str, name: str) -> str:
    """Make the namespace of a container with nothing but its loopback, and return its name."""
    namespace = container_namespace(lab, name)
    ip("netns", "add", namespace)
    ip("-n", namespace, "link", "set", "lo", "up")
    return namespace


def remove(lab: str) -> None:
    """Remove every namespace of a lab, ending what still runs in them. What is gone already is no error."""
    for line in ip("netns", "list").splitlines():
        namespace = line.split()[0]
        if namespace.startswith(f"{lab}-"):
            for pid in ip("netns", "pids", namespace).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            ip("netns", "delete", namespace)
