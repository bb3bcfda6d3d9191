"""The result of an ADD in each version's shape, alone or behind that of the plugins before ours in the chain
(SPEC.md 1.1.0, section 5; 0.4.0 and 0.3.1: "Result"). Values in, values out.

What our part of it says is what CHECK looks for in prevResult.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from meshd.api.cniconfig import INVALID, CniRefusal, Config, Dns, lower, shown
from meshd.kernel.inside import Route
from meshd.model import text_ip

PARTS = ("interfaces", "ips", "routes")


class Interface(msgspec.Struct, frozen=True):
    """One interface; ``sandbox`` "" is the host's namespace, ``mac`` "" not said."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""


class Given(msgspec.Struct, frozen=True):
    """What our plugin made. ``ips``: (text with prefix length, gateway or ""), all of the last interface."""

    interfaces: Sequence[Interface]
    ips: Sequence[tuple[str, str]]
    routes: Sequence[Route]
    dns: Dns


def previous(config: Config) -> dict[str, Any]:
    """Return prevResult, {} where there is none. Raises CniRefusal where it has another form than a result."""
    found = config.raw.get("prevResult")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise CniRefusal(INVALID, f"prevResult: {shown(found)} is not an object")
    for part in PARTS:
        listed = found.get(part)
        if listed is not None and not (
            isinstance(listed, list) and all(isinstance(one, dict) for one in listed)
        ):
            raise CniRefusal(INVALID, f"prevResult.{part}: {shown(listed)} is not a list of objects")
    return found


def result(config: Config, given: Given) -> bytes:
    """Write the result: what came before ours, then ours; other keys of prevResult are passed through."""
    before = previous(config)
    interfaces, ips, routes = (list(before.get(part) or ()) for part in PARTS)
    ours = len(interfaces) + len(given.interfaces) - 1
    detailed = config.version == "1.1.0"
    interfaces += [_interface(one, with_mtu=detailed) for one in given.interfaces]
    ips += [_ip(config.version, address, gateway, ours) for address, gateway in given.ips]
    routes += [_route(route, with_priority=detailed) for route in given.routes]
    dns = {key: value for key, value in msgspec.to_builtins(given.dns).items() if value}
    told = {**before, "cniVersion": config.version, "interfaces": interfaces, "ips": ips, "routes": routes}
    told["dns"] = before.get("dns") or dns
    return msgspec.json.encode(told) + b"\n"


def _interface(one: Interface, *, with_mtu: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"name": one.name}
    if one.mac:
        told["mac"] = one.mac
    if with_mtu and one.mtu:
        told["mtu"] = one.mtu
    if one.sandbox:
        told["sandbox"] = one.sandbox
    return told


def _ip(version: str, address: str, gateway: str, interface: int) -> dict[str, Any]:
    told: dict[str, Any] = {"interface": interface, "address": address}
    if version in ("0.3.1", "0.4.0"):
        told["version"] = "6" if ":" in address else "4"
    if gateway:
        told["gateway"] = gateway
    return told


def _route(route: Route, *, with_priority: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"dst": str(route.dst)}
    if route.via is not None:
        told["gw"] = text_ip(route.via)
    if with_priority and route.metric is not None:
        told["priority"] = route.metric
    return told


def says(before: Mapping[str, Any], sandbox: str, ifname: str) -> tuple[str, set[str], set[tuple[str, str]]]:
    """Return what a result says of one interface in a container: MAC, addresses with prefix length, and of the whole
    namespace the default routes as (dst, gateway)."""
    found = lower(dict(before))
    mac, numbers = "", set()
    for number, one in enumerate(found.get("interfaces") or ()):
        if one.get("name") == ifname and one.get("sandbox") == sandbox:
            mac, numbers = str(one.get("mac", "")).lower(), {number}
    ips = {str(one.get("address", "")) for one in found.get("ips") or () if one.get("interface") in numbers}
    routes = {(str(one.get("dst", "")), str(one.get("gw", ""))) for one in found.get("routes") or ()}
    return mac, ips, {route for route in routes if route[0] in ("0.0.0.0/0", "::/0")}
