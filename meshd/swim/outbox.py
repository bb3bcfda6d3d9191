"""What swim's parts want done, until the caller drains it. Decides nothing."""

from meshd.messages import Message, Restarting, Suspect
from meshd.model import HostId, Item
from meshd.swim.events import SwimEvent

Flood = tuple[Suspect | Restarting, HostId | None]
"""A message for the ring neighbours, and the one neighbour that it came from."""


class Outbox:
    """Lists in the order in which things were decided."""

    def __init__(self) -> None:
        self.sends: list[tuple[HostId, Message]] = []
        self.flood: list[Flood] = []
        self.items: list[Item] = []
        self.events: list[SwimEvent] = []

    def take_sends(self) -> list[tuple[HostId, Message]]:
        """Drain messages for one host each."""
        taken, self.sends = self.sends, []
        return taken

    def take_flood(self) -> list[Flood]:
        """Drain messages for all ring neighbours but the one named."""
        taken, self.flood = self.flood, []
        return taken

    def take_items(self) -> list[Item]:
        """Drain new MEMBER items for the store."""
        taken, self.items = self.items, []
        return taken

    def take_events(self) -> list[SwimEvent]:
        """Drain what happened."""
        taken, self.events = self.events, []
        return taken
