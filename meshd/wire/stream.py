"""One encrypted stream between two hosts, without I/O: bytes in, blobs out (a blob is one msgpack array of
messages, wire/codec.py). After the greetings (wire/handshake.py) each direction is a row of records:

    length 4 | sealed (flag 1 | part of a blob) | tag 16         the length is that of what follows it

Record nonces count from 0 under a key of this stream and direction, so a record lost, moved or repeated does
not verify; an end that is not an end record is a truncation. Nothing is buffered beyond a greeting before it
verifies, nor beyond one record after. Who connects and what is said is not decided here.
"""

from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from meshd.config import STREAM_BLOB_MAX_BYTES, STREAM_RECORD_BYTES, TAG_BYTES
from meshd.model import HostId, SessionId
from meshd.wire.errors import WireError
from meshd.wire.handshake import GREETING_BYTES, Agreed, Handshake
from meshd.wire.header import NONCE_BYTES
from meshd.wire.keys import Keyring

LENGTH_BYTES = 4
_FLAG_BYTES = 1
_PART_BYTES = STREAM_RECORD_BYTES - _FLAG_BYTES
_SMALLEST = _FLAG_BYTES + TAG_BYTES
_LARGEST = STREAM_RECORD_BYTES + TAG_BYTES

_MORE: Final = 0  # the blob goes on in the next record
_LAST: Final = 1  # the blob ends here
_END: Final = 2  # nothing follows from this side


class _Direction:
    """One direction's key and record count."""

    __slots__ = ("_aead", "_count")

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self._count = 0

    def _nonce(self) -> bytes:
        nonce = self._count.to_bytes(NONCE_BYTES, "big")
        self._count += 1
        return nonce

    def seal(self, record: bytes) -> bytes:
        length = (len(record) + TAG_BYTES).to_bytes(LENGTH_BYTES, "big")
        return length + self._aead.encrypt(self._nonce(), record, length)

    def open(self, length: bytes, sealed: bytes) -> bytes:
        try:
            return self._aead.decrypt(self._nonce(), sealed, length)
        except InvalidTag:
            raise WireError("bad-tag") from None


