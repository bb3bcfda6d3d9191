"""Asks the witnesses of this host's deeds for their word and gives this host's own (state/confirm.py has the rule): the
waiting, the disk and the messages in between.
"""

from collections.abc import Callable, Collection, Iterable

import structlog
import trio

from meshd.config import BLOCK_ASK_TIMEOUT_S, HOLD_RETRY_S
from meshd.errors import MeshdError
from meshd.messages import Held, Hold, News
from meshd.model import Confirmed, Deed, HostId, Item, Kind, Version
from meshd.shell.usecase import ClusterLike
from meshd.state.confirm import Confirming
from meshd.state.deeds import DeedBook, DeedId, deed_item

log = structlog.get_logger("meshd.holds")


class Holds:
    """One of these per daemon."""

    def __init__(self, me: HostId, book: DeedBook) -> None:
        self._me = me
        self._book = book
        self._waiting = Confirming(me, book)
        self._wake = trio.Event()
        self._changed = trio.Event()

    def watch(self, key: DeedId) -> None:
        """A deed has come: if it is this host's, its witnesses are asked."""
        self._waiting.watch(key)
        self._wake.set()

    def heard(self, witness: HostId, held: Held) -> None:
        """A witness has given its word."""
        self._waiting.heard(witness, held.deeds)
        self._wake.set()

    async def run(self, cluster: ClusterLike) -> None:
        """Ask and ask again, for ever; what is confirmed is written down, so that a restart need not ask."""
        while True:
            self._wake = trio.Event()
            gone = cluster.gone()
            done = self._waiting.take_confirmed(gone)
            for witness, keys in self._waiting.due(cluster.now(), cluster.alive(), gone).items():
                along = [
                    News((deed_item(deed),)) for key in keys if (deed := self._book.deed(key)) is not None
                ]
                cluster.send(witness, [*along, Hold(tuple(keys))])
            if done:
                self._changed.set()
                self._changed = trio.Event()
                try:
                    await cluster.commit([self._record(key) for key in done])
                except (
                    MeshdError
                ) as error:  # they are valid all the same, and asked for again after a restart
                    log.warning("confirmed deeds not written down", error=error.what)
            with trio.move_on_after(HOLD_RETRY_S if self._waiting else float("inf")):
                await self._wake.wait()

    def _record(self, key: DeedId) -> Item:
        deed = self._book.deed(key)
        if not isinstance(deed, Deed):
            raise TypeError("a deed that is confirmed is known")
        return Item(Kind.CONFIRMED, key, Version(0, 0, self._me), Confirmed(deed.network))

    async def settled(
        self, keys: Collection[DeedId], gone: Callable[[], set[HostId]], alive: Callable[[], Iterable[HostId]]
    ) -> set[HostId]:
        """Wait until deeds of this host's are confirmed, but not for witnesses that are not alive, and at most
        BLOCK_ASK_TIMEOUT_S. Returns whose word is missing, nobody where all are confirmed."""
        missing: set[HostId] = set()
        with trio.move_on_after(BLOCK_ASK_TIMEOUT_S):
            while True:
                changed = self._changed
                missing = {
                    host
                    for key in keys
                    if not self._book.valid(key)
                    for host in self._waiting.missing(key, gone())
                }
                if all(map(self._book.valid, keys)) or (missing and not missing & {*alive()}):
                    break
                await changed.wait()
        return missing
