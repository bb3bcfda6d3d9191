"""Who is on which network of which host, kept with every change: so that what asks for one host's or one network's
endpoints costs what these are, and not all that there are.

A dict of all live endpoints, so that a copy of it stays one step (plan/view.py). It decides nothing and must not
know how an endpoint came or went.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from meshd.model import Endpoint, EndpointId, HostId, NetworkId


class Roster(dict[EndpointId, Endpoint]):
    """Change it by ``roster[id] = endpoint``, ``del`` and ``pop`` alone: the ways that keep the index."""

    def __init__(self) -> None:
        super().__init__()
        self._index: dict[NetworkId, dict[HostId, dict[EndpointId, None]]] = {}

    def __setitem__(self, id_: EndpointId, endpoint: Endpoint) -> None:
        before = self.get(id_)
        if before is None or (before.network, before.host) != (endpoint.network, endpoint.host):
            if before is not None:
                self._unlist(id_, before)
            self._index.setdefault(endpoint.network, {}).setdefault(endpoint.host, {})[id_] = None
        super().__setitem__(id_, endpoint)

    def __delitem__(self, id_: EndpointId) -> None:
        self._unlist(id_, self[id_])
        super().__delitem__(id_)

    def pop(self, id_: EndpointId, *default: Any) -> Any:
        """Remove an endpoint and return it, or ``default``."""
        if id_ in self:
            self._unlist(id_, self[id_])
        return super().pop(id_, *default)

    def users(self, network: NetworkId) -> Counter[HostId]:
        """Count a network's endpoints by host."""
        return Counter({host: len(ids) for host, ids in self._index.get(network, {}).items()})

    def on(self, network: NetworkId) -> Iterator[EndpointId]:
        """Yield a network's endpoints, host by host."""
        for ids in self._index.get(network, {}).values():
            yield from ids

    def at(self, network: NetworkId, host: HostId) -> Iterable[EndpointId]:
        """Return the endpoints that a host has on a network. Not to be changed."""
        return self._index.get(network, {}).get(host, {}).keys()

    def of(self, host: HostId) -> Iterator[EndpointId]:
        """Yield a host's endpoints, network by network."""
        for by_host in self._index.values():
            yield from by_host.get(host, ())

    def networks_of(self, host: HostId) -> set[NetworkId]:
        """Return the networks that a host has endpoints on."""
        return {network for network, by_host in self._index.items() if host in by_host}

    def hosts(self) -> set[HostId]:
        """Return the hosts that have endpoints."""
        return {host for by_host in self._index.values() for host in by_host}

    def _unlist(self, id_: EndpointId, endpoint: Endpoint) -> None:
        by_host = self._index[endpoint.network]
        del by_host[endpoint.host][id_]
        if not by_host[endpoint.host]:
            del by_host[endpoint.host]
            if not by_host:
                del self._index[endpoint.network]
