"""What one more endpoint costs the firewall at 10 and at 10,000 endpoints, beside nft(8) doing the same.

    python tests/bench/bench_firewall.py [--rounds 30]

Each round puts one endpoint's elements (port, MAC, two addresses and their link-local one, a published port) into the
tables and takes them out again. Printed: elements and messages sent, medians, the ratio of 10,000 to 10, and the same
by ``nft -f`` with these elements and with the whole tables.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernel"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from conftest import Netns

from meshd.kernel import nfttool
from meshd.kernel.echoes import Echoes
from meshd.kernel.nft import Firewall
from meshd.kernel.nftelements import put
from meshd.model import Endpoint
from meshd.plan import names
from meshd.plan.elements import commands
from meshd.plan.firewall import port_elements, published_elements, render, script

TEXT = render(gossip_port=7947, vxlan_port=4789)
SIZES = (10, 10_000)


def endpoint(n):
    """All that endpoint ``n`` is to the firewall."""
    ips = ((0x0A000000 + n).to_bytes(4, "big"), b"\xfd" + bytes(11) + n.to_bytes(4, "big"))
    id_ = n.to_bytes(16, "little")
    body = Endpoint(
        bytes(16),
        bytes(16),
        f"e{n}",
        n,
        ips,
        names.endpoint_mac(id_),
        "eth0",
        published=(f"{1000 + n}:80/tcp",),
    )
    return {**port_elements(f"mh{n:08x}", body), **published_elements(body)}


def timed(function, *args):
    start = time.perf_counter()
    function(*args)
    return (time.perf_counter() - start) * 1000


def measure(netns, size, rounds):
    """Return medians in ms by way."""
    firewall, echoes = netns.call(Firewall, Echoes()), Echoes()
    everybody = {}
    for n in range(size):
        everybody |= endpoint(n)
    whole = timed(netns.call, firewall.set, TEXT, everybody)
    spent = {"netlink, in and out": [], "nft -f, its elements": []}
    for number in range(rounds):
        one = endpoint(size + number)
        spent["netlink, in and out"].append(
            timed(netns.call, firewall.change, one, {}) + timed(netns.call, firewall.change, {}, one)
        )
        text = commands(one, names.MARK)
        add = timed(netns.call, lambda text=text: nfttool.run(echoes, ["-f", "-"], text))
        out = text.replace("add element", "delete element")
        spent["nft -f, its elements"].append(
            add + timed(netns.call, lambda out=out: nfttool.run(echoes, ["-f", "-"], out))
        )
    assert len(netns.call(firewall.current, TEXT)[1]) == len(everybody)
    medians = {way: statistics.median(values) for way, values in spent.items()}
    check = timed(netns.call, lambda: nfttool.run(echoes, ["-c", "-f", "-"], script(TEXT, everybody)))
    firewall.close()
    return {**medians, "whole tables made and sealed, once": whole, "whole tables, nft -c alone": check}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    one = endpoint(1)
    print(
        f"one more endpoint: {len(one)} elements in {len(put(names.MARK, one))} messages of one transaction"
    )
    netns = Netns()
    try:
        found = {size: measure(netns, size, rounds) for size in SIZES}
    finally:
        netns.close()
    print(f"{'ms, median':38} {SIZES[0]:>8,} {SIZES[1]:>8,}   ratio")
    for way in found[SIZES[0]]:
        few, many = (found[size][way] for size in SIZES)
        print(f"{way:38} {few:8.2f} {many:8.2f} {many / few:7.2f}")


if __name__ == "__main__":
    main()
