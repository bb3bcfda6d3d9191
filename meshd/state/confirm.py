"""Decides when space that was handed on may be used: once everybody who might come to own it again, should its holder be
forgotten, has said that it has the deed on disk. Those are the *witnesses*: the owners up the chain, who handed it down,
and the heirs that the genesis deed names. Must not know how a question travels, nor who is alive (the caller says).

A witness that has seen another deed for the same space says nothing. So where a donor lost its state, or was cloned, and
gives one block away twice, at most one of the two receivers ever uses it, in whatever partition they are. What is lost
on the way is asked for again: it costs time and nothing else. Space is fetched ahead of need, so an attach seldom waits.
"""

from collections.abc import Collection, Iterable

from meshd.config import HOLD_IDS_MAX, HOLD_RETRY_S
from meshd.errors import Unavailable
from meshd.model import NO_PARENT, HostId
from meshd.state.deeds import DeedBook, DeedId


class Unconfirmed(Unavailable):
    """Space is this host's by ``deeds``, and witnesses have yet to say that they know."""

    code = "unconfirmed"

    def __init__(self, what: str, deeds: Iterable[DeedId]) -> None:
        super().__init__(f"{what} was handed on to this host and may not be used yet", "retry")
        self.deeds = frozenset(deeds)


class Confirming:
    """This host's deeds that are not confirmed yet, and who has confirmed them so far."""

    def __init__(self, me: HostId, book: DeedBook) -> None:
        self._me = me
        self._book = book
        self._heard: dict[DeedId, set[HostId]] = {}
        self._asked: dict[tuple[DeedId, HostId], float] = {}

    def __len__(self) -> int:
        return len(self._heard)

    def watch(self, key: DeedId) -> None:
        """Follow a deed, if it is this host's and is not confirmed."""
        deed = self._book.deed(key)
        mine = deed is not None and deed.owner == self._me and deed.parent != NO_PARENT
        if mine and key not in self._book.confirmed:
            self._heard.setdefault(key, set())

    def heard(self, witness: HostId, keys: Iterable[DeedId]) -> None:
        """Take a witness's word that it has these deeds on disk and knows of no other for their space."""
        for key in keys:
            if key in self._heard:
                self._heard[key].add(witness)

    def missing(self, key: DeedId, gone: Collection[HostId]) -> set[HostId]:
        """Return whose word a deed waits for. ``gone``: hosts that have left for good, who never own anything again."""
        return {*self._book.witnesses(key)} - self._heard.get(key, set()) - {*gone}

    def take_confirmed(self, gone: Collection[HostId]) -> list[DeedId]:
        """Confirm in the book what waits for nobody any more, and return it."""
        done = [key for key in self._heard if self._book.held(key) and not self.missing(key, gone)]
        for key in done:
            del self._heard[key]
            self._book.confirm(key)
        if done:
            self._asked = {asked: at for asked, at in self._asked.items() if asked[0] in self._heard}
        return done

    def due(
        self, now: float, alive: Collection[HostId], gone: Collection[HostId]
    ) -> dict[HostId, list[DeedId]]:
        """Return whom to ask now about which deeds: at most HOLD_IDS_MAX each, and each again after HOLD_RETRY_S."""
        found: dict[HostId, list[DeedId]] = {}
        for key in self._heard:
            if not self._book.held(key):
                continue  # an ancestor has not been seen yet: who its witnesses are is not known
            for witness in self.missing(key, gone):
                asked = self._asked.get((key, witness))
                again = asked is None or now - asked >= HOLD_RETRY_S
                keys = found.setdefault(witness, []) if witness in alive and again else None
                if keys is not None and len(keys) < HOLD_IDS_MAX:
                    keys.append(key)
                    self._asked[key, witness] = now
        return found
