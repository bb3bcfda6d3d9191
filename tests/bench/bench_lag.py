"""How late the daemon's loop wakes while the kernel makes and deletes devices, beside an idle loop and one that does
the work itself.

    python tests/bench/bench_lag.py [--links 500]

Each way makes and deletes so many bridges (twice as many link operations). "worker thread" is what the daemon does:
all operations of a change in one call, off the loop. "on the loop" is what it would be otherwise, one call a device.
A deletion takes the kernel tens of milliseconds, since it waits for an RCU grace period.
"""

import argparse
import contextlib
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernel"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import trio
from conftest import Netns

from meshd.kernel.namespace import Namespace
from meshd.plan import names
from meshd.plan.objects import Link
from meshd.plan.ops import DelLink, PutLink

STEP_S = 0.005  # finer than the daemon's gauge: a datagram is to be read and a timer to fire at any moment
IDLE_S = 5.0
RARE = 0.999


async def measure(work):
    """Run ``work`` and return the loop's lags meanwhile, milliseconds, and how long it took, seconds."""
    lags = []

    async def gauge():
        while True:
            due = trio.current_time() + STEP_S
            await trio.sleep_until(due)
            lags.append(1000 * (trio.current_time() - due))

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gauge)
        await trio.sleep(STEP_S)
        await work()
        await trio.sleep(2 * STEP_S)
        nursery.cancel_scope.cancel()
    return lags, time.perf_counter() - start


async def run(namespace, count):
    links = [
        Link(f"mo{n:08x}", "bridge", names.alias("0badcafe", n.to_bytes(16, "big")), 1450)
        for n in range(count)
    ]
    puts, dels = [PutLink(link) for link in links], [DelLink(link.name) for link in links]

    def apply(ops):
        refused = namespace.apply(ops)
        assert not refused, refused[:3]

    async def idle():
        await trio.sleep(IDLE_S)

    async def worker():
        for ops in (puts, dels):
            await trio.to_thread.run_sync(apply, ops)

    async def on_the_loop():
        for op in (*puts, *dels):
            apply([op])
            await trio.lowlevel.checkpoint()

    for name, work in (("idle", idle), ("worker thread", worker), ("on the loop", on_the_loop)):
        lags, took = await measure(work)
        lags.sort()
        cut = lags[min(len(lags) - 1, int(len(lags) * RARE))]
        print(
            f"{name:14} {took:6.2f} s  lag ms: median {statistics.median(lags):7.2f}  "
            f"p99 {lags[int(len(lags) * 0.99)]:7.2f}  p99.9 {cut:7.2f}  worst {lags[-1]:7.2f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--links", type=int, default=500)
    options = parser.parse_args()
    print(f"{2 * options.links} link operations")
    netns = Netns()
    with contextlib.ExitStack() as stack:
        stack.callback(netns.close)
        netns.call(trio.run, run, stack.enter_context(netns.call(Namespace)), options.links)


if __name__ == "__main__":
    main()
