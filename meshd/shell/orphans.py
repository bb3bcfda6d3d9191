"""What becomes of endpoints that lost their device with its parent (plan/orphans.py), and of what can be made again once
that is back. Decides who is told, and when such an endpoint is released after all: when its namespace is gone too.

Run by the daemon's housekeeping. A device in a container is its owner's to ask for again: attach does it.
"""

from collections.abc import Iterable
from pathlib import Path

import structlog

from meshd.model import EndpointId, text_id, text_ip
from meshd.shell import lan
from meshd.shell.detach import release_vanished
from meshd.shell.usecase import ClusterLike

log = structlog.get_logger("meshd.orphans")
NAMED_MAX = 5  # in one line of `status`


class Orphans:
    """Remembers who was told of."""

    def __init__(self) -> None:
        self._told: set[EndpointId] = set()

    async def look(self, cluster: ClusterLike) -> str:
        """Do what is due; return what an operator should see to, or "". Raises Unavailable (no disk)."""
        await lan.tend(cluster)
        lost = {id_: why for id_, why in cluster.reconciler.orphans().items() if id_ in cluster.attachments}
        ended = [id_ for id_ in lost if namespace_ended(cluster.attachments[id_].netns_path)]
        await release_vanished(cluster, ended)
        lost = {id_: why for id_, why in lost.items() if id_ not in ended and id_ in cluster.endpoints}
        for id_ in lost.keys() - self._told:
            told = fields(cluster, id_)
            log.warning("endpoint-stale", **told, why=lost[id_])
            cluster.events.publish("endpoint-stale", **told, why=lost[id_])
        self._told = set(lost)
        return _said(cluster, lost, lost.values())


def fields(cluster: ClusterLike, id_: EndpointId) -> dict[str, object]:
    """Return what an event says of an endpoint of this host."""
    endpoint = cluster.endpoints[id_]
    network = cluster.networks.get(endpoint.network)
    return {
        "id": text_id(id_),
        "network": network.name if network is not None else text_id(endpoint.network),
        "host": cluster.host_name(cluster.me),
        "name": endpoint.name,
        "ips": [text_ip(ip) for ip in endpoint.ips],
    }


def _said(cluster: ClusterLike, lost: Iterable[EndpointId], why: Iterable[str]) -> str:
    told = [f"{cluster.endpoints[id_].name}: {reason}" for id_, reason in zip(lost, why, strict=True)]
    more = [f"and {len(told) - NAMED_MAX} more endpoints"] if len(told) > NAMED_MAX else []
    return "; ".join([*told[:NAMED_MAX], *more])


def namespace_ended(path: str) -> bool:
    """Tell whether the name that a namespace was attached by is gone. One of a process says nothing: the unit hides
    other users' processes from the daemon. Nor does one that may not be looked at."""
    if not path.startswith("/") or path.startswith("/proc/"):
        return False
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
