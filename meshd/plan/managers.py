"""Whose a network card or bridge is, besides the kernel's: what systemd-networkd, NetworkManager and ifupdown say in
their files, read here as text, and what an operator puts into which of them. It must not know where the files are.

A card that networkd or NetworkManager looks after is not moved: they put its addresses back at the next lease, or
take what they did not make away. They can make the same bridge, so the answer is the lines that have them do it.
ifupdown configures at boot and looks no further.
"""

import fnmatch
import re
from collections.abc import Iterable

import msgspec

NETWORKD, NETWORK_MANAGER, IFUPDOWN, NETPLAN = "systemd-networkd", "NetworkManager", "ifupdown", "netplan"
KEEPS_AT_IT = (NETWORKD, NETWORK_MANAGER, NETPLAN)
"""Those that put right what others change."""


class Owner(msgspec.Struct, frozen=True):
    """``program``: who looks after a device; ``file``: where that is said, or "". ``dhcp``: its address is a lease."""

    program: str
    file: str = ""
    dhcp: bool = False


def networkd(state: str) -> Owner | None:
    """Read /run/systemd/netif/links/IFINDEX; None where networkd leaves the device alone."""
    said = dict(line.split("=", 1) for line in state.splitlines() if "=" in line)
    file = said.get("NETWORK_FILE", "")
    if said.get("ADMIN_STATE") in ("configured", "configuring", "failed", "linger") and file:
        return Owner(NETPLAN if "netplan" in file else NETWORKD, file)
    return None


def network_manager(state: str) -> Owner | None:
    """Read /run/NetworkManager/devices/IFINDEX; None where NetworkManager only watches the device."""
    said = dict(line.split("=", 1) for line in state.splitlines() if "=" in line)
    if said.get("managed") == "true" and said.get("connection-uuid"):
        return Owner(NETWORK_MANAGER, said["connection-uuid"])
    return None


def ifupdown(text: str, file: str, device: str) -> Owner | None:
    """Read an interfaces(5) file; None where it says nothing of the device."""
    methods = [
        m[2] for m in re.finditer(r"(?m)^[ \t]*iface[ \t]+(\S+)[ \t]+\S+[ \t]+(\S+)", text) if m[1] == device
    ]
    return Owner(IFUPDOWN, file, dhcp="dhcp" in methods) if methods else None


def ifupdown_ports(text: str, bridge: str) -> bool:
    """Tell whether an interfaces(5) file makes the bridge itself."""
    stanza = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["iface"] and len(words) > 1:
            stanza = words[1]
        elif stanza == bridge and words[:1] in (["bridge_ports"], ["bridge-ports"]):
            return True
    return False


def sources(text: str, folder: str, present: Iterable[str]) -> list[str]:
    """Return which of the files ``present`` (paths) an interfaces(5) file in ``folder`` takes in."""
    found: list[str] = []
    for kind, pattern in re.findall(r"(?m)^[ \t]*(source|source-directory)[ \t]+(\S+)", text):
        whole = pattern if pattern.startswith("/") else f"{folder}/{pattern}"
        if kind == "source-directory":
            whole = f"{whole.rstrip('/')}/*"
        found += [path for path in present if fnmatch.fnmatch(path, whole) and path not in found]
    return found


def makes_bridge(netdev: str, bridge: str) -> bool:
    """Tell whether a .netdev file of networkd makes a bridge of that name."""
    said = {
        key.strip(): value.strip() for key, _, value in (line.partition("=") for line in netdev.splitlines())
    }
    return said.get("Kind") == "bridge" and said.get("Name") == bridge


def told(owner: Owner, device: str) -> str:
    """Say whose a device is."""
    where = (
        f" ({'connection ' if owner.program == NETWORK_MANAGER else ''}{owner.file})" if owner.file else ""
    )
    return f"{owner.program}{where} looks after {device}"


def have_it_make(owner: Owner, bridge: str, card: str, mac: str) -> list[str]:
    """Return the commands that have a card's own manager make the bridge, a line each; run as root."""
    first = (
        f"have {owner.program} make the bridge, and leave it to {owner.program} (meshctl bridge rm {bridge}):"
    )
    if owner.program == NETPLAN:
        return [
            first,
            f"netplan set bridges.{bridge}.interfaces='[{card}]' && netplan set bridges.{bridge}.macaddress={mac}",
            f"move addresses, dhcp4, dhcp6, routes and nameservers of {card} below bridges: {bridge}: in /etc/netplan",
            "netplan try",
        ]
    if owner.program == NETWORK_MANAGER:
        return [
            first,
            f"nmcli connection add type bridge con-name {bridge} ifname {bridge} bridge.stp no bridge.mac-address {mac}",
            f"nmcli connection modify {bridge} with the ipv4.* and ipv6.* of nmcli connection show {owner.file}",
            f"nmcli connection add type ethernet con-name {bridge}-{card} ifname {card} master {bridge}",
            f"nmcli connection up {bridge}-{card}",
        ]
    folder = "/etc/systemd/network"
    rest = f"sed -n '/^\\[Network\\]/,$p' {owner.file}"  # addresses, routes, DHCP: all but what it matches
    return [
        first,
        f"printf '[NetDev]\\nName={bridge}\\nKind=bridge\\nMACAddress={mac}\\n' >{folder}/10-{bridge}.netdev",
        f"{{ printf '[Match]\\nName={bridge}\\n\\n'; {rest}; }} >{folder}/10-{bridge}.network",
        f"printf '[Match]\\nName={card}\\n\\n[Network]\\nBridge={bridge}\\n' >{folder}/05-{bridge}-{card}.network",
        "networkctl reload",
    ]


def add_port_there(owner: Owner | None, bridge: str, card: str) -> list[str]:
    """Return what adds a card to a bridge that is not meshd's, a line each."""
    if owner is None:
        return [f"ip link set {card} master {bridge} adds a port to it; or meshctl bridge create another"]
    if owner.program == NETPLAN:
        return [f"add {card} to bridges: {bridge}: interfaces: in /etc/netplan, then netplan try"]
    if owner.program == NETWORK_MANAGER:
        return [f"nmcli connection add type ethernet ifname {card} master {bridge}"]
    if owner.program == IFUPDOWN:
        return [
            f"add {card} to bridge_ports of iface {bridge} in {owner.file}, then ifdown {bridge}; ifup {bridge}"
        ]
    file = f"/etc/systemd/network/05-{bridge}-{card}.network"
    return [
        f"printf '[Match]\\nName={card}\\n\\n[Network]\\nBridge={bridge}\\n' >{file}",
        "networkctl reload",
    ]


def keep_off(owner: Owner, bridge: str) -> list[str]:
    """Return what keeps a manager off meshd's own bridge, a line each."""
    if owner.program == NETWORK_MANAGER:
        line = f"[keyfile]\\nunmanaged-devices=interface-name:{bridge}\\n"
        return [f"printf '{line}' >/etc/NetworkManager/conf.d/meshd-{bridge}.conf", "nmcli general reload"]
    line = f"[Match]\\nName={bridge}\\n\\n[Link]\\nUnmanaged=yes\\n"
    return [f"printf '{line}' >/etc/systemd/network/00-{bridge}.network", "networkctl reload"]


def at_boot(owner: Owner, bridge: str, card: str) -> str:
    """Say how ifupdown and a port of meshd's get on."""
    text = f"{owner.file} configures {card} at boot, as before, and {bridge} takes it over: do not run ifdown {card}"
    return text + (f", and expect its lease to be renewed on {card} and to follow" if owner.dhcp else "")
