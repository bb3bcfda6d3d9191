"""The greetings at the start of a stream: 104 bytes each way, after which both ends have the same two keys.

    header 24 | sealed (id 16 | session 16 | challenge 16 | 16 more) | tag 16
    the 16 more: from the initiator, the id it wants, or zeros; from the responder, the initiator's challenge

Both challenges go into the keys, so a recorded greeting opens nothing. Knows nothing of records.
"""

from collections.abc import Callable
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from meshd.config import HEADER_BYTES, TAG_BYTES
from meshd.model import ID_BYTES, HostId, SessionId
from meshd.wire.errors import WireError
from meshd.wire.greet import CHALLENGE_BYTES
from meshd.wire.header import NOBODY, NONCE, NONCE_BYTES, PREFIX, TAG_SIZE, VERSION, Type, source_tags
from meshd.wire.keys import Keyring, RingKey, hello_key, stream_keys

ANYBODY = bytes(ID_BYTES)
GREETING_BYTES = HEADER_BYTES + 2 * ID_BYTES + 2 * CHALLENGE_BYTES + TAG_BYTES


class Agreed(NamedTuple):
    """The other end, as it says, and the keys of the two directions. ``reply``: to be sent to it."""

    peer: HostId
    session: SessionId
    send: bytes
    receive: bytes
    reply: bytes


class Handshake:
    """One end's side of it. ``expect``: the only host that an initiator will talk to, or None."""

    def __init__(
        self,
        host: HostId,
        session: SessionId,
        keyring: Keyring,
        entropy: Callable[[int], bytes],
        *,
        initiates: bool,
        expect: HostId | None,
    ) -> None:
        self._host = host
        self._session = session
        self._keyring = keyring
        self._entropy = entropy
        self._expect = expect
        self._initiates = initiates
        self._challenge = entropy(CHALLENGE_BYTES)

    def greeting(self) -> bytes:
        """Make the initiator's greeting."""
        return self._seal(self._keyring.primary, Type.STREAM_HELLO, self._expect or ANYBODY, b"")

    def read(self, greeting: bytes) -> Agreed:
        """Verify the other end's GREETING_BYTES. An initiator may believe the result; to a responder it can be
        a recording, until a record under the agreed key verifies. Raises WireError.
        """
        header = greeting[:HEADER_BYTES]
        if header[0] != VERSION:
            raise WireError("version")
        if header[1] != (Type.STREAM_ANSWER if self._initiates else Type.STREAM_HELLO):
            raise WireError("type")
        key = self._keyring.get(int.from_bytes(header[2:4], "big"))
        if key is None:
            raise WireError("unknown-key")
        binding = self._host + self._session if self._initiates else b""
        cipher = AESGCM(hello_key(key, header[8:12]))
        try:
            body = cipher.decrypt(header[NONCE], greeting[HEADER_BYTES:], header + binding)
        except InvalidTag:
            raise WireError("bad-tag") from None
        host, session, challenge, more = (body[at : at + ID_BYTES] for at in range(0, len(body), ID_BYTES))
        if host == self._host:
            raise WireError("own-id")
        if self._initiates:
            return self._answered(key, host, session, challenge, more)
        return self._asked(key, host, session, challenge, more)

    def _answered(
        self, key: RingKey, host: HostId, session: SessionId, challenge: bytes, echo: bytes
    ) -> Agreed:
        """Take the responder's greeting: its echo of my challenge proves it."""
        if echo != self._challenge:
            raise WireError("not-asked")
        if self._expect not in (None, host):
            raise WireError("wrong-host")
        send, receive = stream_keys(
            key, (self._host, host), (self._session, session), (self._challenge, challenge)
        )
        return Agreed(host, session, send, receive, b"")

    def _asked(
        self, key: RingKey, host: HostId, session: SessionId, challenge: bytes, wanted: HostId
    ) -> Agreed:
        """Take the initiator's greeting, and answer it under the key that it has, which need not be primary."""
        if wanted not in (ANYBODY, self._host):
            raise WireError("wrong-host")
        receive, send = stream_keys(
            key, (host, self._host), (session, self._session), (challenge, self._challenge)
        )
        return Agreed(
            host, session, send, receive, self._seal(key, Type.STREAM_ANSWER, challenge, host + session)
        )

    def _seal(self, key: RingKey, kind: Type, more: bytes, binding: bytes) -> bytes:
        tag = source_tags(self._session)[:TAG_SIZE]
        nonce = self._entropy(NONCE_BYTES)
        header = PREFIX.pack(VERSION, kind, key.id) + NOBODY + tag + nonce
        body = self._host + self._session + self._challenge + more
        return header + AESGCM(hello_key(key, tag)).encrypt(nonce, body, header + binding)
