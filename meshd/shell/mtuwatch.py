"""Tells people where packets do not get through: in ``status`` as long as it is so, as an event when it begins
(``mtu-mismatch``) and when it ends (``mtu-mended``). What is wrong is state/pathcheck.py's to say.
"""

import structlog

from meshd.config import MTU_HOSTS_NAMED
from meshd.shell.usecase import ClusterLike
from meshd.state.pathcheck import Mismatch, mismatches

log = structlog.get_logger("meshd.mtu")


class MtuWatch:
    """What is known to be wrong now."""

    def __init__(self) -> None:
        self._found: dict[str, Mismatch] = {}

    def look(self, cluster: ClusterLike) -> None:
        """Compare anew; publish what has begun and what has ended."""
        paths = {host: path.mtu for host, path in cluster.paths.items()}
        found = {
            each.text: each
            for each in mismatches(
                cluster.me, cluster.alive(), cluster.hosts, cluster.networks, paths, cluster.host_name
            )
        }
        before, self._found = self._found, found
        for text, each in found.items():
            if text not in before:
                log.warning("alarm", kind="mtu-mismatch", text=text)
                cluster.events.publish("mtu-mismatch", **_fields(each))
        for text, each in before.items():
            if text not in found:
                log.info("mended", kind="mtu-mismatch", text=text)
                cluster.events.publish("mtu-mended", **_fields(each))

    def lines(self) -> list[str]:
        """Return a line for each thing wrong, at most a handful."""
        lines = list(self._found)
        more = len(lines) - MTU_HOSTS_NAMED
        return lines if more <= 0 else [*lines[:MTU_HOSTS_NAMED], f"{more} more paths are as narrow"]


def _fields(found: Mismatch) -> dict[str, object]:
    return {
        "mismatch": found.kind,
        "hosts": list(found.hosts),
        "carried": found.carried,
        "needed": found.needed,
        "text": found.text,
    }
