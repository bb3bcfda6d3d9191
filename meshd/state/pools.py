"""Decides which prefix a network without ``--subnet`` gets, and whether a prefix overlaps anything known. Knows
prefixes and what they belong to in words; must not know networks or hosts otherwise.

A prefix is chosen by hash of the network id, so two partitions that create at once rarely choose the same.
"""

import functools
import hashlib
import ipaddress
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from meshd.config import BRIDGE_PREFIX_V4, OVERLAY_PREFIX_V4, ULA_PREFIX
from meshd.errors import Unavailable
from meshd.model import NetworkId
from meshd.state.layout import Prefix

PREFIX_V4 = {"overlay": OVERLAY_PREFIX_V4, "bridge": BRIDGE_PREFIX_V4}
"""Length of a default v4 subnet, by driver."""


class Taken(NamedTuple):
    """A prefix that is in use, and by what: ``network blue``, ``route 10.0.0.0/8 of host2``."""

    prefix: Prefix
    what: str


def ula48(secret: bytes) -> ipaddress.IPv6Network:
    """Derive the cluster's unique local prefix (RFC 4193, 3.2): fd and 40 bits of a hash of the cluster's secret,
    so that every host has the same without agreeing on it. The hash does not give the secret away."""
    drawn = hashlib.blake2b(secret, digest_size=5, person=b"meshd ula48").digest()
    return ipaddress.IPv6Network((b"\xfd" + drawn + bytes(10), 48))


def prefix_taken(text: str, what: str) -> Taken | None:
    """Read a prefix that a peer published; None for a default route, which leaves every prefix free, and for what
    is no prefix: a peer's mistake must not keep this host from making networks."""
    prefix = _prefix(text)
    return Taken(prefix, what) if prefix is not None and prefix.prefixlen else None


@functools.lru_cache(maxsize=1 << 14)  # each new network is compared with all others': 20 ms at 1,000 without
def _prefix(text: str) -> Prefix | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def overlaps(prefix: Prefix, taken: Iterable[Taken]) -> Taken | None:
    """Give the first of ``taken`` that shares an address with ``prefix``."""
    return next((t for t in taken if t.prefix.version == prefix.version and t.prefix.overlaps(prefix)), None)


def default_v4(network_id: NetworkId, driver: str, pools: Sequence[str], taken: Iterable[Taken]) -> Prefix:
    """Choose a v4 subnet for ``driver`` out of ``pools``. Raises Unavailable where none is free."""
    return _choose(
        network_id, [ipaddress.ip_network(pool) for pool in pools], PREFIX_V4[driver], taken, "pools.v4"
    )


def default_v6(network_id: NetworkId, pools: Sequence[str], secret: bytes, taken: Iterable[Taken]) -> Prefix:
    """Choose a /64 out of ``pools``, or out of the cluster's ULA prefix where there are none. Raises Unavailable."""
    prefixes = [ipaddress.ip_network(pool) for pool in pools] or [ula48(secret)]
    return _choose(network_id, prefixes, ULA_PREFIX, taken, "pools.v6")


def _choose(
    network_id: NetworkId, pools: Sequence[Prefix], length: int, taken: Iterable[Taken], key: str
) -> Prefix:
    """Take the first free candidate from the hashed one upward, round all pools. A pool smaller than ``length``
    is one candidate whole. Occupied stretches are skipped in one step."""
    lengths = [max(length, pool.prefixlen) for pool in pools]
    counts = [1 << (size - pool.prefixlen) for pool, size in zip(pools, lengths, strict=True)]
    if not pools:
        raise Unavailable(f"no subnet: {key} is empty", f"give --subnet, or set {key} in the configuration")
    blocked = _ranges(taken, pools[0].version)
    total = sum(counts)
    draw = (
        int.from_bytes(hashlib.blake2b(network_id, digest_size=8, person=b"meshd pool").digest(), "big")
        % total
    )
    at, seen = draw, 0
    while seen < total:
        pool, size, offset, left = _locate(pools, lengths, counts, at)
        bits = pool.max_prefixlen - size
        first = int(pool.network_address) + (offset << bits)
        free_from = _blocked_until(blocked, first, first + (1 << bits))
        if free_from is None:
            return pool.__class__((first, size))
        step = min(left, max(1, -(-(free_from - first) >> bits)))
        at, seen = (at + step) % total, seen + step
    raise Unavailable(
        f"no subnet is free: all {total} prefixes in {key} ({', '.join(map(str, pools))}) overlap networks or routes",
        f"give --subnet, remove networks, or add to {key} in the configuration",
    )


def _locate(
    pools: Sequence[Prefix], lengths: Sequence[int], counts: Sequence[int], at: int
) -> tuple[Prefix, int, int, int]:
    """Find the pool of candidate ``at``: (pool, prefix length, number within the pool, candidates from there)."""
    for pool, size, candidates in zip(pools, lengths, counts, strict=True):
        if at < candidates:
            return pool, size, at, candidates - at
        at -= candidates
    raise ValueError("beyond the last candidate")


def _ranges(taken: Iterable[Taken], version: int) -> list[tuple[int, int]]:
    """Merge the taken prefixes of one family into sorted, disjoint address ranges ``[start, end)``."""
    merged: list[tuple[int, int]] = []
    prefixes = [t.prefix for t in taken if t.prefix.version == version]
    for start, end in sorted((int(p.network_address), int(p.broadcast_address) + 1) for p in prefixes):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _blocked_until(blocked: Sequence[tuple[int, int]], start: int, end: int) -> int | None:
    """Give the end of the taken range that meets ``[start, end)``; None where none does."""
    at = bisect_right(blocked, (start, 1 << 128)) - 1
    for range_start, range_end in blocked[max(0, at) : at + 2]:
        if range_start < end and start < range_end:
            return range_end
    return None
