"""What can be done to the kernel, as values: plan/diff.py orders them, kernel/apply.py carries them out.

Every Put is create-or-replace (NLM_F_CREATE|NLM_F_REPLACE): doing it twice is doing it once (moby #53663).
"""

import msgspec

from meshd.plan.elements import Element
from meshd.plan.objects import Addr, FdbKey, FdbTarget, Gate, Link, NeighKey, Nexthop, Route


class PutLink(msgspec.Struct, frozen=True):
    """Make the device, or bring the existing one of that name to ``link`` field by field."""

    link: Link


class RenameLink(msgspec.Struct, frozen=True):
    """Give a device of ours its name back; all that is on it stays."""

    old: str
    new: str


class RemakeLink(msgspec.Struct, frozen=True):
    """Delete and make anew: a field differs that the kernel cannot change (``why``)."""

    link: Link
    why: str


class DelLink(msgspec.Struct, frozen=True):
    """Delete the device."""

    name: str


class PutAddr(msgspec.Struct, frozen=True):
    """Add the address."""

    addr: Addr


class DelAddr(msgspec.Struct, frozen=True):
    """Delete the address."""

    addr: Addr


class PutRoute(msgspec.Struct, frozen=True):
    """Add the route."""

    route: Route


class DelRoute(msgspec.Struct, frozen=True):
    """Delete the route."""

    route: Route


class PutNexthop(msgspec.Struct, frozen=True):
    """Create or replace the nexthop object or group."""

    nexthop: Nexthop


class DelNexthop(msgspec.Struct, frozen=True):
    """Delete the nexthop object or group; the kernel drops rows that use it."""

    id: int


class PutFdb(msgspec.Struct, frozen=True, gc=False):
    """Create or replace the FDB row."""

    key: FdbKey
    target: FdbTarget


class DelFdb(msgspec.Struct, frozen=True, gc=False):
    """Delete the FDB row."""

    key: FdbKey


class PutNeigh(msgspec.Struct, frozen=True, gc=False):
    """Create or replace the neighbour. ``mac`` 6 bytes."""

    key: NeighKey
    mac: bytes


class DelNeigh(msgspec.Struct, frozen=True, gc=False):
    """Delete the neighbour."""

    key: NeighKey


class SetFirewall(msgspec.Struct, frozen=True):
    """Replace our tables by this text and these elements with their data in one transaction; "" deletes them."""

    text: str
    elements: tuple[tuple[Element, bytes], ...] = ()

    def __repr__(self) -> str:
        return f"SetFirewall({len(self.text)} characters, {len(self.elements)} elements)"


class PutElement(msgspec.Struct, frozen=True, gc=False):
    """Add the element, or give it other ``data``."""

    element: Element
    data: bytes


class DelElement(msgspec.Struct, frozen=True, gc=False):
    """Delete the element."""

    element: Element


class OpenGate(msgspec.Struct, frozen=True):
    """Put our accepts, once each, at the head of somebody else's chain, in place of what is there of it."""

    gate: Gate


class LeaveGate(msgspec.Struct, frozen=True):
    """Take our accepts out of somebody else's chain."""

    gate: Gate


Op = (
    PutLink | RenameLink | RemakeLink | DelLink | PutAddr | DelAddr | PutRoute | DelRoute | PutNexthop | DelNexthop
    | PutFdb | DelFdb | PutNeigh | DelNeigh | SetFirewall | PutElement | DelElement | OpenGate | LeaveGate
)  # fmt: skip
