"""From a request's bytes to a typed value, or to one line that names the field. Decides nothing but form;
what the value means is the use case's business.
"""

import re
from typing import Any, TypeVar, get_args

import msgspec

from meshd import config
from meshd.errors import BadRequest

T = TypeVar("T")

_NESTING = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
"""A string (closed or not) or one bracket. Linear: no branch can match what another has passed over."""


def decode(body: bytes, form: type[T]) -> T:
    """Decode a JSON body strictly into ``form``. Raises BadRequest, one line naming the field.

    Depth is bounded before decoding, so that no parser's recursion is ever tried.
    """
    if not body:
        raise BadRequest("the request has no body", "send a JSON object")
    if depth(body, config.API_JSON_DEPTH) > config.API_JSON_DEPTH:
        raise BadRequest(f"body: nested deeper than {config.API_JSON_DEPTH}")
    try:
        return msgspec.json.decode(body, type=form)
    except msgspec.ValidationError as error:
        raise BadRequest(_explain(str(error), form)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError, ValueError) as error:
        raise BadRequest(f"body: not JSON: {error}") from None


def depth(body: bytes, enough: int) -> int:
    """Return how deep arrays and objects nest, strings skipped; looks no further once it is above ``enough``."""
    deepest = level = 0
    for match in _NESTING.finditer(body):
        char = match.group()[:1]
        if char in b"[{":
            level += 1
            deepest = max(deepest, level)
            if deepest > enough:
                break
        elif char in b"]}":
            level -= 1
    return deepest


def _explain(message: str, form: Any) -> str:
    """Turn msgspec's "Expected `int` - at `$.mtu`" into "mtu: expected `int`", and a pattern into its description."""
    what, _, where = message.partition(" - at `$")
    field = where.rstrip("`").lstrip(".")
    if named := re.search(r"(unknown|required) field `([^`]*)`", what):
        field = f"{field}.{named[2]}" if field else named[2]
        what = "unknown field" if named[1] == "unknown" else "missing"
    if "matching regex" in what and (words := _description(form, re.split(r"[.\[]", field)[0])):
        what = f"not {words}"
    return f"{field or 'body'}: {what[:1].lower()}{what[1:]}"


def _description(form: Any, field: str) -> str:
    """Return the description that the type of a field, or the one inside it, carries; "" where there is none."""
    wanted = next((f.type for f in msgspec.structs.fields(form) if f.encode_name == field), None)
    unseen = [wanted]
    while unseen:
        kind = unseen.pop()
        for meta in getattr(kind, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta) and meta.description:
                return meta.description
        unseen += get_args(kind)
    return ""
