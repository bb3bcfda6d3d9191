"""Plaintexts <-> sealed datagrams: AES-256-GCM under keys that no two sessions share.

A datagram is bound to its receiver's id and present session (authenticated, not sent), so one recorded
before the receiver's restart, or for another receiver, does not verify; within a session a window refuses
what was seen; sessions only move forward (wire/sessions.py). No clock and nothing on disk is needed.

Knows nothing of messages (wire/codec.py), sockets or who is alive. ``now`` drives rate limits and how long a
challenge stands open, nothing else.
"""

from collections import OrderedDict
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from meshd.config import (
    DATAGRAM_MAX_BYTES,
    HEADER_BYTES,
    KEYS_CACHED,
    MTU_PROBE_MAX_BYTES,
    PLAINTEXT_MAX_BYTES,
    SESSION_PACKETS_MAX,
    TAG_BYTES,
)
from meshd.model import Address, HostId, SessionId
from meshd.wire.errors import SessionExhausted, UnknownSession, WireError
from meshd.wire.greeter import Greeter
from meshd.wire.header import (
    COUNTER,
    COUNTER_BYTES,
    NONCE,
    PREFIX,
    SOURCE,
    TAG_SIZE,
    VERSION,
    Type,
    source_tags,
)
from meshd.wire.keys import Keyring, RingKey, data_key
from meshd.wire.opened import Data, Opened
from meshd.wire.sessions import Peer, Sessions

_DATA = int(Type.DATA)
_SMALLEST = HEADER_BYTES + TAG_BYTES
_PROBE_MAX_BYTES = MTU_PROBE_MAX_BYTES - _SMALLEST


