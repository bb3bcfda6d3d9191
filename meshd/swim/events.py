"""What the core tells its host about membership: frozen values, drained with Swim.take_events().

``was`` is the member's state before ("" when it was not known). Nothing here decides anything.
"""

import msgspec

from meshd.model import HostId, MemberFacts, SessionId


class MemberAlive(msgspec.Struct, frozen=True):
    """New, back from failed or left, or no longer suspect."""

    id: HostId
    facts: MemberFacts
    incarnation: int
    was: str


class MemberChanged(msgspec.Struct, frozen=True):
    """Was alive and is, with other facts: it moved, was renamed, upgraded or restarted (``restarted``)."""

    id: HostId
    facts: MemberFacts
    incarnation: int
    restarted: bool


class MemberSuspect(msgspec.Struct, frozen=True):
    """``accuser``, this host or another, could not reach it."""

    id: HostId
    incarnation: int
    accuser: HostId


class MemberFailed(msgspec.Struct, frozen=True):
    """The cluster's verdict; it is retried for as long as it is known."""

    id: HostId
    facts: MemberFacts
    incarnation: int
    was: str


class MemberLeft(msgspec.Struct, frozen=True):
    """It said that it left, or was forgotten."""

    id: HostId
    facts: MemberFacts
    incarnation: int
    was: str


class MemberDegraded(msgspec.Struct, frozen=True):
    """It answered by stream only: UDP is blocked between the two hosts. ``degraded`` False: it is over."""

    id: HostId
    degraded: bool


class MemberRestarting(msgspec.Struct, frozen=True):
    """It will be back within ``duration_s`` seconds."""

    id: HostId
    duration_s: float


class SelfAccused(msgspec.Struct, frozen=True):
    """Somebody called this host suspect, failed or left; it has refuted. ``accuser`` None: not known."""

    incarnation: int
    accuser: HostId | None


class Cloned(msgspec.Struct, frozen=True):
    """Another process runs with this host's identity, at ``facts.address``. Emitted once."""

    session: SessionId
    facts: MemberFacts


class WildClaim(msgspec.Struct, frozen=True):
    """A claim about ``id`` that cannot be right (incarnation above INCARNATION_MAX); not obeyed."""

    id: HostId
    incarnation: int


class DigestSeen(msgspec.Struct, frozen=True):
    """``peer`` holds a state with this digest."""

    peer: HostId
    digest: bytes


class StreamProbe(msgspec.Struct, frozen=True):
    """Dial ``target`` by stream, send StreamPing(``nonce``); if it answers, call Swim.stream_pong."""

    target: HostId
    nonce: int


class Paused(msgspec.Struct, frozen=True):
    """This host was not running for ``duration_s`` seconds beyond the deadline it had asked for."""

    duration_s: float


SwimEvent = (
    MemberAlive | MemberChanged | MemberSuspect | MemberFailed | MemberLeft | MemberDegraded | MemberRestarting
    | SelfAccused | Cloned | WildClaim | DigestSeen | StreamProbe | Paused
)  # fmt: skip
