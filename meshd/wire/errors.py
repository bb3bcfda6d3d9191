"""Why a datagram, a stream or a message was refused. ``reason`` is one of REASONS: a short word that the
counters in ``meshctl doctor`` and /metrics carry. Decides nothing.
"""

from meshd.errors import MeshdError, PeerError
from meshd.model import HostId, text_id

REASONS: dict[str, str] = {
    # framing: whoever sent it need not hold a key
    "short": "it is shorter than an empty sealed datagram",
    "long": "it is longer than a datagram may be that is no padded probe",
    "version": "its first byte is not this wire version",
    "type": "its type is unknown",
    "not-for-me": "it is addressed to another host or to an earlier start of this one",
    "unknown-key": "it is sealed with a key that is not on the ring",
    "unknown-session": "its sender's session is unknown",
    "retired-session": "its sender's session has been replaced by a later one",
    "counter": "its counter is above what a session may reach",
    "replayed": "it was received before, or is older than the replay window",
    "bad-tag": "it does not verify",
    "rate-limited": "there are more greetings than this host looks at",
    # greetings: the sender holds a key
    "own-session": "it is this host's own greeting",
    "own-id": "another process greets with this host's id: a cloned disk, or a greeting of an earlier start",
    "malformed": "its sealed body has the wrong size",
    "not-asked": "it answers no question that this host has open",
    "stale": "it is from before an incarnation that this host knows of",
    # streams
    "early-data": "data follows the greeting before it was answered",
    "wrong-host": "the other end is not the host that was asked for, or asks for another one",
    "record-length": "a record's length is out of bounds",
    "record-order": "a record does not fit what came before it",
    "blob-length": "a run of records is longer than any message",
    "broken": "the stream was refused before",
    "cut-short": "the stream ended before its end was said",
    "out-of-turn": "a message does not fit what the stream is about",
    "bucket-count": "a number of buckets is no power of two",
    # contents
    "not-msgpack": "it is not msgpack within the bounds",
    "too-deep": "it nests deeper than any message",
    "not-messages": "it is not an array of tagged messages",
    "bad-message": "a message has wrong fields",
    "bad-item": "an item has wrong fields",
    "local-kind": "an item is of a kind that never leaves its host",
}
"""Reason -> sentence about the thing refused."""


class WireError(PeerError):
    """What came in was refused and had no effect.

    ``reason``: a key of REASONS. ``answer``: a datagram to send back to where it came from, or None; never
    longer than what came in.
    """

    code = "wire"

    def __init__(self, reason: str, detail: str = "", *, answer: bytes | None = None) -> None:
        what = REASONS[reason]
        super().__init__(f"{what}: {detail}" if detail else what)
        self.reason = reason
        self.answer = answer


class UnknownSession(PeerError):
    """Nothing can be sealed to a host before its session is known: greet it first."""

    code = "unknown-session"

    def __init__(self, host: HostId) -> None:
        super().__init__(f"no session is known of host {text_id(host)}")
        self.host = host


class SessionExhausted(MeshdError):
    """This session has used every nonce that it may. Nothing was sent."""

    code = "session-exhausted"

    def __init__(self) -> None:
        super().__init__("this session has sealed as many datagrams as one key may", "restart meshd")
