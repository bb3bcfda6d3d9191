"""Messages <-> msgpack. Decides what is well-formed, nothing about what it means.

A newer host's additions do no harm: messages with an unknown tag and fields of a message beyond those known are
skipped, what is new in an item is kept (items.py). Everything else that does not fit refuses the whole datagram, so
that no half of it counts.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec

from meshd.config import ITEM_MAX_BYTES
from meshd.errors import BadRequest
from meshd.messages import (
    MAX_ITEMS_PER_MESSAGE,
    MESSAGE_TYPES,
    Announce,
    BlockAnswer,
    Message,
    MtuProbe,
    News,
    Stamp,
    Stamps,
    Suspect,
)
from meshd.model import U64, Item
from meshd.wire.errors import WireError
from meshd.wire.items import WRITER_MAX_BYTES, decode_item, encode_item, is_ip, item_fields, item_from
from meshd.wire.pack import array, array_header, convert, pack, plain, unpack

__all__ = [
    "decode_item",
    "decode_messages",
    "encode_item",
    "encode_message",
    "encode_news",
    "encode_probe",
    "is_probe",
    "join",
    "joined_size",
]

MAX_DEEDS_PER_MESSAGE = 16
_VERSION_END = 1 << 63
_ROOMY_BYTES = ITEM_MAX_BYTES * 3 // 4  # in less no item is too large, also with fields that were left out


class _Answer(msgspec.Struct, frozen=True, array_like=True):
    """A BlockAnswer without its deeds."""

    request: U64
    refusal: Annotated[str, msgspec.Meta(max_length=200)] = ""


_TAGS: dict[type, int] = {shape: shape.__struct_config__.tag for shape in MESSAGE_TYPES}  # type: ignore[misc]
_SHAPES: dict[int, type] = {tag: shape for shape, tag in _TAGS.items()}


# --- encoding -----------------------------------------------------------------------------------------------
def encode_message(message: Message) -> bytes:
    """Encode one message, to be put among others by ``join``."""
    if isinstance(message, News):
        return pack([_TAGS[News], [item_fields(item) for item in message.items]])
    if isinstance(message, BlockAnswer):
        deeds = [item_fields(item) for item in message.deeds]
        return pack([_TAGS[BlockAnswer], message.request, deeds, message.refusal])
    return pack(plain(message))


def encode_news(items: Sequence[bytes]) -> bytes:
    """Encode a News message from encoded items: each is encoded once, however many neighbours it goes to.
    Raises ValueError above MAX_ITEMS_PER_MESSAGE.
    """
    if len(items) > MAX_ITEMS_PER_MESSAGE:
        raise ValueError(f"{len(items)} items; at most {MAX_ITEMS_PER_MESSAGE} go in a message")
    return array([pack(_TAGS[News]), array(items)])


def join(parts: Sequence[bytes]) -> bytes:
    """Make a datagram's plaintext, or a stream's blob, of encoded messages: ARRAY_MAX at most."""
    return array(parts)


def encode_probe(nonce: int, size: int) -> bytes:
    """Make the plaintext of a datagram that holds a MtuProbe alone: ``size`` bytes, of which padding is what is
    left. Raises ValueError where that is less than PROBE_PADDING_MIN_BYTES.
    """
    padding = size - len(join([encode_message(MtuProbe(nonce, bytes(PROBE_PADDING_MIN_BYTES)))]))
    if padding < 0:
        raise ValueError(f"no padded probe has {size} bytes")
    return join([encode_message(MtuProbe(nonce, bytes(PROBE_PADDING_MIN_BYTES + padding)))])


PROBE_PADDING_MIN_BYTES = 256
"""From here to 65,535 bytes msgpack's header of the padding is 3 bytes long."""


def is_probe(messages: Sequence[Message]) -> bool:
    """Whether these are what a datagram above DATAGRAM_MAX_BYTES may hold."""
    return len(messages) == 1 and isinstance(messages[0], MtuProbe)


def joined_size(parts: int, size: int) -> int:
    """Return how many bytes ``join`` makes of ``parts`` messages that have ``size`` bytes altogether."""
    return len(array_header(parts)) + size


# --- decoding -----------------------------------------------------------------------------------------------
def decode_messages(data: bytes, skipped: Counter[str] | None = None) -> list[Message]:
    """Decode a datagram's plaintext or a stream's blob. Raises WireError, and then nothing of it counts.

    ``skipped`` counts what was left out: unknown-tag (messages).
    """
    if skipped is None:
        skipped = Counter()
    raw = unpack(data)
    if type(raw) is not tuple:
        raise WireError("not-messages")
    messages: list[Message] = []
    for each in raw:
        if type(each) is not tuple or not each or type(each[0]) is not int:
            raise WireError("not-messages")
        shape = _SHAPES.get(each[0])
        if shape is None:
            skipped["unknown-tag"] += 1
        else:
            messages.append(_DECODE.get(shape, _simple)(each, shape, skipped))
    if len(data) > _ROOMY_BYTES:
        _check_sizes(messages)
    return messages


def _check_sizes(messages: Sequence[Message]) -> None:
    """Refuse an item that this host could neither write to its disk nor pass on."""
    for message in messages:
        if isinstance(message, News):
            for item in message.items:
                try:
                    encode_item(item)
                except BadRequest:
                    raise WireError("bad-item", "too large to be passed on") from None


def _simple(raw: tuple[Any, ...], shape: type, skipped: Counter[str]) -> Message:
    message: Message = convert(raw, shape, "bad-message")
    rule = _RULES.get(shape)
    if rule is not None and not rule(message):
        raise WireError("bad-message")
    return message


def _news(raw: tuple[Any, ...], shape: type, skipped: Counter[str]) -> Message:
    if len(raw) < 2:
        raise WireError("bad-message")
    return News(_items(raw[1], MAX_ITEMS_PER_MESSAGE))


def _block_answer(raw: tuple[Any, ...], shape: type, skipped: Counter[str]) -> Message:
    if len(raw) < 3:
        raise WireError("bad-message")
    answer: _Answer = convert((raw[1], *raw[3:]), _Answer, "bad-message")
    return BlockAnswer(answer.request, _items(raw[2], MAX_DEEDS_PER_MESSAGE), answer.refusal)


def _items(raw: Any, most: int) -> tuple[Item, ...]:
    """Check an array of items."""
    if type(raw) is not tuple or len(raw) > most:
        raise WireError("bad-message", "items")
    return tuple([item_from(each, local=False) for each in raw])


def _versions_fit(stamps: tuple[Stamp, ...]) -> bool:
    return all(
        0 <= incarnation < _VERSION_END and 0 <= counter < _VERSION_END and len(writer) <= WRITER_MAX_BYTES
        for incarnation, counter, writer in (stamp.version for stamp in stamps)
    )


_DECODE: dict[type, Callable[[tuple[Any, ...], type, Counter[str]], Message]] = {
    News: _news,
    BlockAnswer: _block_answer,
}
"""Messages with items in them, whose bodies' types depend on their kinds. All others are _simple."""

_RULES: dict[type, Callable[[Any], bool]] = {
    Suspect: lambda suspect: is_ip(suspect.facts.address),
    Announce: lambda announce: _versions_fit(announce.stamps),
    Stamps: lambda stamps: _versions_fit(stamps.stamps),
}
"""Message type -> what its annotations cannot say."""
