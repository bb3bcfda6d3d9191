"""ping(8) from a namespace, counted. Used by the demo and by the lab's tests; knows nothing of meshd."""

import re
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass

from meshctl.errors import Failed

SENT = re.compile(r"(\d+) packets transmitted")
REPLY = re.compile(r"bytes from .*icmp_seq=(\d+)")
ROUND_TRIPS = re.compile(r"= [\d.]+/([\d.]+)/")


@dataclass(frozen=True)
class Pings:
    """What came back: packets sent and received, and the mean round trip in milliseconds (0.0 if none did)."""

    sent: int
    received: int
    mean_ms: float

    @property
    def lost(self) -> int:
        """Requests without a reply."""
        return self.sent - self.received


class Ping:
    """A ping that runs beside what the caller does. The first request counts like every other."""

    def __init__(self, namespace: str, to: str, *, count: int = 0, every_ms: int = 10) -> None:
        """Start; ``count`` 0 goes on until ``result`` is asked for. Replies are waited for a second at the end."""
        limit = ["-c", str(count)] if count else []
        self.to = to
        self._said = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  # a full pipe would stop the pings
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", namespace,
             "ping", "-n", "-W", "1", "-i", f"{every_ms / 1000:.3f}", *limit, to],
            stdin=subprocess.DEVNULL, stdout=self._said, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._endless = not count

    def result(self) -> Pings:
        """Wait for the end, or bring it about, and count. Raises Failed with ping's words where it sent none."""
        if self._endless:
            self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=60)
        with self._said:
            self._said.seek(0)
            said = self._said.read()
        counted = SENT.search(said)
        if counted is None:
            raise Failed(f"ping {self.to}: {said.strip()}")
        sent = int(counted[1])
        replies = answered(map(int, REPLY.findall(said)))
        if self._endless and sent not in replies:
            sent -= 1  # the interrupt came while the last request was on its way
        mean = ROUND_TRIPS.search(said)
        return Pings(sent, len(replies), float(mean[1]) if mean else 0.0)


def answered(numbers: Iterable[int]) -> set[int]:
    """Return which requests were answered, counted from 1, by the 16 bits that ping shows of each reply's number, in
    the order of arrival. A set: a duplicate makes up for no loss."""
    found: set[int] = set()
    highest = 0
    for number in numbers:
        full = highest + (number - highest + HALF) % (2 * HALF) - HALF  # the nearest to the highest so far
        found.add(full)
        highest = max(highest, full)
    return found


HALF = 1 << 15
"""Of the numbers that 16 bits tell apart."""


def ping(namespace: str, to: str, *, count: int = 3, every_ms: int = 10) -> Pings:
    """Ping and count."""
    return Ping(namespace, to, count=count, every_ms=every_ms).result()
