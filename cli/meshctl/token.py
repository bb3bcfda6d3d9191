"""What a token is: ``meshd1.`` and the base64url of compact JSON and the first 4 bytes of its SHA-256.

A token carries what a host needs to find a cluster and to be let in: seeds, the primary key, and the cluster's
IPv6 pools. The checksum is against mangling on the way (a lost character, a wrapped line), not against anyone:
who has a token has the key.
"""

import base64
import binascii
import hashlib
import ipaddress
import json
import re
from typing import Any, NamedTuple

from meshctl.errors import WrongUsage

PREFIX = "meshd1."
CHECK_BYTES = 4
KEY_BYTES = 32
KEY_ID = re.compile(r"[0-9a-f]{4}")
SEEDS_MAX = 16
TOKEN_MAX_CHARACTERS = 4096
AGAIN = "copy it whole, as `meshctl token` or `meshctl init` printed it"


class Token(NamedTuple):
    """``seeds``: ``ADDRESS:PORT`` each, IPv6 in brackets. ``key``: ``KEYID:BASE64``. ``v6``: CIDRs, may be none."""

    seeds: tuple[str, ...]
    key: str
    v6: tuple[str, ...] = ()


def encode(token: Token) -> str:
    """Return the text. Raises ValueError for what decode would refuse."""
    _check(token)
    document: dict[str, Any] = {"seeds": token.seeds, "key": token.key}
    if token.v6:
        document["v6"] = token.v6
    body = json.dumps(document, separators=(",", ":")).encode()
    return PREFIX + base64.urlsafe_b64encode(body + _sum(body)).decode().rstrip("=")


def decode(text: str) -> Token:
    """Return what ``text`` carries. Raises WrongUsage, one line that says what is wrong with it."""
    text = text.strip()
    if re.match(r"meshd\d+\.", text) and not text.startswith(PREFIX):
        raise WrongUsage(
            f"the token is of another version of meshd: {text.partition('.')[0]}", "upgrade meshd here"
        )
    if not text.startswith(PREFIX):
        raise WrongUsage("that is not a meshd token: it does not begin with meshd1.", AGAIN)
    encoded = text.removeprefix(PREFIX)
    raw = _unbase64(encoded)
    body, check = raw[:-CHECK_BYTES], raw[-CHECK_BYTES:]
    # the second test: the bits that pad the last character can change without changing a byte
    if check != _sum(body) or base64.urlsafe_b64encode(raw).decode().rstrip("=") != encoded:
        raise WrongUsage("the token is damaged: its checksum does not match", AGAIN)
    try:
        document = json.loads(body)
        token = Token(tuple(document["seeds"]), document["key"], tuple(document.get("v6", ())))
        _check(token)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = str(error) if type(error) is ValueError else "seeds or key are not what they should be"
        raise WrongUsage(f"the token does not hold what it should: {what}", AGAIN) from None
    return token


def new_key(entropy: bytes) -> str:
    """Return ``KEYID:BASE64`` from 34 random bytes: 2 for the id, 32 for the key."""
    return f"{entropy[:2].hex()}:{base64.b64encode(entropy[2:]).decode()}"


def _unbase64(encoded: str) -> bytes:
    if len(encoded) > TOKEN_MAX_CHARACTERS:
        raise WrongUsage(f"the token is damaged: it is longer than {TOKEN_MAX_CHARACTERS} characters", AGAIN)
    if odd := re.search(r"[^A-Za-z0-9_-]", encoded):
        raise WrongUsage(f"the token is damaged: it holds {odd[0]!r}", AGAIN)
    try:
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except binascii.Error:
        raise WrongUsage("the token is damaged: its length is impossible", AGAIN) from None


def _check(token: Token) -> None:
    """Raise ValueError where seeds, key or pools are not what the daemon's configuration takes."""
    if not 0 < len(token.seeds) <= SEEDS_MAX:
        raise ValueError(f"it must have 1 to {SEEDS_MAX} seeds")
    for seed in token.seeds:
        _check_seed(seed)
    key_id, _, encoded = token.key.partition(":")
    if not KEY_ID.fullmatch(key_id):
        raise ValueError("its key is not KEYID:BASE64")
    if len(base64.b64decode(encoded, validate=True)) != KEY_BYTES:
        raise ValueError(f"its key is not {KEY_BYTES} bytes long")
    for prefix in token.v6:
        ipaddress.IPv6Network(prefix)


def _check_seed(seed: str) -> None:
    host, _, port = seed.rpartition(":")
    if not re.fullmatch(r"[1-9][0-9]{0,4}", port) or int(port) > 65535:
        raise ValueError(f"seed {seed!r} is not ADDRESS:PORT")
    if host.startswith("[") and host.endswith("]"):
        ipaddress.IPv6Address(host[1:-1])
    else:
        ipaddress.IPv4Address(host)


def _sum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:CHECK_BYTES]
