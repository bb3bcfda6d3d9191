"""meshd: a gossip-based, multi-host container network daemon."""

__version__ = "0.1.0"
