"""Endpoints that a container runtime asked for, by what it calls them: found again for a second ADD, a DEL, a CHECK,
and told from those that are not in the runtime's list any more. Also the requests that reached nobody: the CNI
executable leaves a DEL in run_dir where no daemon takes it.

Knows nothing of what a runtime says; api/cni.py does.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import structlog

from meshd.config import CNI_BODY_MAX_BYTES
from meshd.model import EndpointId
from meshd.shell.usecase import ClusterLike

log = structlog.get_logger("meshd.runtimes")

CNI = "cni"
QUEUE = "cni-del"


class Owner(NamedTuple):
    """A runtime's name for an endpoint. None of the three has a "/" or is empty."""

    network: str
    container: str
    ifname: str

    def __str__(self) -> str:
        return "/".join((CNI, *self))


def owned(cluster: ClusterLike) -> dict[Owner, EndpointId]:
    """Return this host's endpoints that CNI runtimes asked for."""
    found: dict[Owner, EndpointId] = {}
    for endpoint_id, attachment in cluster.attachments.items():
        kind, *words = attachment.owner.split("/")
        if kind == CNI and len(words) == len(Owner._fields):
            found[Owner(*words)] = endpoint_id
    return found


def find(cluster: ClusterLike, owner: Owner) -> EndpointId | None:
    """Return the endpoint of that name."""
    wanted = str(owner)
    for endpoint_id, attachment in cluster.attachments.items():
        if attachment.owner == wanted:
            return endpoint_id
    return None


def find_anywhere(cluster: ClusterLike, container: str, ifname: str) -> dict[Owner, EndpointId]:
    """Return a container's endpoints of that interface name, whatever the configuration they came by is called."""
    return {o: e for o, e in owned(cluster).items() if (o.container, o.ifname) == (container, ifname)}


def prepare(run_dir: Path) -> None:
    """Make the folder in which requests are left. Raises OSError."""
    (run_dir / QUEUE).mkdir(mode=0o700, parents=True, exist_ok=True)


def queued(run_dir: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield what was left, oldest first; the caller removes it once it is done. What cannot be read stays and is
    logged."""
    folder = run_dir / QUEUE
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return
    for name in names:
        path = folder / name
        try:
            yield path, path.read_bytes()[:CNI_BODY_MAX_BYTES]
        except OSError as error:
            log.warning("a queued request cannot be read", path=str(path), error=error.strerror)
