"""One host's core: membership, news, state and sealing composed, without I/O. The shell and the simulator drive
the same Node."""

from meshd.node.core import Node
from meshd.node.events import (
    Alarm,
    BlockAnswered,
    BlockAsked,
    Changed,
    FetchWanted,
    HeldTold,
    HoldAsked,
    NodeEvent,
    PathChanged,
    StreamProbeWanted,
    SyncWanted,
)
from meshd.node.pathmtu import Path
from meshd.node.sync import SyncSession

__all__ = [
    "Alarm",
    "BlockAnswered",
    "BlockAsked",
    "Changed",
    "FetchWanted",
    "HeldTold",
    "HoldAsked",
    "Node",
    "NodeEvent",
    "Path",
    "PathChanged",
    "StreamProbeWanted",
    "SyncSession",
    "SyncWanted",
]
