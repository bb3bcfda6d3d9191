"""How long until every host knows of a crash, and what an idle cluster sends: the shipped core, simulated.

    bench_sim.py [HOSTS [CRASHES [LOSS]]]

Hosts begin with stores that know all members, so that no join is simulated. Goal at 1,000 hosts: all know after
4 s (median) and 6 s (p99). 300 hosts unless MESHD_SOAK=1: 1,000 take about 5 minutes and 3 GB.
"""

import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "sim"))

from world import preloaded  # the path is set just above

HOSTS = 1000 if os.environ.get("MESHD_SOAK") == "1" else 300
GOAL_MEDIAN_S, GOAL_P99_S = 4.0, 6.0
IDLE_S = 10.0
STEP_S = 0.02


def main(hosts: int = HOSTS, crashes: int = 20, loss: float = 0.0) -> None:
    """Print the figures of one cluster."""
    began = time.monotonic()
    world = preloaded(1, hosts, loss=loss)
    world.run(3)
    before = world.carried.copy()
    world.run(IDLE_S)
    sent, datagrams = (
        (world.carried[what] - before[what]) / IDLE_S / hosts for what in ("bytes", "datagrams")
    )
    print(f"{hosts} hosts, loss {loss:.0%}, built in {time.monotonic() - began:.0f} s")
    print(f"idle: {sent:.0f} bytes and {datagrams:.1f} datagrams a second a host, headers included")
    first, every, one = [], [], []
    for number in range(crashes):
        dead = world.hosts[number * hosts // crashes]
        world.run(world.random.random())
        at, noted = world.now, len(world.log)
        bytes_before = world.carried["bytes"]
        world.crash(dead)
        known = {}

        def all_know(dead=dead, noted=noted, known=known) -> bool:
            for when, n, event in world.log[noted:]:
                if type(event).__name__ == "MemberFailed" and event.id == dead.id:
                    known.setdefault(n, when)
            return len(known) == len(world.running())

        world.run_until(all_know, 60, STEP_S)
        first.append(min(known.values()) - at)
        one += [when - at for when in known.values()]
        every.append(max(known.values()) - at)
        extra = world.carried["bytes"] - bytes_before - sent * hosts * (world.now - at)
        print(
            f"  crash {number}: first {first[-1]:.2f} s, all {every[-1]:.2f} s, {extra / hosts:.0f} bytes a host"
        )
        sys.stdout.flush()
    every.sort()
    p99 = every[min(len(every) - 1, int(0.99 * len(every)))]
    print(
        f"all know: median {statistics.median(every):.2f} s (goal {GOAL_MEDIAN_S}), p99 {p99:.2f} s (goal {GOAL_P99_S})"
    )
    print(
        f"one host knows: median {statistics.median(one):.2f} s; first: median {statistics.median(first):.2f} s"
    )
    false = world.accused() - {host.n for host in world.hosts if host.node is None}
    print(f"false suspicions: {len(false)} hosts; took {time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(*(int(text) for text in arguments[:2]), *(float(text) for text in arguments[2:3]))
