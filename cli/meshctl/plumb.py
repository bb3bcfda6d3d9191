"""The caller's half of an attach: takes the link that the daemon made, puts it into the namespace, names and
configures it. Decides in which order, and what counts as done already; the daemon decides every value.

Each step looks first or is repeatable, so that an attach that was cut off anywhere is completed by the next one.
"""

import errno
import socket
from typing import Any

from meshctl import netns
from meshctl.errors import Failed
from meshctl.netlink import KernelRefused, Link, Netlink

NO_IPV6 = (
    errno.EAFNOSUPPORT,
    errno.EOPNOTSUPP,
)  # a kernel or namespace without IPv6 makes no link-local address


DEFAULTS = ("default", "0.0.0.0/0", "::/0")


def plumb(wanted: dict[str, Any], namespace: netns.Namespace) -> None:
    """Make the namespace's end what ``wanted``, the ``plumb`` object of POST /v1/endpoints, says.

    Raises Failed: what the kernel refused, in its words. What was done before that stays; the caller removes the
    endpoint, and the link goes with it.
    """
    with Netlink() as here, netns.inside(namespace.fd, namespace.path, Netlink) as there:
        link = _bring_in(wanted, namespace, here, there)
        _configure(wanted, link.number, there)


def _bring_in(wanted: dict[str, Any], namespace: netns.Namespace, here: Netlink, there: Netlink) -> Link:
    """Return the link, in the namespace and under its name there."""
    made, name = str(wanted["link"]), str(wanted["ifname"])
    outside, present = here.link(made), there.link(name)
    if present is not None:
        if outside is not None or present.mac != _packed_mac(wanted["mac"]):
            raise Failed(f"{namespace.path} has an interface {name} already", "--ifname names another")
        return present
    what = f"{made} cannot be moved into {namespace.path} as {name}"
    if outside is not None:
        try:
            here.move(what, outside.number, namespace.fd, name)
        except KernelRefused:
            if there.link(made) is None:  # else it was moved and only not renamed
                raise
    if (moved := there.link(made)) is not None:
        there.rename(what, moved.number, name)
    arrived = there.link(name)
    if arrived is None:
        raise Failed(
            f"the link {made} of this endpoint is gone: neither on this host nor in {namespace.path}",
            "detach the endpoint and attach again",
        )
    return arrived


def _configure(wanted: dict[str, Any], index: int, there: Netlink) -> None:
    name = wanted["ifname"]
    _loopback(there)
    if not wanted.get("ipv6"):
        _without_link_local(name, index, there)
    there.set_mtu(f"{name} cannot have an MTU of {wanted['mtu']}", index, int(wanted["mtu"]))
    for cidr in wanted["addresses"]:
        there.add_address(f"{name} cannot have the address {cidr}", index, cidr)
    there.up(f"{name} cannot be set up", index)
    for route in wanted["routes"]:
        _route(route, index, there)


def loopback_up(namespace: netns.Namespace) -> None:
    """Set up the loopback of a namespace that gets nothing else. Raises Failed."""
    with netns.inside(namespace.fd, namespace.path, Netlink) as there:
        _loopback(there)


def _loopback(there: Netlink) -> None:
    if (loopback := there.link("lo")) is not None:
        there.up("lo cannot be set up", loopback.number)


def _without_link_local(name: str, index: int, there: Netlink) -> None:
    try:
        there.no_link_local(f"{name} cannot be kept without a link-local address", index)
    except KernelRefused as error:
        if error.errno not in NO_IPV6:
            raise


def _route(route: dict[str, Any], index: int, there: Netlink) -> None:
    """Add a route unless it is there, from before.

    Of several networks the one attached first is the way out: each later one's default route has a higher metric,
    so that it takes over by itself when those before it are detached.
    """
    destination, via = str(route["dst"]), route.get("via")
    what = f"the route {destination} via {via} cannot be added"
    metric = None
    if destination in DEFAULTS:
        v6 = destination == "::/0" or (via is not None and ":" in via)
        others = there.default_routes(what, socket.AF_INET6 if v6 else socket.AF_INET)
        if any(other.number == index for other in others):
            return
        metric = max((other.metric + 1 for other in others), default=None)
    try:
        there.add_route(what, index, destination, via, metric)
    except KernelRefused as error:
        if error.errno != errno.EEXIST:
            raise


def _packed_mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
