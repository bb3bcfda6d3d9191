"""meshctl: the command. Knows the daemon only by its socket."""

__version__ = "0.1.0"
