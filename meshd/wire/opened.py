"""What a datagram turned out to be once it verified: the values that Sealer.open returns. No behaviour."""

import msgspec

from meshd.model import Address, HostId, SessionId


class Data(msgspec.Struct, frozen=True, gc=False):
    """``host`` sent this to me in its current session. ``first``: it has just proved that session."""

    host: HostId
    plaintext: bytes
    first: bool = False


class Greeting(msgspec.Struct, frozen=True):
    """A HELLO came in. ``reply``: the HELLO_ACK to send back, no longer than the HELLO. It can be a recording:
    it says no more than that ``session`` of ``host`` has existed, at ``incarnation``.
    """

    host: HostId
    session: SessionId
    incarnation: int
    reply: bytes


class Greeted(msgspec.Struct, frozen=True):
    """``host`` answered my challenge, so its session is proved and can be sealed to. ``incarnation``: its own;
    ``my_incarnation_there``: the one at which it knows me (0: not at all). Above mine: I have lived before.
    Both are 64 bits that the caller has to cap.
    """

    host: HostId
    session: SessionId
    incarnation: int
    my_incarnation_there: int


class Who(msgspec.Struct, frozen=True):
    """Whoever is at ``source`` could not read a datagram of mine: greet it. Comes once for each datagram."""

    source: Address


Opened = Data | Greeting | Greeted | Who
