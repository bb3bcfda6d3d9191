"""How two hosts learn each other's session: HELLO, HELLO_ACK and WHO (layouts: wire/greet.py), and which of
them to believe. A HELLO can be a recording; a HELLO_ACK echoes a fresh challenge and cannot.

Under a key of the sender's session (wire/keys.py, hello_key) with random nonces. Answers go under the key
that the question came under, not the primary one: a host that was off during a rotation has no other.
"""

from collections import OrderedDict
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from meshd.config import CHALLENGE_S, CHALLENGES_OPEN, HEADER_BYTES, HELLO_PER_S, TAG_BYTES, WHO_PER_S
from meshd.model import Address, HostId, SessionId
from meshd.wire.errors import WireError
from meshd.wire.greet import (
    CHALLENGE_BYTES,
    Hello,
    HelloAck,
    pack_ack,
    pack_hello,
    unpack_ack,
    unpack_hello,
    unpack_who,
)
from meshd.wire.header import NOBODY, NONCE, NONCE_BYTES, PREFIX, SOURCE, TAG_SIZE, VERSION, Type, source_tags
from meshd.wire.keys import Keyring, RingKey, hello_key
from meshd.wire.opened import Greeted, Greeting, Opened, Who
from meshd.wire.rate import TokenBucket
from meshd.wire.replay import Window
from meshd.wire.sessions import Sessions


class Greeter:
    """Asks and answers for one host in one session; what it learns goes into ``sessions``."""

    def __init__(
        self,
        host: HostId,
        session: SessionId,
        sessions: Sessions,
        entropy: Callable[[int], bytes],
        incarnation: Callable[[], int],
        known_incarnation: Callable[[HostId], int],
    ) -> None:
        self._host = host
        self._session = session
        self._sessions = sessions
        self._entropy = entropy
        self._incarnation = incarnation
        self._known_incarnation = known_incarnation
        source = source_tags(session)
        self._tag = source[:TAG_SIZE]
        self._session_tag = source[TAG_SIZE:]
        self._binding = host + session
        self._questions: OrderedDict[bytes, float] = OrderedDict()  # open challenge -> when it was sent
        self._unread = Window()  # counters of mine that came back in a WHO
        self._whos = TokenBucket(WHO_PER_S)
        self._hellos = TokenBucket(HELLO_PER_S)
        self._answers = TokenBucket(
            HELLO_PER_S
        )  # of their own, so that a flood of HELLOs leaves them readable

    # --- sending ----------------------------------------------------------------------------------------
    def hello(self, key: RingKey, now: float) -> bytes:
        """Make a HELLO with a new challenge; an answer counts for CHALLENGE_S from ``now``."""
        challenge = self._entropy(CHALLENGE_BYTES)
        self._questions[challenge] = now
        if len(self._questions) > CHALLENGES_OPEN:
            self._questions.popitem(last=False)
        body = pack_hello(Hello(self._host, self._session, self._incarnation(), challenge))
        return self._seal(Type.HELLO, key, NOBODY, body)

    def who(self, key: RingKey, unread: bytes, now: float) -> bytes | None:
        """Make the WHO that answers a DATA datagram of an unknown session: None when it would be longer than
        that, or when WHO_PER_S are out.
        """
        if len(unread) < HEADER_BYTES + NONCE_BYTES + TAG_BYTES or not self._whos.take(now):
            return None
        return self._seal(Type.WHO, key, unread[SOURCE][:TAG_SIZE], unread[NONCE])

    def _seal(self, kind: Type, key: RingKey, destination: bytes, body: bytes, binding: bytes = b"") -> bytes:
        nonce = self._entropy(NONCE_BYTES)
        header = PREFIX.pack(VERSION, kind, key.id) + destination + self._tag + nonce
        return header + AESGCM(hello_key(key, self._tag)).encrypt(nonce, body, header + binding)

    # --- receiving --------------------------------------------------------------------------------------
    def open(self, ring: Keyring, datagram: bytes, source: Address, now: float, sealed: int) -> Opened:
        """Verify a datagram (as long as a header and tag at least) that is not DATA. ``sealed``: how many DATA
        datagrams this session has sealed. Raises WireError.
        """
        match datagram[1]:
            case Type.HELLO:
                key, body = self._decrypt(ring, datagram, NOBODY, self._hellos, now)
                return self._hello_came(key, unpack_hello(body))
            case Type.HELLO_ACK:
                _, body = self._decrypt(ring, datagram, self._tag, self._answers, now, self._binding)
                return self._ack_came(unpack_ack(body), now)
            case Type.WHO:
                _, body = self._decrypt(ring, datagram, self._tag, self._answers, now)
                return self._who_came(unpack_who(body), source, sealed)
        raise WireError("type")

    def _hello_came(self, key: RingKey, hello: Hello) -> Greeting:
        if hello.host == self._host:
            raise WireError("own-session" if hello.session == self._session else "own-id")
        source = source_tags(hello.session)
        if self._sessions.is_retired(source):
            raise WireError("retired-session")
        known = self._known_incarnation(hello.host)
        # A start that came before one I know of is answered, so that a host whose clock went back can raise
        # its incarnation and greet again; but it is no candidate: a recording of it, with a datagram that was
        # held back, would retire the living session.
        if hello.incarnation >= known:
            self._sessions.consider(hello.host, hello.session)
        ack = HelloAck(self._host, self._session, hello.challenge, known, self._incarnation())
        binding = hello.host + hello.session
        reply = self._seal(Type.HELLO_ACK, key, source[:TAG_SIZE], pack_ack(ack), binding)
        return Greeting(hello.host, hello.session, hello.incarnation, reply)

    def _ack_came(self, ack: HelloAck, now: float) -> Greeted:
        asked_at = self._questions.pop(ack.challenge, None)
        if asked_at is None or now - asked_at > CHALLENGE_S:
            raise WireError("not-asked")
        if ack.host == self._host:
            raise WireError("own-id")
        if ack.incarnation < self._known_incarnation(ack.host):
            raise WireError("stale")
        if not self._sessions.learn(ack.host, ack.session):
            raise WireError("retired-session")
        return Greeted(ack.host, ack.session, ack.incarnation, ack.known)

    def _who_came(self, nonce: bytes, source: Address, sealed: int) -> Who:
        counter = int.from_bytes(nonce[TAG_SIZE:], "big")
        if nonce[:TAG_SIZE] != self._session_tag or counter >= sealed:
            raise WireError("not-asked")
        if not self._unread.fresh(counter):
            raise WireError("replayed")
        self._unread.mark(counter)
        return Who(source)

    def _decrypt(
        self,
        ring: Keyring,
        datagram: bytes,
        destination: bytes,
        bucket: TokenBucket,
        now: float,
        binding: bytes = b"",
    ) -> tuple[RingKey, bytes]:
        """Verify a greeting. Returns the ring key that it came under, and its body."""
        if datagram[4:8] != destination:
            raise WireError("not-for-me")
        key = ring.get(int.from_bytes(datagram[2:4], "big"))
        if key is None:
            raise WireError("unknown-key")
        if not bucket.take(now):
            raise WireError("rate-limited")
        header = datagram[:HEADER_BYTES]
        aead = AESGCM(hello_key(key, header[8:12]))
        try:
            return key, aead.decrypt(header[NONCE], datagram[HEADER_BYTES:], header + binding)
        except InvalidTag:
            raise WireError("bad-tag") from None
