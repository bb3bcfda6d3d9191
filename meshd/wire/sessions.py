"""Whose datagrams are read, and to whom one can be sealed: the sessions that this host knows.

A host's session is 128 random bits, new at each start. It is *current* once proved: heard in the host's own
member record, or by an answer to a fresh challenge, or by a datagram bound to this host's present session. A
session heard in a HELLO, which can be a recording, is only a *candidate*: read, not written to, few in
number. A replaced session is *retired*, and never believed again while this process lives: a window over
counters guards one session, the retired list guards the past ones. Knows no keys and no clock.
"""

from collections import OrderedDict

from meshd.config import CANDIDATE_SESSIONS, RETIRED_SESSIONS
from meshd.model import HostId, SessionId
from meshd.wire.header import TAG_SIZE, source_tags
from meshd.wire.replay import Window


class Peer:
    """One session of one host. ``source``: its 8 tag bytes; ``binding``: what a datagram to it is bound to."""

    __slots__ = ("binding", "destination", "host", "session", "source", "window")

    def __init__(self, host: HostId, session: SessionId) -> None:
        self.host = host
        self.session = session
        self.source = source_tags(session)
        self.destination = self.source[:TAG_SIZE]
        self.binding = host + session
        self.window = Window()


class Sessions:
    """All known sessions. ``me`` is never among them."""

    def __init__(self, me: HostId) -> None:
        self._me = me
        self._by_source: dict[bytes, Peer] = {}  # current and candidate sessions
        self._current: dict[HostId, Peer] = {}
        self._candidates: OrderedDict[bytes, Peer] = OrderedDict()
        self._retired: OrderedDict[bytes, None] = OrderedDict()

    def find(self, source: bytes) -> Peer | None:
        """Return the session with these tags, if datagrams of it are to be read."""
        return self._by_source.get(source)

    def current(self, host: HostId) -> Peer | None:
        """Return the proved session of ``host``."""
        return self._current.get(host)

    def is_current(self, peer: Peer) -> bool:
        """Say whether ``peer`` is proved."""
        return self._current.get(peer.host) is peer

    def is_retired(self, source: bytes) -> bool:
        """Say whether the session with these tags was replaced."""
        return source in self._retired

    def learn(self, host: HostId, session: SessionId) -> bool:
        """Take a proved session as current and retire all others of ``host``. Returns whether it is current
        now: a retired session, and one that another host has proved, is not taken.
        """
        source = source_tags(session)
        old = self._current.get(host)
        if old is not None and old.session == session:
            return True
        known = self._by_source.get(source)
        if host == self._me or source in self._retired:
            return False
        if known is not None and known.host != host and self.is_current(known):
            return False
        # A candidate keeps its window: what was read in it cannot be read again.
        peer = known if known is not None and known.host == host else Peer(host, session)
        self._candidates.pop(source, None)
        self.forget(host)
        self._current[host] = self._by_source[source] = peer
        return True

    def consider(self, host: HostId, session: SessionId) -> None:
        """Take a session heard in a HELLO as candidate, unless it is known or retired."""
        source = source_tags(session)
        if source in self._candidates:
            self._candidates.move_to_end(source)
        elif host != self._me and source not in self._retired and source not in self._by_source:
            self._candidates[source] = self._by_source[source] = Peer(host, session)
            if len(self._candidates) > CANDIDATE_SESSIONS:
                oldest, _ = self._candidates.popitem(last=False)
                del self._by_source[oldest]

    def forget(self, host: HostId) -> None:
        """Retire every session of ``host``, candidates too: one that was held back must not come after."""
        gone = [source for source, peer in self._candidates.items() if peer.host == host]
        for source in gone:
            del self._candidates[source]
        current = self._current.pop(host, None)
        if current is not None:
            gone.append(current.source)
        for source in gone:
            del self._by_source[source]
            self._retired[source] = None
        while len(self._retired) > RETIRED_SESSIONS:
            self._retired.popitem(last=False)
