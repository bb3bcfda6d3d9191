"""Rows a second into a vxlan device's table: ours, a C program's and `bridge -batch`, in one run.

    python tests/bench/bench_fdb.py [--rows 10000] [--rounds 7]

Each round fills and empties the table by each way, in random order, in a namespace of its own; printed are
medians and the ratio to C. "apply" starts from a list of ops and counts all that the daemon does for them,
"pack+send" leaves the ops out. C and we send the same messages in the same batches.

"watched" is the daemon's normal state: an event socket listens, so the kernel makes an event of each row and we
note what to expect. Its fair peer is C with such a socket open, which is what the last column compares with.
"""

import argparse
import gc
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernel"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from conftest import Netns

from meshd.config import GC_THRESHOLDS, NETLINK_BATCH, NETLINK_RCVBUF_BYTES
from meshd.kernel import netlink, rows
from meshd.kernel.namespace import Namespace
from meshd.kernel.watch import RTNLGRP_NEIGH
from meshd.plan.objects import FdbKey, FdbTarget
from meshd.plan.ops import DelFdb, PutFdb

DEVICE = "vx0"
DST = bytes((10, 0, 0, 2))
SETTLE_S = 0.2  # the kernel frees deleted rows after a grace period; whoever comes next would pay for it


def compile_yardstick(folder):
    program = Path(folder) / "fdb"
    source = Path(__file__).with_name("fdb.c")
    subprocess.run(["cc", "-O2", "-Wall", "-o", program, source], check=True)
    return program


def timed(function):
    """Return seconds and CPU seconds."""
    start, used = time.perf_counter(), time.thread_time()
    result = function()
    assert not result, result[:3]
    return time.perf_counter() - start, time.thread_time() - used


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if shutil.which("cc") is None:
        sys.exit("needs cc")
    netns = Netns()
    try:
        with tempfile.TemporaryDirectory() as folder:
            run(netns, compile_yardstick(folder), options.rows, options.rounds)
    finally:
        netns.close()


def run(netns, yardstick, count, rounds):
    gc.set_threshold(*GC_THRESHOLDS)  # as the daemon does
    netns.run("ip", "link", "add", DEVICE, "type", "vxlan", "id", "5", "dstport", "4789", "nolearning")
    netns.run("ip", "link", "set", DEVICE, "up")
    (index,) = [link["ifindex"] for link in netns.json("ip", "-j", "link", "show", "dev", DEVICE)]
    keys = [FdbKey(DEVICE, b"\x02\x00" + n.to_bytes(4, "big"), "self") for n in range(count)]
    puts = [PutFdb(key, FdbTarget(dst=DST)) for key in keys]
    dels = [DelFdb(key) for key in keys]
    lines = "".join(
        f"fdb add {key.mac.hex(':')} dev {DEVICE} dst 10.0.0.2 self permanent extern_learn\n" for key in keys
    )
    namespace = netns.call(Namespace)
    link = netns.call(netlink.Netlink)

    def c_program():
        said = netns.run(str(yardstick), str(index), str(count), str(NETLINK_BATCH)).stdout
        return tuple(map(float, said.split()))

    def pack_and_send():
        return timed(
            lambda: [
                answer
                for answer in link.transact(
                    rows.put_fdb(((op.key, op.target) for op in puts), {DEVICE: index})
                )
                if answer is not None
            ]
        )

    def apply():
        return timed(lambda: namespace.apply(puts))

    def watched():
        with netns.call(namespace.watch):
            return apply()

    def c_watched():
        listener = netns.call(netlink.open_socket, netlink.NETLINK_ROUTE, NETLINK_RCVBUF_BYTES)
        with listener:
            listener.setsockopt(netlink.SOL_NETLINK, netlink.NETLINK_ADD_MEMBERSHIP, RTNLGRP_NEIGH)
            return c_program()

    def bridge_batch():
        start, used = time.perf_counter(), sum(os.times()[2:4])
        netns.run("bridge", "-batch", "-", input=lines)
        return time.perf_counter() - start, sum(os.times()[2:4]) - used

    ways = {
        "C": c_program,
        "C, watched": c_watched,
        "pack+send": pack_and_send,
        "apply": apply,
        "apply, watched": watched,
        "bridge -batch": bridge_batch,
    }
    seconds = {way: [] for way in [*ways, "dump", "apply deletes"]}
    order = list(ways)
    rng = random.Random(1)
    for _ in range(rounds):
        rng.shuffle(order)
        for way in order:
            time.sleep(SETTLE_S)
            seconds[way].append(ways[way]())
            start, used = time.perf_counter(), time.thread_time()
            found = sum(
                1
                for chunk in link.dump(rows.dump_request(rows.AF_BRIDGE))
                for row in rows.parse(chunk, {index})
                if row.flags & rows.NTF_EXT_LEARNED
            )
            seconds["dump"].append((time.perf_counter() - start, time.thread_time() - used))
            assert found == count, f"{way}: {found} rows"
            seconds["apply deletes"].append(timed(lambda: namespace.apply(dels)))
    medians = {
        way: [statistics.median(each) for each in zip(*values, strict=True)]
        for way, values in seconds.items()
    }
    print(
        f"{count} rows, median of {rounds} rounds; ratios by time, and by CPU time, which other work disturbs less"
    )
    for way, median in medians.items():
        ratios = [" / ".join(f"{a / b:.2f}" for a, b in zip(medians["C"], median, strict=True)) + " of C"]
        if way.endswith("watched"):
            fair = zip(medians["C, watched"], median, strict=True)
            ratios.append(" / ".join(f"{a / b:.2f}" for a, b in fair) + " of C, watched")
        print(f"{way:15} {count / median[0]:11,.0f} rows/s  {',  '.join(ratios)}")


if __name__ == "__main__":
    main()
