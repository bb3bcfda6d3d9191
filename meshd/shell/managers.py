"""Reads what network managers keep about devices in files. It decides where those are; what they say is
plan/managers.py's. A file that cannot be read says nothing.

The files are this machine's: where the daemon runs in another network namespace than the manager (meshctl lab), they
are hidden from it, since ifindexes repeat.
"""

from pathlib import Path

from meshd.plan import managers
from meshd.plan.bridges import Card
from meshd.plan.managers import Owner

ROOT = Path("/")
NETDEV_FOLDERS = (
    "etc/systemd/network",
    "run/systemd/network",
    "usr/local/lib/systemd/network",
    "usr/lib/systemd/network",
)


def owner(card: Card, root: Path | None = None) -> Owner | None:
    """Return who looks after a device, None where nobody says so. Blocks."""
    root = root or ROOT
    found = managers.network_manager(_read(root / f"run/NetworkManager/devices/{card.index}"))
    found = found or managers.networkd(_read(root / f"run/systemd/netif/links/{card.index}"))
    return found or next(
        (said for path, text in _interfaces(root) if (said := managers.ifupdown(text, path, card.name))), None
    )


def maker(bridge: str, root: Path | None = None) -> Owner | None:
    """Return who is to make a bridge of that name, None where nobody is. Blocks."""
    root = root or ROOT
    for folder in NETDEV_FOLDERS:
        for file in sorted((root / folder).glob("*.netdev")):
            if managers.makes_bridge(_read(file), bridge):
                return Owner(managers.NETWORKD, f"/{file.relative_to(root)}")
    for path, text in _interfaces(root):
        if managers.ifupdown_ports(text, bridge):
            return Owner(managers.IFUPDOWN, path)
    return None


def _interfaces(root: Path) -> list[tuple[str, str]]:
    """Read interfaces(5) and what it takes in: paths without ``root``, and texts."""
    folder = root / "etc/network"
    text = _read(folder / "interfaces")
    present = (
        [f"/{path.relative_to(root)}" for path in sorted(folder.rglob("*")) if path.is_file()] if text else []
    )
    taken_in = managers.sources(text, "/etc/network", present)
    return [("/etc/network/interfaces", text), *((path, _read(root / path[1:])) for path in taken_in)]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
