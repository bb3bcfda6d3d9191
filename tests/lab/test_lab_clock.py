"""A host whose clock is years off, and jumps: nothing rests on the wall clock but what people read.

This machine's own clock is everybody's, and a time namespace has none of its own. So the host's daemon runs from a copy of
the package in which the two functions by which meshd asks for the time add what a file says.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from labtools import Attached, undisturbed

from meshctl import labdaemon
from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for

OFF = """
import time

_time_ns = time.time_ns


def _days_off() -> int:
    with open({file!r}) as file:
        return int(file.read())


time.time_ns = lambda: _time_ns() + _days_off() * 86_400 * 10**9
time.time = lambda: time.time_ns() / 1e9
"""
SEEN_S = 6.0  # some rounds of probing


class Clock(NamedTuple):
    """The second host's clock. ``put``: set it so many days off, while its daemon runs or not."""

    package: Path
    put: Callable[[int], None]


@pytest.fixture
def clock(lab3: Lab) -> Iterator[Clock]:
    host = lab3.hosts[1]
    file = host.dir / "run" / "clock"
    folder = labdaemon.ROOT / f"clock-{lab3.id}"
    installed = Path(__file__).parents[2] / "meshd"
    shutil.copytree(installed, folder / "meshd", ignore=shutil.ignore_patterns("__pycache__"))
    init = folder / "meshd" / "__init__.py"
    seen = lab3.view.of(host.dir, host.name) / "run" / "clock"
    init.write_text(init.read_text() + OFF.format(file=str(seen)))

    def put(days: int) -> None:
        draft = file.with_name("clock.new")
        draft.write_text(f"{days}\n")
        labdaemon.give(draft)
        os.replace(draft, file)

    yield Clock(folder / "meshd", put)
    host.stop()
    file.unlink()
    host.start()
    host.wait_alive(3)
    shutil.rmtree(folder)


def failures(lab: Lab) -> list[dict[str, object]]:
    return [event for host in lab.hosts for event in host.events() if event["kind"] == "member-failed"]


def says_of_now(host: Host) -> float:
    """Return the time that a daemon gives to what happens now."""
    host.json("network", "create", "timed")
    host.json("network", "rm", "timed")
    return float(host.events()[-1]["time"])


@pytest.mark.parametrize("days", [3650, -3650])
def test_a_clock_years_off_that_jumps_is_nobodys_trouble(
    lab3: Lab, trio_of_endpoints: list[Attached], clock: Clock, days: int
) -> None:
    first, second, third = lab3.hosts
    before = failures(lab3)
    with undisturbed(lab3.hosts, *trio_of_endpoints):
        clock.put(days)
        second.stop()
        second.start(clock.package)
        for host in lab3.hosts:
            host.wait_alive(3)
            host.wait_in_sync()
        assert abs(says_of_now(second) - says_of_now(first)) > abs(days) * 80_000  # it believes it

        for jump in (-days, 0):  # under the running daemon
            clock.put(jump)
            seen = [member["last_seen_s"] for member in first.json("members") if member["name"] == "host2"]
            assert seen[0] < SEEN_S
            network = f"made-at-{jump}".replace("-", "x")
            second.json("network", "create", network)
            first.wait_network(network)
            third.json("network", "rm", network)
            wait_for("all agree", 20, lambda: len({host.status()["digest"] for host in lab3.hosts}) == 1)
        clock.put(-days)  # back by twice as much: its newest record is from years ahead
        second.kill()
        second.start(clock.package)
        for host in lab3.hosts:
            host.wait_alive(3)
            host.wait_in_sync()
        wait_for("all agree", 20, lambda: len({host.status()["digest"] for host in lab3.hosts}) == 1)
    told = [event for event in failures(lab3) if event not in before]
    assert told == []
