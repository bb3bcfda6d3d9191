"""Decides which network or host a person means and what each network is called. Knows names and ids only.

Two partitions may each make a network of one name. After merging, the one with the lower id keeps the name on
every host; any other is shown as ``name~ab12`` and may be named so.
"""

import difflib
import string
from collections.abc import Iterable, Mapping

from meshd.config import ID_PREFIX_MIN_CHARS
from meshd.errors import Conflict, NotFound
from meshd.model import HostId, Item, Network, NetworkId
from meshd.state.layout import QUOTED_MAX_CHARS


def display_names(networks: Iterable[Item]) -> dict[NetworkId, str]:
    """Give each live network the name it is shown by, the same on every host that knows the same networks."""
    by_name: dict[str, list[NetworkId]] = {}
    for item in networks:
        if isinstance(item.body, Network):
            by_name.setdefault(item.body.name, []).append(item.id)
    shown: dict[NetworkId, str] = {}
    for name, found in by_name.items():
        first, *others = sorted(found)
        shown[first] = name
        texts = [other.hex() for other in others]
        for other, text in zip(others, texts, strict=True):
            length = ID_PREFIX_MIN_CHARS
            while sum(t.startswith(text[:length]) for t in texts) > 1:
                length += 1
            shown[other] = f"{name}~{text[:length]}"
    return shown


def resolve(name_or_id: str, networks: Iterable[Item]) -> Item:
    """Find a network by the name it is shown by, its id, or the beginning of its id (ID_PREFIX_MIN_CHARS or
    more hex digits). Raises NotFound with names that come near; Conflict where an id's beginning fits several."""
    items = {item.id: item for item in networks if isinstance(item.body, Network)}
    shown = display_names(items.values())
    for key, name in shown.items():
        if name == name_or_id:
            return items[key]
    found = sorted(_beginning(name_or_id, items))
    if len(found) > 1:
        told = ", ".join(f"{shown[key]} ({key.hex()[:12]})" for key in found[:4])
        raise Conflict(f"{name_or_id} is the beginning of {len(found)} network ids", f"one of {told}")
    if found:
        return items[found[0]]
    near = difflib.get_close_matches(name_or_id[:QUOTED_MAX_CHARS], shown.values(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "meshctl network ls lists them"
    raise NotFound(f"no network {name_or_id[:QUOTED_MAX_CHARS]!r}", hint)


def hosts_meant(name_or_id: str, names: Mapping[HostId, str]) -> set[HostId]:
    """Find hosts by name, which several may share, or id; else by the beginning of the id, as lists show it."""
    exact = {host for host, name in names.items() if name_or_id in (name, host.hex())}
    return exact or set(_beginning(name_or_id, names))


def _beginning(text: str, ids: Iterable[bytes]) -> list[bytes]:
    prefix = text.lower()
    if len(prefix) < ID_PREFIX_MIN_CHARS or not set(prefix) <= set(string.hexdigits):
        return []
    return [key for key in ids if key.hex().startswith(prefix)]
