"""What /metrics says, read back with prometheus_client's own parser; and what it costs who does not ask."""

import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from meshd.api.metrics import render
from meshd.model import Rank
from meshd.plan.objects import Finding
from tests.unit.shell.fake_cluster import World


def page(cluster):
    families = list(text_string_to_metric_families(render(cluster).decode()))
    samples = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
    return families, samples


def test_every_figure_is_there_under_its_name():
    world = World(3)
    here, there = world.hosts[0], world.hosts[1]
    known = here.members[there.me]
    here.members[there.me] = type(known)(there.me, known.version._replace(counter=Rank.FAILED), known.facts)
    here.reconciler.found["missing"] = [Finding("fdb", "x", "y")]
    families, samples = page(here)
    assert samples == samples | {
        ("meshd_members", "alive"): 2, ("meshd_members", "failed"): 1, ("meshd_members", "left"): 0,
        ("meshd_repairs_total", "fdb"): 6, ("meshd_repairs_total", "link"): 0, ("meshd_repairs_total", "route"): 0,
        ("meshd_kernel_missing",): 1,
        ("meshd_kernel_stale",): 0, ("meshd_kernel_drift",): 1, ("meshd_loop_lag_seconds",): 0.0015,
        ("meshd_loop_lag_worst_seconds",): 0.25, ("meshd_datagrams_sent_total",): 7, ("meshd_ready",): 1,
        ("meshd_datagrams_received_total",): 8, ("meshd_refused_total", "tag"): 3, ("meshd_syncs_total",): 2,
        ("meshd_digest_repairs_total",): 4, ("meshd_journal_bytes",): 4096,
    }  # fmt: skip
    assert all(family.name.startswith("meshd") and family.documentation for family in families)


def test_a_daemon_that_nobody_scrapes_does_not_load_the_client():
    code = "import sys, meshd.daemon; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
