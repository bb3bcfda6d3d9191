"""Items <-> msgpack, on the wire and on disk: [kind, id, incarnation, counter, writer, dead, origin, seq,
body or nil]. Decides what is a well-formed item, nothing about what it means.

Types, sizes and ranges are the annotations of model.py; _RULES adds what annotations cannot say.

What a newer host adds is kept, so that hosts of two versions hold the same items under the same digest: items of a
kind that is not known (Opaque), and fields at the end of a body (Item.rest). So a new field goes at the end of a body,
with a default, never into a struct inside a body and never wider than an older host takes; an item itself has no room
for more: what stands beyond its body is ignored.
"""

from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec

from meshd.config import ITEM_MAX_BYTES
from meshd.errors import BadRequest
from meshd.model import (
    DEAD_BODY,
    FIRST_LOCAL_KIND,
    ID_BYTES,
    LIVE_BODY,
    U64,
    Body,
    Endpoint,
    HostFacts,
    Id16,
    Item,
    Kind,
    MemberFacts,
    Opaque,
    Version,
)
from meshd.wire.errors import WireError
from meshd.wire.pack import convert, pack, plain, unpack

WRITER_MAX_BYTES = ID_BYTES
KIND_MAX = 255  # the journal has one byte for it


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """An item without its body, as it is encoded."""

    kind: Annotated[int, msgspec.Meta(ge=1, le=KIND_MAX)]
    id: Id16
    incarnation: U64
    counter: U64
    writer: Annotated[bytes, msgspec.Meta(max_length=WRITER_MAX_BYTES)]
    dead: bool
    origin: Id16
    seq: U64


_FIELDS: dict[type, int] = {
    shape: len(msgspec.structs.fields(shape)) for shape in (*LIVE_BODY.values(), *DEAD_BODY.values())
}
_RECORD_FIELDS: Final = len(_Record.__struct_fields__)


def is_ip(packed: bytes) -> bool:
    """Say whether this is the size of an IPv4 or an IPv6 address."""
    return len(packed) == 4 or len(packed) == 16


_RULES: dict[type, Callable[[Any], bool]] = {
    MemberFacts: lambda facts: is_ip(facts.address),
    HostFacts: lambda facts: is_ip(facts.vtep),
    Endpoint: lambda endpoint: all(map(is_ip, endpoint.ips)),
}
"""Body type -> whether a body that fits its annotations is well-formed."""


def item_fields(item: Item) -> list[Any]:
    """Lay an item out as plain values."""
    body: Any
    if isinstance(item.body, Opaque):
        body = unpack(item.body.packed)
    else:
        body = None if item.body is None else plain(item.body)
        if item.rest:
            body = [*body, *item.rest]
    return [item.kind, item.id, *item.version, item.dead, item.origin, item.seq, body]


def encode_item(item: Item) -> bytes:
    """Encode one item. Raises BadRequest (code too-large) above ITEM_MAX_BYTES: what no stream would carry
    must not get into the journal either.
    """
    encoded = pack(item_fields(item))
    if len(encoded) > ITEM_MAX_BYTES:
        raise BadRequest(
            f"the record would take {len(encoded)} bytes, more than the {ITEM_MAX_BYTES} that can be replicated;"
            " nothing was changed",
            "use fewer or shorter labels, options, aliases or published ports",
            code="too-large",
        )
    return encoded


def decode_item(data: bytes, *, local: bool = False) -> Item:
    """Decode one item. Kinds that never leave their host are refused unless ``local``. Raises WireError."""
    return item_from(unpack(data), local=local)


def item_from(raw: Any, *, local: bool) -> Item:
    """Check one unpacked item. Raises WireError."""
    if type(raw) is not tuple or len(raw) <= _RECORD_FIELDS:
        raise WireError("bad-item")
    record: _Record = convert(raw[:_RECORD_FIELDS], _Record, "bad-item")
    if record.kind >= FIRST_LOCAL_KIND and not local:
        raise WireError("local-kind")
    body, rest = _body(record.kind, record.dead, raw[_RECORD_FIELDS])
    return Item(
        record.kind,
        record.id,
        Version(record.incarnation, record.counter, record.writer),
        body,
        record.dead,
        record.origin,
        record.seq,
        rest,
    )


def _body(kind: int, dead: bool, raw: Any) -> tuple[Body, tuple[Any, ...]]:
    """Return the body and what else there is of it."""
    if kind not in LIVE_BODY:
        return Opaque(pack(raw)), ()
    shape = (DEAD_BODY if dead else LIVE_BODY).get(kind)
    if shape is None:
        if kind == Kind.ATTACHMENT and raw is None:
            return None, ()
        raise WireError("bad-item", "dead, which this kind never is")
    body: Body = convert(raw, shape, "bad-item")
    rule = _RULES.get(shape)
    if rule is not None and not rule(body):
        raise WireError("bad-item", "an address has neither 4 nor 16 bytes")
    return body, raw[_FIELDS[shape] :]
