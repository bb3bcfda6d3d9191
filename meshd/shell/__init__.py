"""The trio shells around the core: sockets, timers, disk, reconcile loop."""
