"""The kernel's neighbour limits, read by netlink and compared with what /proc says."""

import socket
from pathlib import Path

import pytest

from meshd.kernel.namespace import Namespace


@pytest.mark.parametrize(("family", "tree"), [(socket.AF_INET, "ipv4"), (socket.AF_INET6, "ipv6")])
def test_the_limits_are_what_sysctl_says(family, tree):
    proc = Path(f"/proc/sys/net/{tree}/neigh/default/gc_thresh3")
    if not proc.exists():
        pytest.skip(tree)
    with Namespace() as namespace:
        limit = namespace.neighbour_limits()[family]
    assert limit.most == int(proc.read_text())
    assert limit.refused >= 0
