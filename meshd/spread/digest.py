"""The digest of all replicated state, kept incrementally (design.md, sections 4 and 6).

Each item counts as a keyed hash of (key, version); the digest is the sum of those modulo 2**128, and so are the
buckets it is cut into. A sum is order-free and can be updated by one subtraction and one addition. The key is
a cluster secret that never rotates, so that nobody outside can aim for a collision and a key rotation does
not make everybody differ. Must not know what items mean.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator

from meshd.config import BUCKET_ITEMS
from meshd.messages import BUCKET_HASH_BYTES, DIGEST_BYTES, MAX_BUCKETS
from meshd.model import Key, Version

_MODULUS = 1 << (8 * DIGEST_BYTES)
_BUCKET_MASK = (1 << (8 * BUCKET_HASH_BYTES)) - 1
_STAMP = struct.Struct(">BQQ")


def bucket_of(key: Key, count: int) -> int:
    """Return the bucket (0..count-1) of ``key``; ``count`` is a power of two. Ids are uniform, so their first
    bits serve as the hash, and halving ``count`` merges neighbouring buckets."""
    return int.from_bytes(key.id[:4], "big") >> (33 - count.bit_length())


class DigestTable:
    """Sums of stamp hashes: one for everything, one a bucket."""

    def __init__(self, secret: bytes) -> None:
        """``secret``: up to 64 bytes, the same on all hosts of the cluster."""
        self._hasher = hashlib.blake2b(key=secret, digest_size=DIGEST_BYTES)
        self._hashes: dict[Key, int] = {}
        self._root = 0
        self._count = 1
        self._sums = [0]
        self._keys: list[dict[Key, None]] = [
            {}
        ]  # dicts, not sets: their order does not depend on the process

    def __len__(self) -> int:
        return len(self._hashes)

    @property
    def root(self) -> bytes:
        """The 16-byte digest of everything."""
        return self._root.to_bytes(DIGEST_BYTES, "big")

    @property
    def count(self) -> int:
        """How many buckets this table keeps: a power of two that grows with the state."""
        return self._count

    def put(self, key: Key, version: Version) -> None:
        """Count ``key`` at ``version``, in place of what it counted as before."""
        hasher = self._hasher.copy()
        hasher.update(_STAMP.pack(key.kind, version.incarnation, version.counter))
        hasher.update(key.id)
        hasher.update(version.writer)
        value = int.from_bytes(hasher.digest(), "big")
        index = bucket_of(key, self._count)
        delta = value - self._hashes.get(key, 0)
        self._hashes[key] = value
        self._root = (self._root + delta) % _MODULUS
        self._sums[index] = (self._sums[index] + delta) % _MODULUS
        self._keys[index][key] = None
        if len(self._hashes) > 2 * BUCKET_ITEMS * self._count and self._count < MAX_BUCKETS:
            self._double()

    def remove(self, key: Key) -> None:
        """Stop counting ``key``; unknown keys are nothing to remove."""
        value = self._hashes.pop(key, None)
        if value is None:
            return
        index = bucket_of(key, self._count)
        self._root = (self._root - value) % _MODULUS
        self._sums[index] = (self._sums[index] - value) % _MODULUS
        self._keys[index].pop(key, None)

    def _double(self) -> None:
        self._count *= 2
        self._sums = self._sums_at(self._count)
        keys: list[dict[Key, None]] = [{} for _ in range(self._count)]
        for key in self._hashes:
            keys[bucket_of(key, self._count)][key] = None
        self._keys = keys

    def _sums_at(self, count: int) -> list[int]:
        sums = [0] * count
        for key, value in self._hashes.items():
            index = bucket_of(key, count)
            sums[index] = (sums[index] + value) % _MODULUS
        return sums

    def hashes(self, count: int) -> bytes:
        """Return ``count`` bucket hashes of 8 bytes each, concatenated; any power of two may be asked for."""
        if count == self._count:
            sums = self._sums
        elif count < self._count:
            step = self._count // count
            sums = [sum(self._sums[i : i + step]) for i in range(0, self._count, step)]
        else:
            sums = self._sums_at(count)
        return b"".join((value & _BUCKET_MASK).to_bytes(BUCKET_HASH_BYTES, "big") for value in sums)

    def keys_in(self, buckets: Iterable[int], count: int) -> Iterator[Key]:
        """Yield the keys in ``buckets`` of a table cut into ``count``."""
        for bucket in buckets:
            if count <= self._count:
                step = self._count // count
                for own in range(bucket * step, (bucket + 1) * step):
                    yield from self._keys[own]
            else:
                own = bucket // (count // self._count)
                yield from (key for key in self._keys[own] if bucket_of(key, count) == bucket)
