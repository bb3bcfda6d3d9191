"""Decides what an operator must know about this host's packet forwarding: that it is off where a network needs it, or
that it costs the host its own IPv6 default route. The daemon changes nothing of this: /proc/sys is read-only to it,
and the knobs are the operator's. Must not know how they are read (kernel/forwarding.py).

A forwarding host ignores router advertisements unless accept_ra is 2, and at the moment forwarding is turned on it
drops the default routes it had from them (net/ipv6/addrconf.c; Documentation/networking/ip-sysctl.rst).
"""

from collections.abc import Iterable

import msgspec

ACCEPT_UNLESS_FORWARDING = 1
"""accept_ra: 0 never, 1 unless forwarding, 2 always."""


class Device(msgspec.Struct, frozen=True):
    """A device that is not ours, as far as IPv6 goes. ``accept_ra``: see ACCEPT_UNLESS_FORWARDING. ``ra_route``: it
    has a default route from a router advertisement; ``autoconf``: an address that expires."""

    name: str
    forwarding: bool
    accept_ra: int
    ra_route: bool
    autoconf: bool


class Forwarding(msgspec.Struct, frozen=True):
    """What the kernel forwards: net.ipv4.conf.all, net.ipv6.conf.all, and the devices."""

    v4: bool
    v6: bool
    devices: tuple[Device, ...] = ()


def advice(seen: Forwarding, v4_networks: Iterable[str], v6_networks: Iterable[str]) -> list[str]:
    """Return a line for each thing to see to, with the command that does it. The names are those of networks here
    whose endpoints are to reach the outside over that family."""
    lines = []
    for family, on, knob, names in (
        ("IPv4", seen.v4, "net/ipv4/ip_forward=1", sorted(v4_networks)),
        ("IPv6", seen.v6, "net/ipv6/conf/all/forwarding=1", sorted(v6_networks)),
    ):
        if names and not on:
            first = _keeping(seen) if family == "IPv6" else []
            more = f" and {len(names) - 1} more networks" if len(names) > 1 else ""
            lines.append(
                f"{family} is not forwarded on this host: endpoints of network {names[0]}{more} do not reach the "
                f"outside; run: sysctl -w {' '.join([*first, knob])}"
            )
    lines += [
        f"{device.name} ignores router advertisements since this host forwards IPv6: its default route is gone or "
        f"will be; run: sysctl -w {_always(device)}"
        for device in seen.devices
        if device.forwarding and _learns(device)
    ]
    return lines


def _learns(device: Device) -> bool:
    """Whether the kernel took routes from advertisements on this device, and will not while it forwards."""
    return device.accept_ra == ACCEPT_UNLESS_FORWARDING and (device.ra_route or device.autoconf)


def _keeping(seen: Forwarding) -> list[str]:
    """List what is to be set before forwarding, so that no default route is lost by it."""
    return [_always(device) for device in seen.devices if _learns(device)]


def _always(device: Device) -> str:
    """Slashes, since a device's name may have dots."""
    return f"net/ipv6/conf/{device.name}/accept_ra=2"
