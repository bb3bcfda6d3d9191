"""What the benches share: a table row, HTTP over a unix socket, and a watcher of rows in a host's namespace."""

import ctypes
import http.client
import json
import random
import socket
import statistics
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLONE_NEWNET = 0x40000000
RTNLGRP_NEIGH = 3
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
NDA_DST, NDA_LLADDR = 1, 2
AF_INET, AF_BRIDGE = 2, 7
_HEADER, _NDMSG = 16, 12


def show(what: str, values: Sequence[float], unit: str, note: str = "") -> None:
    """Print one row: minimum, median, 99th percentile, maximum."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    cells = f"min {ordered[0]:8.2f}  median {statistics.median(ordered):8.2f}  p99 {p99:8.2f}  max {ordered[-1]:8.2f}"
    print(f"{what:<50} {cells} {unit:<4} n={len(ordered):<4} {note}", flush=True)


class Unix(http.client.HTTPConnection):
    """HTTP over a unix socket, kept open."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))

    def call(self, method: str, target: str, body: object = None) -> Any:
        """Send one request; returns the JSON document. Raises RuntimeError with the refusal."""
        self.request(method, target, json.dumps(body) if body is not None else None)
        response = self.getresponse()
        answer = json.loads(response.read())
        if response.status >= 300:
            raise RuntimeError(answer)
        return answer


class Rows(threading.Thread):
    """Notes when each v4 neighbour and each FDB row with a MAC last appeared in a namespace, and ``gone`` when a row
    with a MAC was last deleted."""

    def __init__(self, namespace: str) -> None:
        super().__init__(daemon=True)
        self._namespace = namespace
        self.neighbours: dict[str, float] = {}
        self.fdb: dict[str, float] = {}
        self.gone: dict[str, float] = {}
        self._ready, self._done = threading.Event(), threading.Event()

    def begin(self) -> "Rows":
        """Start, and return once nothing can be missed any more."""
        self.start()
        if not self._ready.wait(5):
            raise RuntimeError(f"no netlink socket in {self._namespace}")
        return self

    def end(self) -> None:
        """Stop listening: what comes in a flood would overrun it."""
        self._done.set()
        self.join()

    def run(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{self._namespace}") as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        sock.bind((0, 1 << (RTNLGRP_NEIGH - 1)))
        sock.settimeout(0.2)
        self._ready.set()
        while not self._done.is_set():
            try:
                chunk = sock.recv(1 << 16)
            except TimeoutError:
                continue
            now = time.perf_counter()
            offset = 0
            while offset < len(chunk):
                length, kind = struct.unpack_from("=IH", chunk, offset)
                if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
                    self._note(chunk, offset, offset + length, now, gone=kind == RTM_DELNEIGH)
                offset += (length + 3) & ~3

    def _note(self, chunk: bytes, offset: int, end: int, now: float, *, gone: bool) -> None:
        family = chunk[offset + _HEADER]
        at = offset + _HEADER + _NDMSG
        while at < end:
            size, kind = struct.unpack_from("=HH", chunk, at)
            value = chunk[at + 4 : at + size]
            if family == AF_INET and kind == NDA_DST and not gone:
                self.neighbours[socket.inet_ntoa(value)] = now
            elif family == AF_BRIDGE and kind == NDA_LLADDR:
                (self.gone if gone else self.fdb)[value.hex(":")] = now
            at += (size + 3) & ~3


def put_back(namespace: str, device: str, macs: Sequence[str]) -> list[float]:
    """Delete VXLAN rows by hand, one each 0.1 to 0.2 s; return how long each was away as the kernel tells it, ms."""
    rows, pauses, times = Rows(namespace).begin(), random.Random(1), []
    argv = ["ip", "netns", "exec", namespace, "bridge", "-batch", "-"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, text=True) as bridge:
        assert bridge.stdin is not None
        for mac in macs:
            time.sleep(pauses.uniform(0.1, 0.2))
            print(f"fdb del {mac} dev {device} self", file=bridge.stdin, flush=True)
            end = time.perf_counter() + 60
            while rows.fdb.get(mac, 0.0) <= rows.gone.get(mac, end):
                if time.perf_counter() > end:
                    raise RuntimeError(f"row {mac}: not back within a minute")
                time.sleep(0.001)
            times.append(1000 * (rows.fdb[mac] - rows.gone[mac]))
    rows.end()
    return times
