"""The protocol document: every message that hosts exchange, as frozen structs.

A datagram's plaintext is a msgpack array of messages; each message is a msgpack array whose first element is
the tag below. Receivers ignore messages with a tag they do not know and fields beyond those they know, so
that a newer host can add both. All limits are checked before a message reaches the core (wire/codec.py).
"""

from typing import Annotated

import msgspec

from meshd.config import HOLD_IDS_MAX
from meshd.model import U32, U64, Id16, Item, MemberFacts, Short, Version

DIGEST_BYTES = 16
BUCKET_HASH_BYTES = 8
MAX_ITEMS_PER_MESSAGE = 256
MAX_KEYS_PER_MESSAGE = 1024
MAX_BUCKETS = 1 << 16

Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
MemberState = Annotated[int, msgspec.Meta(ge=0, le=3)]
"""0 unknown, 1 alive, 2 suspect, 3 failed or left."""


class View(msgspec.Struct, frozen=True, array_like=True):
    """How the sender sees the receiver: what a wrongly accused host needs to refute (SWIM 4.2; buddy system,
    Lifeguard IV-C)."""

    incarnation: U64
    state: MemberState


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Are you there? (SWIM 3.1). ``nonce`` comes back in the Ack; ``digest`` covers all replicated state."""

    nonce: U64
    digest: Digest
    you: View


class Ack(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """I am. Answers Ping, or is relayed by a helper for PingReq."""

    nonce: U64
    digest: Digest
    you: View


class PingReq(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Ask ``target`` for me (SWIM 3.1). The helper relays the Ack with ``nonce``, or sends Nack in time."""

    nonce: U64
    target: Id16


class Nack(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """I am here but the target did not answer me (Lifeguard IV-A): the accuser itself is well connected."""

    nonce: U64


class IndirectAck(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The helper's word that the target of PingReq ``nonce`` answered it."""

    nonce: U64


class Suspect(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """``accuser`` suspects ``accused`` at ``incarnation``. Flooded; not in the digest, since it passes."""

    accused: Id16
    incarnation: U64
    accuser: Id16
    facts: MemberFacts


class Restarting(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """``host`` says that it will be back within ``duration_ms`` (each receiver counts on its own clock, at
    most 60 s) and is not to be suspected meanwhile. Flooded; not in the digest."""

    host: Id16
    incarnation: U64
    duration_ms: U32


class News(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Items, as they are. Forwarded on first receipt to ring neighbours (spread/flood.py)."""

    items: Annotated[tuple[Item, ...], msgspec.Meta(max_length=MAX_ITEMS_PER_MESSAGE)]


class Stamp(msgspec.Struct, frozen=True, array_like=True):
    """A key and the version the sender holds."""

    kind: Annotated[int, msgspec.Meta(ge=0, le=31)]
    id: Id16
    version: Version


class Announce(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Items too large for a datagram: whoever lacks one asks for it by stream."""

    stamps: Annotated[tuple[Stamp, ...], msgspec.Meta(max_length=MAX_KEYS_PER_MESSAGE)]


class Buckets(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Repair, step 1: 8-byte hashes of the sender's ``count`` (a power of two) buckets, from bucket ``first``
    on. In a datagram all of them fit in one message; a stream pages them."""

    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_BUCKETS)]
    first: U32
    hashes: Annotated[bytes, msgspec.Meta(max_length=8192)]


class Stamps(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Repair, step 2: what the sender holds in each of these buckets (indices at ``count`` buckets), complete
    for those buckets."""

    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_BUCKETS)]
    buckets: Annotated[tuple[U32, ...], msgspec.Meta(max_length=MAX_KEYS_PER_MESSAGE)]
    stamps: Annotated[tuple[Stamp, ...], msgspec.Meta(max_length=MAX_KEYS_PER_MESSAGE)]


class Want(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Repair, step 3: send me these. The answer is News (in a stream: then Done)."""

    keys: Annotated[
        tuple[tuple[Annotated[int, msgspec.Meta(ge=0, le=31)], Id16], ...],
        msgspec.Meta(max_length=MAX_KEYS_PER_MESSAGE),
    ]


class BlockAsk(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Hand me part of your space in ``network``: ``size`` indices of the space that ``start`` is in, or exactly
    ``[start, start+size)`` when ``exact``. Answered by BlockAnswer."""

    request: U64
    network: Id16
    size: Annotated[int, msgspec.Meta(ge=1, le=2**62)]
    exact: bool
    start: U64


class BlockAnswer(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """The deeds handed on (durable at the donor before this is sent), or why not: ``refusal`` is one line."""

    request: U64
    deeds: Annotated[tuple[Item, ...], msgspec.Meta(max_length=16)]
    refusal: Annotated[str, msgspec.Meta(max_length=200)] = ""


class SubnetAsk(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """Add these subnets (CIDR text, v4 first; and gateways for them) to ``network``, which you made. Answered by
    BlockAnswer with the deed that opens them."""

    request: U64
    network: Id16
    subnets: Annotated[tuple[Short, ...], msgspec.Meta(max_length=2)]
    gateways: Annotated[tuple[Short, ...], msgspec.Meta(max_length=2)] = ()


class Hold(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """Do you have these deeds on disk, and know of no other for their space? Asked by their owner, who sends them along
    as News. Answered by Held once it is so, else not at all (state/confirm.py)."""

    deeds: Annotated[tuple[Id16, ...], msgspec.Meta(max_length=HOLD_IDS_MAX)]


class Held(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """I have these deeds on disk."""

    deeds: Annotated[tuple[Id16, ...], msgspec.Meta(max_length=HOLD_IDS_MAX)]


class SyncOpen(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """First message of a stream: repair all differences. ``buckets`` is the count the opener will use."""

    buckets: Annotated[int, msgspec.Meta(ge=1, le=MAX_BUCKETS)]
    digest: Digest


class StreamPing(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """First message of a stream: the fallback probe where UDP does not answer."""

    nonce: U64


class StreamPong(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """Answers StreamPing."""

    nonce: U64


class Done(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """The sender has nothing more to say in this phase of a stream."""


class MtuProbe(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """Alone in its datagram, which ``padding`` makes as large as the path is asked to carry; the one message whose
    datagram may exceed DATAGRAM_MAX_BYTES. Sent with fragmentation forbidden; answered by MtuAck."""

    nonce: U64
    padding: Annotated[bytes, msgspec.Meta(max_length=65535)]


class MtuAck(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """A MtuProbe arrived whole."""

    nonce: U64


Message = (
    Ping | Ack | PingReq | Nack | IndirectAck | Suspect | Restarting | News | Announce | Buckets | Stamps | Want
    | BlockAsk | BlockAnswer | SyncOpen | StreamPing | StreamPong | Done | MtuProbe | MtuAck | SubnetAsk
    | Hold | Held
)  # fmt: skip

MESSAGE_TYPES: tuple[type[Message], ...] = (
    Ping, Ack, PingReq, Nack, IndirectAck, Suspect, Restarting, News, Announce, Buckets, Stamps, Want,
    BlockAsk, BlockAnswer, SyncOpen, StreamPing, StreamPong, Done, MtuProbe, MtuAck, SubnetAsk, Hold, Held,
)  # fmt: skip
