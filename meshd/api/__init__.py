"""The local socket: HTTP, routes, errors."""
