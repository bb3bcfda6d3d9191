"""GET /metrics: the daemon's counters in Prometheus' text format. Decides what each is called and means.

prometheus_client is imported when it is first asked for: it brings a web server along that costs a daemon nobody
scrapes a few megabytes.
"""

import importlib
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from meshd import __version__
from meshd.shell.usecase import ClusterLike
from meshd.swim.members import State

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
KINDS = ("link", "addr", "route", "nexthop", "fdb", "neigh", "nft")
"""What can be repaired: objects as plan/wording.py calls them."""
REFUSED = "refused "
"""What node.Node.counters' keys start with where a message was refused; the rest says why."""


def load() -> None:
    """Import what ``render`` needs; blocks."""
    importlib.import_module("prometheus_client")


def render(cluster: ClusterLike) -> bytes:
    """Return the whole page."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(cluster))
    return generate_latest(registry)


class _Collector:
    """What prometheus_client asks for the figures when it renders."""

    def __init__(self, cluster: ClusterLike) -> None:
        self._cluster = cluster

    def collect(self) -> "Iterator[Metric]":
        """Yield every metric."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        cluster, figures = self._cluster, self._cluster.figures()
        core, kernel = figures.core, cluster.reconciler.counts()

        def gauge(name: str, text: str, value: float) -> "Metric":
            return GaugeMetricFamily(f"meshd_{name}", text, value)

        def counter(name: str, text: str, value: float) -> "Metric":
            return CounterMetricFamily(f"meshd_{name}", text, value)

        yield InfoMetricFamily("meshd", "Version of the daemon.", {"version": __version__})
        states = Counter(member.state for member in cluster.members.values())
        members = GaugeMetricFamily("meshd_members", "Hosts as this one sees them.", labels=["state"])
        for state in State:
            members.add_metric([state], states[state])
        yield members
        yield gauge(
            "ready", "1: the kernel has been read and adopted, and gossip runs.", float(cluster.ready)
        )
        yield gauge("networks", "Networks known.", len(cluster.networks))
        yield gauge("endpoints", "Endpoints known, of all hosts.", len(cluster.endpoints))
        yield gauge("local_endpoints", "Endpoints of this host.", len(cluster.attachments))
        yield gauge("health_findings", "Lines of health in `meshctl status`.", len(cluster.health()))
        repairs = CounterMetricFamily(
            "meshd_repairs", "Kernel objects that somebody else had changed, put right.", labels=["kind"]
        )
        for kind in sorted({*KINDS, *figures.repairs}):
            repairs.add_metric([kind], figures.repairs.get(kind, 0))
        yield repairs
        yield gauge("kernel_missing", "Kernel objects that should be there and are not.", kernel["missing"])
        yield gauge("kernel_stale", "Kernel objects that should not be there.", kernel["stale"])
        yield gauge(
            "kernel_drift", "1: the kernel differs from what it should be.", float(any(kernel.values()))
        )
        yield gauge(
            "kernel_fights", "Kernel objects that another program changes again and again.", figures.fights
        )
        yield gauge("loop_lag_seconds", "How late the loop woke last.", figures.lag_s)
        yield gauge("loop_lag_worst_seconds", "The worst of that within a minute.", figures.lag_worst_s)
        yield counter("datagrams_sent", "Gossip datagrams sent.", figures.sent)
        yield counter("datagrams_received", "Gossip datagrams received.", figures.received)
        yield counter(
            "datagrams_send_errors", "Gossip datagrams that could not be sent.", figures.send_errors
        )
        refused = CounterMetricFamily("meshd_refused", "Messages refused.", labels=["reason"])
        for key in sorted(core):
            if key.startswith(REFUSED):
                refused.add_metric([key.removeprefix(REFUSED)], core[key])
        yield refused
        yield counter("syncs", "Comparisons by stream that were asked for.", core.get("syncs", 0))
        yield counter("digest_repairs", "Comparisons by datagram that were begun.", core.get("repairs", 0))
        yield gauge("journal_bytes", "Size of the journal on disk.", figures.journal_bytes)
