"""An endpoint moves to another host under traffic: it is missed only while it is attached nowhere."""

import re
import signal
import subprocess
import time

from labtools import Attach, Attached

from meshctl.labcluster import Lab
from meshctl.labhost import wait_for

EVERY_S = 0.01
GRACE = 10  # pings: news to third hosts takes milliseconds, and a shared machine stalls for some tens of them
REPLY = re.compile(r"icmp_seq=(\d+) ")


class Watcher:
    """Pings ``to`` from a namespace and knows which requests had no answer."""

    def __init__(self, at: Attached, to: str) -> None:
        command = ["ping", "-n", "-i", str(EVERY_S), "-W", "1", to]
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", at.ns, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def lost(self) -> list[int]:
        self.process.send_signal(signal.SIGINT)
        said, _ = self.process.communicate(timeout=30)
        seen = {
            int(number)
            for line in said.splitlines()
            if "bytes from" in line
            for number in REPLY.findall(line)
        }
        return sorted(set(range(1, max(seen))) - seen)


def test_an_endpoint_moved_to_and_fro_is_missed_only_while_it_is_attached_nowhere(
    lab3: Lab, overlay: str, attach: Attach
) -> None:
    first, second, third = lab3.hosts
    moving = attach(first, overlay, "--name", "web")
    watchers = [attach(host, overlay) for host in lab3.hosts]
    for host in lab3.hosts:
        host.wait_rows(moving.mac, *(each.mac for each in watchers))
    for here, there in ((first, second), (second, first)):
        running = [Watcher(each, ip) for each in watchers for ip in moving.ips]
        time.sleep(0.5)
        start = time.monotonic()
        here.json("detach", overlay, "--netns", moving.path)
        moved = attach(there, overlay, "--name", "web", "--ip", moving.v4)
        nowhere = time.monotonic() - start
        time.sleep(0.5)
        for each in running:
            lost = each.lost()
            assert lost, "the move was seen"
            assert lost == list(range(lost[0], lost[-1] + 1)), "one gap, and nothing lost before or after"
            assert len(lost) <= nowhere / EVERY_S + GRACE
        assert (moved.ips, moved.mac, moved.endpoint["id"]) == (moving.ips, moving.mac, moving.endpoint["id"])

        def told(to: str = there.name, by: str = here.name) -> bool:
            found = [e for e in third.events() if e["kind"] == "endpoint-moved" and e["name"] == "web"]
            return bool(found) and (found[-1]["host"], found[-1]["from_host"]) == (to, by)

        wait_for("the third host tells of the move", 5, told)
        moving = moved
