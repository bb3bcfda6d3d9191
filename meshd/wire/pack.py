"""msgpack within bounds: the only importer of msgpack. Lengths and counts are bounded before anything is
allocated, nesting before anything descends. Knows nothing of messages and items.
"""

from collections.abc import Sequence
from typing import Any

import msgpack
import msgspec

from meshd.config import ARRAY_MAX, MAP_MAX, MESSAGE_DEPTH, STREAM_BLOB_MAX_BYTES
from meshd.wire.errors import WireError


def pack(value: Any) -> bytes:
    """Encode plain values: None, bool, int of 64 bits, str, bytes, lists and dicts of them."""
    packed: bytes = msgpack.packb(value)
    return packed


def plain(value: Any) -> Any:
    """Turn structs into arrays, leaving bytes as they are: what ``pack`` takes."""
    return msgspec.to_builtins(value, builtin_types=(bytes,))


def array(parts: Sequence[bytes]) -> bytes:
    """Make an array of encoded elements. Raises ValueError above ARRAY_MAX, which no receiver takes."""
    if len(parts) > ARRAY_MAX:
        raise ValueError(f"{len(parts)} elements; at most {ARRAY_MAX} go in an array")
    return array_header(len(parts)) + b"".join(parts)


def array_header(length: int) -> bytes:
    """Write msgpack's array header: fixarray below 16, else array 16."""
    return bytes((0x90 | length,)) if length < 16 else b"\xdc" + length.to_bytes(2, "big")


def unpack(data: bytes) -> Any:
    """Decode one value and nothing after it; arrays come as tuples. Raises WireError."""
    if len(data) > STREAM_BLOB_MAX_BYTES:
        raise WireError("not-msgpack", "too long")
    try:
        value = msgpack.unpackb(
            data,
            use_list=False,
            ext_hook=_no_ext,
            max_array_len=ARRAY_MAX,
            max_map_len=MAP_MAX,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise WireError("not-msgpack") from None
    _check_depth(value)
    return value


def convert(raw: Any, shape: Any, reason: str) -> Any:
    """Check a decoded value against an annotated type and make one of it. Raises WireError(reason)."""
    try:
        return msgspec.convert(raw, shape, strict=True, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        raise WireError(reason, str(error)) from None


def _no_ext(code: int, data: bytes) -> Any:
    raise ValueError("extension types are not used")


def _check_depth(value: Any) -> None:
    """Refuse what nests deeper than MESSAGE_DEPTH containers. msgpack itself stops at 1,024 of them, without
    recursion, each at most an ARRAY_MAX tuple: 8 MB, and gone again here.
    """
    level: list[Any] = [value]
    for _ in range(MESSAGE_DEPTH + 1):
        inner: list[Any] = []
        for each in level:
            if type(each) is tuple:
                inner += each
            elif type(each) is dict:
                inner += each.values()
        if not inner:
            return
        level = inner
    raise WireError("too-deep")
