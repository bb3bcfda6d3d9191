"""How two hosts whose digests differ find the difference: bucket hashes, then stamps, then items (design.md,
section 4). The same three steps run in datagrams for small differences and over a stream for large ones.

Each function takes a message and the store and says what to send; nothing here sends, waits or remembers.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from meshd.messages import BUCKET_HASH_BYTES, Buckets, Stamp, Stamps, Want
from meshd.model import Item, Key
from meshd.state.store import Store

HASHES_PER_MESSAGE = 8192 // BUCKET_HASH_BYTES


def bucket_messages(store: Store, count: int) -> list[Buckets]:
    """Step 1: this host's hashes of ``count`` buckets, in as few messages as they fit."""
    hashes = store.digests.hashes(count)
    size = HASHES_PER_MESSAGE * BUCKET_HASH_BYTES
    return [
        Buckets(count=count, first=offset // BUCKET_HASH_BYTES, hashes=hashes[offset : offset + size])
        for offset in range(0, len(hashes), size)
    ]


def differing(store: Store, theirs: Buckets) -> list[int]:
    """Return the buckets of this message in which the sender's hash is not ours."""
    mine = store.digests.hashes(theirs.count)
    width = BUCKET_HASH_BYTES
    found = []
    for number in range(len(theirs.hashes) // width):
        bucket = theirs.first + number
        if bucket >= theirs.count:
            break
        if (
            theirs.hashes[number * width : (number + 1) * width]
            != mine[bucket * width : (bucket + 1) * width]
        ):
            found.append(bucket)
    return found


def stamps(store: Store, buckets: Iterable[int], count: int) -> list[Stamp]:
    """Return the stamps of all we hold in ``buckets``."""
    found = []
    for key in store.digests.keys_in(buckets, count):
        item = store.lookup(key)
        if item is not None:
            found.append(Stamp(kind=key.kind, id=key.id, version=item.version))
    return found


def stamp_messages(store: Store, buckets: Iterable[int], count: int, limit: int) -> Iterator[Stamps]:
    """Step 2: stamps of ``buckets``, at most ``limit`` a message where whole buckets allow that."""
    held: list[int] = []
    page: list[Stamp] = []
    for bucket in buckets:
        more = stamps(store, [bucket], count)
        if held and (len(page) + len(more) > limit or len(held) >= limit):
            yield Stamps(count=count, buckets=tuple(held), stamps=tuple(page))
            held, page = [], []
        held.append(bucket)
        page += more
    if held:
        yield Stamps(count=count, buckets=tuple(held), stamps=tuple(page))


def few_stamps(
    store: Store, buckets: Sequence[int], count: int, *, most_buckets: int, limit: int
) -> list[Stamps] | None:
    """Step 2 in datagrams: None where there are too many buckets, or a bucket does not fit a message; which is
    found out before a peer that knows little has this host list all it holds."""
    if len(buckets) > most_buckets:
        return None
    for bucket in buckets:
        if sum(1 for _ in islice(store.digests.keys_in([bucket], count), limit + 1)) > limit:
            return None
    return list(stamp_messages(store, buckets, count, limit))


def compare(store: Store, theirs: Stamps) -> tuple[list[Item], list[Key]]:
    """Step 3: return (items the sender lacks or has older, keys we lack or have older)."""
    send: list[Item] = []
    want: list[Key] = []
    named: set[Key] = set()
    for stamp in theirs.stamps:
        key = Key(stamp.kind, stamp.id)
        named.add(key)
        mine = store.lookup(key)
        if mine is None or mine.version < stamp.version:
            want.append(key)
        elif mine.version > stamp.version:
            send.append(mine)
    for key in store.digests.keys_in((b for b in theirs.buckets if b < theirs.count), theirs.count):
        if key not in named:
            item = store.lookup(key)
            if item is not None:
                send.append(item)
    return send, want


def wanted(store: Store, want: Want) -> list[Item]:
    """Return the items a peer asked for, as far as we have them."""
    found = (store.lookup(Key(kind, item_id)) for kind, item_id in want.keys)
    return [item for item in found if item is not None]
