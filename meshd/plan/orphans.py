"""Which endpoints lost their device with the network card that it was on. A macvlan or ipvlan goes when its parent does
(a driver reloaded, a card pulled), in whatever namespace it is, and nobody but who may enter that namespace can put
another in its place. The endpoint stays: its container runs on, and its address must not become another's.

Decides that from the card's ifindex, which never comes back. Must not know how devices are read, nor what is done.
"""

from collections.abc import Iterable, Mapping

from meshd.model import Attachment, EndpointId


def orphans(
    missing: Iterable[EndpointId], attachments: Mapping[EndpointId, Attachment], devices: Mapping[int, str]
) -> dict[EndpointId, str]:
    """Return those of ``missing`` (endpoints of this host without a device) whose parent is gone, and why in words.
    ``devices``: all of this host's namespace, ifindex -> name."""
    found = {}
    for id_ in missing:
        attachment = attachments.get(id_)
        if attachment is None or not attachment.parent_index or attachment.parent_index in devices:
            continue
        again = " and came back" if attachment.parent in devices.values() else ""
        found[id_] = (
            f"its parent {attachment.parent} went away{again}, and took the device in the container along: "
            "attach it again as before"
        )
    return found
