"""Decides who gets the address blocks of a host that goes for good, and by which deeds. Must not know endpoints, liveness
or how a deed travels.

A host that leaves hands on what it owns itself. For one that was forgotten its heir does, in its name: whoever owned the
block before it, the nearest first, else the heirs that the creator named, the first that was not forgotten itself. That
follows from the deeds alone and not from who asked, so that operators in two partitions name the same heir. Should two
heirs act all the same (one of them was forgotten by a half of the cluster alone), their deeds contradict each other,
which state/deeds.py finds: nobody allocates there.
"""

from collections.abc import Callable, Collection, Iterable, Iterator

from meshd.model import NO_PARENT, Deed, HostId, Item, NetworkId
from meshd.state.deeds import DeedBook, deed_item


def line(book: DeedBook, key: bytes) -> Iterator[HostId]:
    """Yield who a deed's space may go to, in order: the owners before its own, the nearest first, then the heirs named by
    the creator. Some come twice."""
    deed = book.deed(key)
    while deed is not None and deed.parent != NO_PARENT:
        deed = book.deed(deed.parent)
        if deed is not None:
            yield deed.owner
    if deed is not None:
        yield from deed.heirs


def bequests(
    book: DeedBook, networks: Iterable[NetworkId], giver: HostId, to: Callable[[bytes], HostId | None]
) -> list[Item]:
    """Make the deeds that hand on all that ``giver`` owns of ``networks``. ``to`` gives the receiver by deed; where it
    gives nobody the space stays as it is."""
    made: list[Item] = []
    for network in networks:
        for block in book.owned(network, giver):
            heir = to(block.deed)
            if heir is not None and heir != giver:
                made.append(deed_item(Deed(network, block.start, block.size, heir, giver, block.deed)))
    return made


def heir_of_forgotten(book: DeedBook, key: bytes, forgotten: Collection[HostId]) -> HostId | None:
    """Return who gets the space of a forgotten host's deed; None where all that could have been forgotten too."""
    return next((host for host in line(book, key) if host not in forgotten), None)


def heir_of_leaving(
    book: DeedBook, key: bytes, me: HostId, alive: Collection[HostId], others: Iterable[HostId]
) -> HostId | None:
    """Return who gets the space of a leaving host's deed: the first in line that is alive, else the first of
    ``others``, since any living host is better than space that nobody can use."""
    return next((host for host in [*line(book, key), *others] if host != me and host in alive), None)