class Sealer:
    """Seals and opens for one host in one session.

    ``session``: 16 random bytes, made at this start. ``incarnation()``: this host's present one.
    ``known_incarnation(host)``: the one at which this host knows ``host``, 0 for not at all; greetings from
    before it prove nothing.
    """

    def __init__(
        self,
        host: HostId,
        session: SessionId,
        keyring: Keyring,
        entropy: Callable[[int], bytes],
        incarnation: Callable[[], int],
        known_incarnation: Callable[[HostId], int],
    ) -> None:
        self._host = host
        self._session = session
        self._source = source_tags(session)
        self._tag = self._source[:TAG_SIZE]
        self._binding = host + session
        self._counter = 0
        self._sessions = Sessions(host)
        self._greeter = Greeter(host, session, self._sessions, entropy, incarnation, known_incarnation)
        self._aeads: OrderedDict[tuple[bytes, Peer], AESGCM] = OrderedDict()
        self.keyring = keyring

    @property
    def tag(self) -> bytes:
        """The 4-byte destination tag of datagrams to me (wire/filter.py)."""
        return self._tag

    @property
    def session(self) -> SessionId:
        """My own session."""
        return self._session

    @property
    def keyring(self) -> Keyring:
        """The ring: all its keys are read, its primary one is sent with. May be replaced at any time."""
        return self._keyring

    @keyring.setter
    def keyring(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._aeads.clear()  # a key that left the ring must not live on here
        self._prefix = PREFIX.pack(VERSION, Type.DATA, keyring.primary.id)
        self._own = AESGCM(data_key(keyring.primary, self._session, self._host))

    # --- sessions ---------------------------------------------------------------------------------------
    def learn(self, host: HostId, session: SessionId) -> bool:
        """Take ``session`` as the proved, current one of ``host``: it stands in the host's own record, or a
        stream has shown it. The former one is never accepted again. Returns whether it is current now.
        """
        return self._sessions.learn(host, session)

    def forget(self, host: HostId) -> None:
        """Neither read nor write ``host`` again until it comes with a new session."""
        self._sessions.forget(host)

    def session_of(self, host: HostId) -> SessionId | None:
        """Return the proved session of ``host``."""
        peer = self._sessions.current(host)
        return None if peer is None else peer.session

    # --- sending ----------------------------------------------------------------------------------------
    def seal(self, to: HostId, plaintext: bytes, *, probe: bool = False) -> bytes:
        """Seal at most PLAINTEXT_MAX_BYTES to ``to``, or a padded ``probe`` of whatever size IP carries. Raises
        UnknownSession; ValueError when it is too long."""
        peer = self._sessions.current(to)
        if peer is None:
            raise UnknownSession(to)
        most = _PROBE_MAX_BYTES if probe else PLAINTEXT_MAX_BYTES
        if len(plaintext) > most:
            raise ValueError(f"{len(plaintext)} bytes do not fit a datagram; at most {most} do")
        counter = self._counter
        if counter >= SESSION_PACKETS_MAX:
            raise SessionExhausted
        self._counter = counter + 1
        header = self._prefix + peer.destination + self._source + counter.to_bytes(COUNTER_BYTES, "big")
        return header + self._own.encrypt(header[NONCE], plaintext, header + peer.binding)

    def hello(self, now: float) -> bytes:
        """Make a HELLO, to be sent to any address: it names no receiver, and whoever answers is in Greeted.
        An answer counts for CHALLENGE_S seconds from ``now``, once; so make one for each address.
        """
        return self._greeter.hello(self._keyring.primary, now)

    # --- receiving --------------------------------------------------------------------------------------
    def open(self, datagram: bytes, source: Address, now: float) -> Opened:
        """Verify and decrypt one datagram that came from ``source``.

        Raises WireError, whose ``answer`` is to be sent back to ``source`` where it is not None.
        """
        if len(datagram) < _SMALLEST:
            raise WireError("short")
        if datagram[0] != VERSION:
            raise WireError("version")
        if len(datagram) > (MTU_PROBE_MAX_BYTES if datagram[1] == _DATA else DATAGRAM_MAX_BYTES):
            raise WireError("long")  # of DATA, whoever decodes it bounds all but probes
        if datagram[1] != _DATA:
            return self._greeter.open(self._keyring, datagram, source, now, self._counter)
        if datagram[4:8] != self._tag:
            raise WireError("not-for-me")
        peer = self._sessions.find(datagram[SOURCE])
        if peer is None:
            raise self._stranger(datagram, now)
        counter = int.from_bytes(datagram[COUNTER], "big")
        if not peer.window.fresh(counter):  # before decrypting: a replay is to cost little
            raise WireError("replayed")
        if counter >= SESSION_PACKETS_MAX:
            raise WireError("counter")
        aead = self._aead(datagram[2:4], peer)
        header = datagram[:HEADER_BYTES]
        try:
            plaintext = aead.decrypt(header[NONCE], datagram[HEADER_BYTES:], header + self._binding)
        except InvalidTag:
            raise WireError("bad-tag") from None
        peer.window.mark(counter)
        # A candidate that binds a datagram to my present session is no recording from before it.
        first = not self._sessions.is_current(peer) and self._sessions.learn(peer.host, peer.session)
        return Data(peer.host, plaintext, first)

    def _aead(self, key_id: bytes, peer: Peer) -> AESGCM:
        """Return the cipher of what ``peer`` seals with this ring key."""
        aead = self._aeads.get((key_id, peer))
        if aead is None:
            aead = AESGCM(data_key(self._key(key_id), peer.session, peer.host))
            self._aeads[key_id, peer] = aead
            if len(self._aeads) > KEYS_CACHED:
                self._aeads.popitem(last=False)
        else:
            self._aeads.move_to_end((key_id, peer))
        return aead

    def _key(self, key_id: bytes) -> RingKey:
        key = self._keyring.get(int.from_bytes(key_id, "big"))
        if key is None:
            raise WireError("unknown-key")
        return key

    def _stranger(self, datagram: bytes, now: float) -> WireError:
        """Refuse a datagram of a session I do not know, and ask: its sender has restarted, or I have."""
        key = self._key(datagram[2:4])
        if self._sessions.is_retired(datagram[SOURCE]):
            return WireError("retired-session")
        return WireError("unknown-session", answer=self._greeter.who(key, datagram, now))
