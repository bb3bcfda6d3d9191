"""Says what happens in the words that people watch for: as events (`meshctl watch`), in the log, and as alarms where an
operator has to act. It only reads the cluster; what a thing means for this host is decided where it is noticed.
"""

from collections import Counter
from collections.abc import Sequence, Set

import structlog

from meshd.config import REPAIRS_NAMED_MAX, STALE_EVENTS_MAX
from meshd.model import (
    ID_BYTES,
    Endpoint,
    EndpointId,
    Forgotten,
    HostId,
    Kind,
    Network,
    NetworkId,
    Removed,
    text_id,
    text_ip,
)
from meshd.node import NodeEvent
from meshd.plan import names, wording
from meshd.plan.ops import LeaveGate, Op, OpenGate
from meshd.shell.usecase import ClusterLike
from meshd.state.layout import Layout
from meshd.state.store import Change
from meshd.swim import events as swim
from meshd.swim.members import State

log = structlog.get_logger()

FIGHT = "kernel-fight"


class Teller:
    """Tells of one host's cluster, and counts what it tells of the kernel."""

    def __init__(self, cluster: ClusterLike) -> None:
        self._cluster = cluster
        self._table = names.table(cluster.settings.vxlan.port)
        self.repairs: Counter[str] = Counter()
        """Kernel objects repaired, by kind (wording.Named)."""
        self.fights = 0
        """How many objects another program changes again and again."""

    # --- the kernel -----------------------------------------------------------------------------------------
    def repaired(self, ops: Sequence[Op]) -> None:
        """Tell of kernel objects that somebody else had changed and that are as they should be again."""
        named = list(dict.fromkeys(wording.of(op) for op in ops))
        self.repairs.update(kind for kind, _ in named)
        shown = [wording.text(each, self._table) for each in named[:REPAIRS_NAMED_MAX]]
        log.warning("kernel repaired", count=len(named), objects=shown)
        self._publish("kernel-repaired", count=len(named), objects=shown)

    def passed_through(self, ops: Sequence[OpenGate | LeaveGate]) -> None:
        """Tell of another firewall's forward chain that drops, and so has our accepts now, or that does so no more."""
        for op in ops:
            chain = f"{op.gate.family} {op.gate.table} {op.gate.chain}"
            if isinstance(op, OpenGate):
                log.info("accepts put where another firewall drops what is forwarded", chain=chain)
                self._publish("forward-opened", chain=chain)
            else:
                log.info("accepts taken out where nothing is dropped for want of them", chain=chain)
                self._publish("forward-left", chain=chain)

    def fought_over(self, objects: Set[wording.Named]) -> None:
        """Say which kernel objects another program changes again and again, or that it has stopped."""
        alarms = self._cluster.alarms
        self.fights = len(objects)
        if not objects:
            del alarms[FIGHT]
            self._publish("kernel-fight-over")
            return
        shown = [wording.text(each, self._table) for each in sorted(objects)[:REPAIRS_NAMED_MAX]]
        more = len(objects) - len(shown)
        text = f"another program changes what meshd sets: {'; '.join(shown)}" + (
            f" and {more} more" if more else ""
        )
        alarms[FIGHT] = text
        log.warning("kernel fight", objects=shown, count=len(objects))
        self._publish(FIGHT, count=len(objects), objects=shown)

    # --- records --------------------------------------------------------------------------------------------
    def changed(self, change: Change) -> None:
        """Tell of a host forgotten, a network or an endpoint that came, changed or went."""
        kind, item_id = change.key
        now, before = change.item, change.before
        was = before.body if before is not None and not before.dead else None
        body = now.body if now is not None and not now.dead else None
        match kind:
            case Kind.FORGOTTEN if isinstance(body, Forgotten) and was is None:
                self._publish("host-forgotten", host=body.name, id=text_id(item_id), by=body.by)
            case Kind.NETWORK | Kind.LOCAL_NETWORK:
                if isinstance(body, Network) and was is None:
                    self._publish("network-created", network=body.name, id=text_id(item_id))
                elif isinstance(body, Network) and isinstance(was, Network) and not body.removing:
                    self.network_updated(item_id, self._cluster.networks.get(item_id, body))
                elif body is None and (isinstance(was, Network) or (now and isinstance(now.body, Removed))):
                    name = was.name if isinstance(was, Network) else now.body.name  # type: ignore[union-attr]
                    self._publish("network-removed", network=name, id=text_id(item_id))
            case Kind.ENDPOINT | Kind.LOCAL_ENDPOINT:
                former = was.host if isinstance(was, Endpoint) else before.origin if before else None
                if isinstance(body, Endpoint) and former not in (None, bytes(ID_BYTES), body.host):
                    fields = self._endpoint(item_id, body)
                    self._publish("endpoint-moved", **fields, from_host=self._cluster.host_name(former))
                elif isinstance(body, Endpoint) and was is None:
                    self._publish("endpoint-added", **self._endpoint(item_id, body))
                elif body is None and isinstance(was, Endpoint):
                    self._publish("endpoint-removed", **self._endpoint(item_id, was))

    def network_updated(self, network_id: NetworkId, network: Network) -> None:
        """Tell what a network is from now on."""
        self._publish(
            "network-updated",
            network=network.name,
            id=text_id(network_id),
            subnets=[subnet.cidr for subnet in network.subnets],
            labels=network.labels,
        )

    def contradictions(self, network_id: NetworkId) -> None:
        """Tell of space that one host gave to two, or opened twice: once each, and in ``status`` for good."""
        cluster = self._cluster
        for bad in cluster.deeds.quarantined(network_id):
            kind = f"quarantine {bad.deeds[0].hex()} {bad.deeds[1].hex()}"
            if kind in cluster.alarms:
                continue
            network = cluster.networks.get(network_id)
            name = network.name if network is not None else text_id(network_id)
            one, other = (cluster.host_name(holder) for holder in bad.holders)
            text = (
                f"{self._range(network_id, bad.start, bad.size)} of network {name}: "
                f"host {cluster.host_name(bad.donor)} gave it to both {one} and {other}, from old or "
                "cloned state; nobody gives these addresses out any more, endpoints that have one stay"
            )
            cluster.alarms[kind] = text
            log.warning("alarm", kind="quarantine", text=text)
            self._publish("conflict", alarm="quarantine", network=name, hosts=[one, other], text=text)

    def _range(self, network_id: NetworkId, start: int, size: int) -> str:
        """Name a range of indices by its first and last address."""
        network = self._cluster.networks.get(network_id)
        layout = Layout.build(network_id, network) if network is not None else None
        space = layout.space_at(start) if layout is not None else None
        if space is None:
            return f"{size} addresses"
        first, last = space.text(start), space.text(min(start + size, space.end) - 1)
        return first if first == last else f"{first} to {last}"

    # --- members --------------------------------------------------------------------------------------------
    def membership(self, event: NodeEvent) -> None:
        """Tell what happened to a member, and to its endpoints with it."""
        match event:
            case swim.MemberAlive():
                self._member("member-alive", event.id, was=event.was)
                if event.was == State.FAILED:
                    self._endpoints("endpoint-up", event.id)
            case swim.MemberSuspect():
                self._member("member-suspect", event.id, accuser=self._cluster.host_name(event.accuser))
            case swim.MemberFailed():
                self._member("member-failed", event.id)
                self._endpoints("endpoint-stale", event.id)
            case swim.MemberLeft():
                self._member("member-left", event.id)
            case swim.MemberChanged():
                self._member("member-changed", event.id, restarted=event.restarted)
            case swim.MemberDegraded():
                self._member("member-degraded", event.id, degraded=event.degraded)
            case swim.MemberRestarting():
                self._member("member-restarting", event.id, duration_s=event.duration_s)
            case swim.Paused():
                log.warning("this host was paused", seconds=round(event.duration_s, 3))
            case swim.SelfAccused() | swim.WildClaim():
                log.info("refuted", claim=type(event).__name__, incarnation=event.incarnation)

    def _member(self, kind: str, host: HostId, **fields: object) -> None:
        name = self._cluster.host_name(host)
        log.info(kind, host=name, id=text_id(host), **fields)
        self._publish(kind, host=name, id=text_id(host), **fields)

    def _endpoints(self, kind: str, host: HostId) -> None:
        """Say of a host's endpoints what became of them; of very many a few by name and the number of the rest."""
        endpoints = self._cluster.endpoints
        found = [*endpoints.of(host)]
        for id_ in found[:STALE_EVENTS_MAX]:
            self._publish(kind, **self._endpoint(id_, endpoints[id_]))
        if len(found) > STALE_EVENTS_MAX:
            self._publish(kind, host=self._cluster.host_name(host), more=len(found) - STALE_EVENTS_MAX)

    def _endpoint(self, item_id: EndpointId, endpoint: Endpoint) -> dict[str, object]:
        network = self._cluster.networks.get(endpoint.network)
        return {
            "id": text_id(item_id),
            "network": network.name if network is not None else text_id(endpoint.network),
            "host": self._cluster.host_name(endpoint.host),
            "name": endpoint.name,
            "ips": [text_ip(ip) for ip in endpoint.ips],
        }

    def _publish(self, kind: str, **fields: object) -> None:
        self._cluster.events.publish(kind, **fields)
