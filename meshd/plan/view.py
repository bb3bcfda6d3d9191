"""What desired kernel state depends on, as one value. Decides nothing.

Left out on purpose: who is alive. A dead daemon is not a dead host, and a false verdict must not cost a
packet (reliability.md, finding 1). Only who has been failed for days counts (plan/aged.py).
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from meshd.model import Attachment, Bridge, Endpoint, EndpointId, HostFacts, HostId, Network, NetworkId

K = TypeVar("K")
V = TypeVar("V")


class View(msgspec.Struct, frozen=True):
    """The mappings may be live ones, maintained by the caller: they are read, never kept or changed.

    ``cluster``: names.cluster_mark's 8 hex digits. ``networks``: the cluster's and this host's own.
    ``endpoints``: of all hosts, those on ``bridge`` networks included. ``attachments``: of this host's.
    ``aged``: hosts failed for so long that rows for them go.
    ``nhid``: the kernel has FDB nexthops (>= 5.8). ``vxlan_port``, ``gossip_port``: UDP (gossip: and TCP).
    ``source``: of a narrow view, the live one that it is a part of.
    ``bridges``: those that an operator made, by id.
    ``open_forward``: our accepts may go where somebody else's forward chain drops.
    ``coming``: endpoints of this host that are wanted before their records are written; copies have them among the rest.
    """

    me: HostId
    cluster: str
    networks: Mapping[NetworkId, Network]
    endpoints: Mapping[EndpointId, Endpoint]
    hosts: Mapping[HostId, HostFacts]
    attachments: Mapping[EndpointId, Attachment]
    nhid: bool
    vxlan_port: int
    gossip_port: int
    aged: frozenset[HostId] = frozenset()
    source: "View | None" = None
    open_forward: bool = True
    bridges: Mapping[bytes, Bridge] = {}
    coming: Mapping[EndpointId, tuple[Endpoint, Attachment]] = {}

    def frozen(self) -> "View":
        """Return the same with copies of the mappings, to be read on another thread while these go on changing:
        2 ms for 100,000 endpoints. ``copy`` of a dict is one step for all other threads, iterating over it is
        not; and it is 7 times faster than ``dict()`` once anything has been deleted."""
        return self._copy(_copy(self.endpoints), self.coming, None)

    def narrow(self, endpoints: Iterable[EndpointId]) -> "View":
        """Return a copy with only these endpoints, which costs what they are and not what there is (attachments are
        this host's, 0.1 ms for 10,000); ``whole`` gives the rest where they turn out not to suffice."""
        some = set(endpoints)
        found = {id_: self.endpoints[id_] for id_ in some if id_ in self.endpoints}
        return self._copy(found, some & self.coming.keys(), self)

    def whole(self) -> "View":
        """Return a copy of everything, as it is now; may be called on another thread. Of what changes meanwhile
        the caller is told anyway."""
        return self if self.source is None else self.source.frozen()

    def _copy(
        self, endpoints: dict[EndpointId, Endpoint], coming: Iterable[EndpointId], source: "View | None"
    ) -> "View":
        attachments = _copy(self.attachments)
        for id_ in coming:
            endpoints[id_], attachments[id_] = self.coming[id_]
        return msgspec.structs.replace(
            self,
            networks=_copy(self.networks),
            endpoints=endpoints,
            hosts=_copy(self.hosts),
            attachments=attachments,
            bridges=_copy(self.bridges),
            coming={},
            source=source,
        )


def _copy(mapping: Mapping[K, V]) -> dict[K, V]:
    return mapping.copy() if isinstance(mapping, dict) else dict(mapping)
