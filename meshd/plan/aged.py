"""Whose rows have outlived their host: for how long a host may be failed before it is taken for gone.

A dead daemon is not a dead host, so its rows stay (reliability.md, finding 1); a host that has been failed for days is
switched off, and rows for it only fill tables. Decides that and nothing else: time and verdicts come in.
"""

from collections.abc import Iterable, Mapping

from meshd.model import HostId


def failed_since(before: Mapping[HostId, float], failed: Iterable[HostId], now: float) -> dict[HostId, float]:
    """Return since when each host of ``failed`` is (monotonic seconds); ``before``: the last answer. A daemon that
    restarts begins anew, which errs towards keeping rows."""
    return {host: before.get(host, now) for host in failed}


def aged(since: Mapping[HostId, float], now: float, age_s: float, *, others_alive: bool) -> frozenset[HostId]:
    """Return the hosts failed for ``age_s`` or longer; 0: none ever. Who sees nobody else alive is itself the one cut
    off, and its rows are all that it has."""
    if not age_s or not others_alive:
        return frozenset()
    return frozenset(host for host, start in since.items() if now - start >= age_s)
