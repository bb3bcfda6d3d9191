"""Who fights with another program over an object of ours, and until when the object is left alone.

Decides what counts (a repair of the object itself: rows that went with their device or nexthop do not), when it is
too much (FIGHT_REPAIRS_PER_MIN) and for how long we give in. Must not know how a repair is found or made.
"""

from collections.abc import Sequence

import msgspec

from meshd.config import (
    FIGHT_BACKOFF_MAX_S,
    FIGHT_BACKOFF_S,
    FIGHT_OBJECTS_MAX,
    FIGHT_REPAIRS_PER_MIN,
    FIGHT_WINDOW_S,
)
from meshd.plan import kernels, wording
from meshd.plan.objects import Kernel
from meshd.plan.ops import DelElement, Op, PutElement, PutFdb, PutLink, PutNexthop, RemakeLink
from meshd.plan.wording import Named


class Fight(msgspec.Struct):
    """``until``: left alone until then (monotonic seconds); ``rounds``: how often it was given in already."""

    until: float
    rounds: int


class Fights:
    """The objects of one host. ``going``: those fought over now."""

    def __init__(self) -> None:
        self._times: dict[Named, tuple[float, ...]] = {}
        self.going: dict[Named, Fight] = {}

    def note(self, repairs: Sequence[Op], found: Kernel, now: float) -> None:
        """Count repairs that are about to be made at ``now``; ``found``: the kernel before them."""
        self._forget(now)
        for op in _in_themselves(repairs, found)[:FIGHT_OBJECTS_MAX]:
            named = wording.of(op)
            times = (*self._times.get(named, ()), now)[-FIGHT_REPAIRS_PER_MIN:]
            self._times[named] = times
            fight = self.going.get(named)
            if fight is not None:
                self._give_in(named, fight.rounds + 1, now)
            elif len(times) == FIGHT_REPAIRS_PER_MIN:
                self._give_in(named, 1, now)

    def held(self, todo: Sequence[Op], found: Kernel, now: float) -> dict[Op, float]:
        """Return those of ``todo`` not to be carried out now, and for how many seconds: on objects fought over,
        and what needs a device that is held back while it is not there."""
        left = {named: fight.until - now for named, fight in self.going.items() if fight.until > now}
        if not left:
            return {}
        held = {op: left[named] for op in todo if (named := wording.of(op)) in left}
        absent = {
            op.link.name: wait
            for op, wait in held.items()
            if isinstance(op, PutLink) and op.link.name not in found.links
        }
        for op in todo:
            master = op.link.master if isinstance(op, PutLink) else None
            wait = absent.get(_bearer(op)) or absent.get(master or "")
            if wait is not None:
                held.setdefault(op, wait)
                if isinstance(op, PutLink) and op.link.name not in found.links:
                    absent.setdefault(op.link.name, wait)
        return held

    def _give_in(self, named: Named, rounds: int, now: float) -> None:
        wait = min(FIGHT_BACKOFF_S * 2.0 ** (rounds - 1), FIGHT_BACKOFF_MAX_S)
        self.going[named] = Fight(now + wait, rounds)

    def _forget(self, now: float) -> None:
        """Drop what is past: a window without a repair, after the object was taken up again, ends a fight."""
        self.going = {
            named: fight for named, fight in self.going.items() if now - fight.until < FIGHT_WINDOW_S
        }
        kept = {}
        for named, times in self._times.items():
            recent = tuple(time for time in times if now - time <= FIGHT_WINDOW_S)
            if recent:
                kept[named] = recent
        self._times = kept


def _in_themselves(repairs: Sequence[Op], found: Kernel) -> list[Op]:
    """Leave out what is repaired only because its device or nexthop is."""
    again = {
        op.link.name
        for op in repairs
        if isinstance(op, RemakeLink) or (isinstance(op, PutLink) and op.link.name not in found.links)
    }
    touched = {op.link.name for op in repairs if isinstance(op, PutLink)} | again
    nexthops = any(isinstance(op, PutNexthop) for op in repairs)
    counted: list[Op] = []
    for op in repairs:
        if isinstance(op, (PutLink, RemakeLink)):
            if op.link.master not in again or isinstance(op, RemakeLink):
                counted.append(op)
        elif _bearer(op) not in touched and not (nexthops and isinstance(op, PutFdb)):
            counted.append(op)
    return counted


def _bearer(op: Op) -> str:
    """Return the device that what an op is about goes with, or "". The firewall's elements only name theirs."""
    return "" if isinstance(op, (PutElement, DelElement)) else kernels.device(op)
