"""What a Node tells its driver, besides swim's membership events: values the driver acts on."""

import msgspec

from meshd.messages import BlockAnswer, BlockAsk, Held, Hold, SubnetAsk
from meshd.model import Address, HostId, Key
from meshd.state.store import Change
from meshd.swim.events import SwimEvent


class Changed(msgspec.Struct, frozen=True):
    """The store changed. ``source`` is the peer that brought it, None for this host's own doing."""

    change: Change
    source: HostId | None


class SyncWanted(msgspec.Struct, frozen=True):
    """Open a stream to ``peer`` at ``address`` and run SyncSession.opener; report with Node.sync_ended."""

    peer: HostId
    address: Address


class FetchWanted(msgspec.Struct, frozen=True):
    """Open a stream and ask for ``keys``: items that no datagram can carry."""

    peer: HostId
    address: Address
    keys: tuple[Key, ...]


class StreamProbeWanted(msgspec.Struct, frozen=True):
    """UDP does not answer: try StreamPing over a stream and report with Node.stream_pong."""

    peer: HostId
    address: Address
    nonce: int


class BlockAsked(msgspec.Struct, frozen=True):
    """A peer asks for part of our space, or for a subnet to be added; answer with Node.send after the deed is on
    disk."""

    peer: HostId
    ask: BlockAsk | SubnetAsk


class BlockAnswered(msgspec.Struct, frozen=True):
    """The answer to our BlockAsk or SubnetAsk."""

    peer: HostId
    answer: BlockAnswer


class HoldAsked(msgspec.Struct, frozen=True):
    """A peer asks whether we have deeds of its on disk."""

    peer: HostId
    hold: Hold


class HeldTold(msgspec.Struct, frozen=True):
    """A peer has deeds of ours on disk."""

    peer: HostId
    held: Held


class PathChanged(msgspec.Struct, frozen=True):
    """The path to ``peer`` carries another size than was known, or nothing is known of it any more: look at
    Node.paths."""

    peer: HostId


class Alarm(msgspec.Struct, frozen=True):
    """Something an operator must see: ``kind`` is a stable word, ``text`` a sentence."""

    kind: str
    text: str


NodeEvent = (
    Changed
    | SyncWanted
    | FetchWanted
    | StreamProbeWanted
    | BlockAsked
    | BlockAnswered
    | HoldAsked
    | HeldTold
    | PathChanged
    | Alarm
    | SwimEvent
)
