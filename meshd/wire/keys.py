"""The keyring as text and as values, and every key that is derived from it (HKDF-SHA256, RFC 5869).

Key schedule; a ring key is 32 random bytes, its id 16 random bits (no hash of it: an id must say nothing):

    data     salt = sender's session,               info = "meshd/1 data" sender's id
    hello    salt = -,                              info = "meshd/1 hello" sender's source tag
    stream   salt = both sessions, both challenges, info = "meshd/1 stream" direction, both ids
    cluster  salt = -,                              info = "meshd/1 cluster"

Knows no files and no sockets. No message or repr here shows a secret.
"""

import base64
import binascii
from collections.abc import Callable, Container, Iterable

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from meshd.config import RING_KEYS_MAX
from meshd.errors import ConfigError
from meshd.model import HostId, SessionId

SECRET_BYTES = 32
KEY_ID_DIGITS = 4


class RingKey(msgspec.Struct, frozen=True):
    """One shared key: ``id`` 16 bits, ``secret`` 32 bytes."""

    id: int
    secret: bytes

    def __repr__(self) -> str:
        return f"RingKey({self.id:04x})"


class Keyring(msgspec.Struct, frozen=True):
    """The keys that this host accepts. The first one, primary, is the one it sends with."""

    keys: tuple[RingKey, ...]

    def __post_init__(self) -> None:
        if not self.keys:
            raise ValueError("a keyring has at least one key")

    @property
    def primary(self) -> RingKey:
        """The key to send with."""
        return self.keys[0]

    def get(self, key_id: int) -> RingKey | None:
        """Return the key with this id."""
        for key in self.keys:  # a ring has one to three keys: a scan beats a dict
            if key.id == key_id:
                return key
        return None


def parse_keyring(text: str, source: str) -> Keyring:
    """Parse a keyring file: one ``KEYID:BASE64`` a line, the first is primary, ``#`` starts a comment.

    Raises ConfigError: source, line number, what is wrong, what is allowed. Never quotes what it read.
    """
    keys: dict[int, int] = {}
    found: list[RingKey] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        key = _parse_line(words, f"{source}: line {number}")
        if key.id in keys:
            raise ConfigError(
                f"{source}: line {number}: key id {key.id:04x} is on line {keys[key.id]} already"
            )
        if any(key.secret == other.secret for other in found):
            raise ConfigError(
                f"{source}: line {number}: the same key is on the ring under another id already"
            )
        keys[key.id] = number
        found.append(key)
    if not found:
        raise ConfigError(
            f"{source}: no key", "meshctl init makes one, meshctl join TOKEN brings the cluster's"
        )
    if len(found) > RING_KEYS_MAX:
        raise ConfigError(f"{source}: {len(found)} keys; at most {RING_KEYS_MAX} are allowed")
    return Keyring(tuple(found))


def _parse_line(words: str, where: str) -> RingKey:
    digits, colon, encoded = words.partition(":")
    if not colon:
        raise ConfigError(f"{where}: not KEYID:BASE64, e.g. {0x3F2A:04x}:{'A' * 43}=")
    if len(digits) != KEY_ID_DIGITS or not set(digits) <= set("0123456789abcdefABCDEF"):
        raise ConfigError(f"{where}: the key id is not {KEY_ID_DIGITS} hexadecimal digits")
    try:
        secret = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{where}: what follows the key id is not base64") from None
    if len(secret) != SECRET_BYTES:
        raise ConfigError(f"{where}: the key has {len(secret)} bytes; it must have {SECRET_BYTES}")
    return RingKey(int(digits, 16), secret)


def format_key(key: RingKey) -> str:
    """Write a key as the keyring file and tokens carry it, without a line end. The result is a secret."""
    return f"{key.id:04x}:{base64.b64encode(key.secret).decode()}"


def format_keyring(ring: Keyring) -> str:
    """Write the whole file that parse_keyring reads. The result is a secret."""
    return "".join(f"{format_key(key)}\n" for key in ring.keys)


def new_key(entropy: Callable[[int], bytes], taken: Container[int] = ()) -> RingKey:
    """Make a key with an id that is not in ``taken``."""
    while (key_id := int.from_bytes(entropy(2), "big")) in taken:
        pass
    return RingKey(key_id, entropy(SECRET_BYTES))


def data_key(key: RingKey, session: SessionId, sender: HostId) -> bytes:
    """Key of all datagrams that ``sender`` seals in one session (128 random bits, new at each start).

    It is the session that makes nonces safe: a counter from 0 in memory never meets a key twice, whatever
    happens to the host's clock or disk.
    """
    return _derive(key, session, b"meshd/1 data", (sender,))


def hello_key(key: RingKey, source_tag: bytes) -> bytes:
    """Key of the greetings of one session: all that its header says of the sender is ``source_tag``.

    Greetings have random nonces, good for 2**32 uses of one key (NIST SP 800-38D, 8.3). Strangers can make
    a host send WHOs, so a key that all hosts share would reach that within days; one session's does not.
    """
    return _derive(key, None, b"meshd/1 hello", (source_tag,))


def stream_keys(
    key: RingKey,
    ids: tuple[HostId, HostId],
    sessions: tuple[SessionId, SessionId],
    challenges: tuple[bytes, bytes],
) -> tuple[bytes, bytes]:
    """Keys (initiator to responder, responder to initiator); each pair is (initiator's, responder's)."""
    salt = b"".join((*sessions, *challenges))
    return (
        _derive(key, salt, b"meshd/1 stream initiator", ids),
        _derive(key, salt, b"meshd/1 stream responder", ids),
    )


def cluster_secret(key: RingKey) -> bytes:
    """32 bytes that key the digests, from the cluster's founding key. The digests must outlive the ring:
    whoever rotates keys keeps this, not the key.
    """
    return _derive(key, None, b"meshd/1 cluster", ())


def _derive(key: RingKey, salt: bytes | None, purpose: bytes, names: Iterable[bytes]) -> bytes:
    # All names have a fixed size for a given purpose, and no purpose is another's prefix: no two inputs meet.
    info = b"".join((purpose, *names))
    return HKDF(algorithm=SHA256(), length=SECRET_BYTES, salt=salt, info=info).derive(key.secret)