class Channel:
    """One end of a stream. Make it with ``initiator`` or ``responder``.

    Feed what the socket brings to ``receive``, write what ``outgoing`` gives after every call. A WireError is
    final: drop the connection.
    """

    def __init__(self, handshake: Handshake, first: bytes) -> None:
        self._handshake = handshake
        self._in = bytearray()
        self._out = bytearray(first)
        self._blob = bytearray()  # parts of the blob that is coming in
        self._waiting: list[bytes] = []  # records from before there was anybody to send them to
        self._agreed: Agreed | None = None
        self._sends: _Direction | None = None
        self._receives: _Direction | None = None
        self._finished = False
        self._broken = False
        self.established = False
        """The other end has shown that it holds a ring key, now and not in a recording."""
        self.closed_cleanly = False
        """The other end has said that nothing follows. A connection that ends before was cut."""

    @classmethod
    def initiator(
        cls,
        host: HostId,
        session: SessionId,
        keyring: Keyring,
        entropy: Callable[[int], bytes],
        expect: HostId | None,
    ) -> "Channel":
        """Make the end that connected. ``expect``: the only host to talk to; None: whoever answers (a seed)."""
        handshake = Handshake(host, session, keyring, entropy, initiates=True, expect=expect)
        return cls(handshake, handshake.greeting())

    @classmethod
    def responder(
        cls, host: HostId, session: SessionId, keyring: Keyring, entropy: Callable[[int], bytes]
    ) -> "Channel":
        """Make the end that was connected to."""
        return cls(Handshake(host, session, keyring, entropy, initiates=False, expect=None), b"")

    @property
    def peer(self) -> HostId | None:
        """Who is at the other end; None until ``established``."""
        return self._agreed.peer if self._agreed is not None and self.established else None

    @property
    def peer_session(self) -> SessionId | None:
        """The session it is in, proved as by a HELLO_ACK; None until ``established``."""
        return self._agreed.session if self._agreed is not None and self.established else None

    # --- sending ----------------------------------------------------------------------------------------
    def send(self, plaintext: bytes) -> None:
        """Queue one blob; it leaves once ``established``. Raises ValueError above STREAM_BLOB_MAX_BYTES."""
        if self._finished:
            raise ValueError("the stream is finished: nothing can be sent after it")
        if len(plaintext) > STREAM_BLOB_MAX_BYTES:
            raise ValueError(f"{len(plaintext)} bytes are no blob; at most {STREAM_BLOB_MAX_BYTES} are")
        at = 0
        while len(plaintext) - at > _PART_BYTES:
            self._queue(_MORE, plaintext[at : at + _PART_BYTES])
            at += _PART_BYTES
        self._queue(_LAST, plaintext[at:])

    def finish(self) -> None:
        """Say that nothing follows from this side; receiving goes on. Idempotent."""
        if not self._finished:
            self._finished = True
            self._queue(_END, b"")

    def outgoing(self) -> bytes:
        """Take what is to be written to the socket now."""
        taken = bytes(self._out)
        self._out.clear()
        return taken

    def _queue(self, flag: int, part: bytes) -> None:
        record = bytes((flag,)) + part
        if self._sends is not None and self.established:
            self._out += self._sends.seal(record)
        else:
            self._waiting.append(record)

    # --- receiving --------------------------------------------------------------------------------------
    def receive(self, data: bytes) -> list[bytes]:
        """Take what the socket brought; returns the blobs that are complete. Raises WireError, for good."""
        if self._broken:
            raise WireError("broken")
        try:
            self._in += data
            if self._receives is None:
                self._read_greeting()
                return []
            return self._read_records(self._receives)
        except WireError:
            self._broken = True
            for buffer in (self._in, self._out, self._blob, self._waiting):
                buffer.clear()
            raise

    def _read_greeting(self) -> None:
        # Neither end may go on before the other's greeting has come, so there is never more than one here.
        if len(self._in) > GREETING_BYTES:
            raise WireError("early-data")
        if len(self._in) < GREETING_BYTES:
            return
        self._agreed = agreed = self._handshake.read(bytes(self._in))
        self._in.clear()
        self._sends, self._receives = _Direction(agreed.send), _Direction(agreed.receive)
        self._out += agreed.reply
        if not agreed.reply:  # an initiator: the responder has echoed its challenge
            self._establish(self._sends)

    def _establish(self, sends: _Direction) -> None:
        self.established = True
        for record in self._waiting:
            self._out += sends.seal(record)
        self._waiting.clear()

    def _read_records(self, receives: _Direction) -> list[bytes]:
        blobs: list[bytes] = []
        at = 0
        while len(self._in) - at >= LENGTH_BYTES:
            body = at + LENGTH_BYTES
            length = bytes(self._in[at:body])
            end = body + int.from_bytes(length, "big")
            if not _SMALLEST <= end - body <= _LARGEST:
                raise WireError("record-length")
            if len(self._in) < end:
                break
            record = receives.open(length, bytes(self._in[body:end]))
            at = end
            if not self.established and self._sends is not None:
                self._establish(self._sends)
            blob = self._take(record[0], record[1:])
            if blob is not None:
                blobs.append(blob)
        del self._in[:at]
        return blobs

    def _take(self, flag: int, part: bytes) -> bytes | None:
        """Take one record that has verified. Returns the blob that it completes."""
        if self.closed_cleanly:
            raise WireError("record-order", "a record follows the end")
        if flag == _END and not part and not self._blob:
            self.closed_cleanly = True
            return None
        if flag not in (_MORE, _LAST) or (flag == _MORE and not part):
            raise WireError("record-order")
        if len(self._blob) + len(part) > STREAM_BLOB_MAX_BYTES:
            raise WireError("blob-length")
        self._blob += part
        if flag == _MORE:
            return None
        blob = bytes(self._blob)
        self._blob.clear()
        return blob
