"""The digest of all replicated state, kept incrementally (design.md, sections 4 and 6).

Each item counts as a keyed hash of (key, version); the digest is the sum of those modulo 2**128, and so are the
buckets it is cut into. A sum is order-free and can be updated by one subtraction and one addition. The key is
a cluster secret that never rotates, so that nobody outside can aim for a collision and a key rotation does
not make everybody differ. Must not know what items mean.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator

from meshd.config import BUCKET_ITEMS, SPLITS_A_PUT
from meshd.messages import BUCKET_HASH_BYTES, DIGEST_BYTES, MAX_BUCKETS
from meshd.model import Key, Version

_MODULUS = 1 << (8 * DIGEST_BYTES)
_BUCKET_MASK = (1 << (8 * BUCKET_HASH_BYTES)) - 1
_STAMP = struct.Struct(">BQQ")


class _Bucket:
    """``keys``: a dict and not a set, so that its order does not depend on the process."""

    __slots__ = ("keys", "sum")

    def __init__(self) -> None:
        self.sum = 0
        self.keys: dict[Key, None] = {}


def bucket_of(key: Key, count: int) -> int:
    """Return the bucket (0..count-1) of ``key``; ``count`` is a power of two. Ids are uniform, so their first
    bits serve as the hash, and halving ``count`` merges neighbouring buckets."""
    return int.from_bytes(key.id[:4], "big") >> (33 - count.bit_length())


class DigestTable:
    """Sums of stamp hashes: one for everything, one a bucket.

    Buckets are split a few at a time, with each item that comes: splitting 100,000 items' all at once would hold up
    the loop for 0.1 s. Until all are, the table counts as the smaller one.
    """

    def __init__(self, secret: bytes) -> None:
        """``secret``: up to 64 bytes, the same on all hosts of the cluster."""
        self._hasher = hashlib.blake2b(key=secret, digest_size=DIGEST_BYTES)
        self._hashes: dict[Key, int] = {}
        self._root = 0
        self._count = 1
        self._buckets = [_Bucket()]
        self._halves: list[
            _Bucket
        ] = []  # of the first of these buckets, two each: the table of the next size

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
        delta = value - self._hashes.get(key, 0)
        self._hashes[key] = value
        self._root = (self._root + delta) % _MODULUS
        for bucket in self._homes(key):
            bucket.sum = (bucket.sum + delta) % _MODULUS
            bucket.keys[key] = None
        if self._halves or len(self._hashes) > 2 * BUCKET_ITEMS * self._count:
            self._grow()

    def remove(self, key: Key) -> None:
        """Stop counting ``key``; unknown keys are nothing to remove."""
        value = self._hashes.pop(key, None)
        if value is None:
            return
        self._root = (self._root - value) % _MODULUS
        for bucket in self._homes(key):
            bucket.sum = (bucket.sum - value) % _MODULUS
            bucket.keys.pop(key, None)

    def _homes(self, key: Key) -> Iterator["_Bucket"]:
        """Yield the bucket of ``key``, and its half where that bucket has been split already."""
        yield self._buckets[bucket_of(key, self._count)]
        if self._halves:
            index = bucket_of(key, 2 * self._count)
            if index < len(self._halves):
                yield self._halves[index]

    def _grow(self) -> None:
        """Split the next SPLITS_A_PUT buckets; with the last of them the table has its next size."""
        if self._count >= MAX_BUCKETS:
            return
        first = len(self._halves) // 2
        for bucket in self._buckets[first : first + SPLITS_A_PUT]:
            self._halves += self._split(bucket)
        if len(self._halves) == 2 * self._count:
            self._count *= 2
            self._buckets, self._halves = self._halves, []

    def _split(self, bucket: "_Bucket") -> tuple["_Bucket", "_Bucket"]:
        halves = _Bucket(), _Bucket()
        for key in bucket.keys:
            half = halves[bucket_of(key, 2 * self._count) & 1]
            half.sum += self._hashes[key]
            half.keys[key] = None
        for half in halves:
            half.sum %= _MODULUS
        return halves

    def _sums_at(self, count: int) -> list[int]:
        sums = [0] * count
        for key, value in self._hashes.items():
            index = bucket_of(key, count)
            sums[index] = (sums[index] + value) % _MODULUS
        return sums

    def hashes(self, count: int) -> bytes:
        """Return ``count`` bucket hashes of 8 bytes each, concatenated; any power of two may be asked for."""
        if count == self._count:
            sums = [bucket.sum for bucket in self._buckets]
        elif count < self._count:
            step, own = self._count // count, [bucket.sum for bucket in self._buckets]
            sums = [sum(own[i : i + step]) for i in range(0, self._count, step)]
        else:
            sums = self._sums_at(count)
        return b"".join((value & _BUCKET_MASK).to_bytes(BUCKET_HASH_BYTES, "big") for value in sums)

    def keys_in(self, buckets: Iterable[int], count: int) -> Iterator[Key]:
        """Yield the keys in ``buckets`` of a table cut into ``count``."""
        for bucket in buckets:
            if count <= self._count:
                step = self._count // count
                for own in range(bucket * step, (bucket + 1) * step):
                    yield from self._buckets[own].keys
            else:
                own = bucket // (count // self._count)
                yield from (key for key in self._buckets[own].keys if bucket_of(key, count) == bucket)
