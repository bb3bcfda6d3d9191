"""Runs in one namespace of the isolation matrix: sends what it is told, notes what it sees. Standard library only; it
must not know what is allowed.

First line on stdin: ``{"sniff": [device...], "host": bool, "jobs": [job...]}``. A job is ``{"id": N, "to": address}``
(a UDP datagram to port PORT) or ``{"id": N, "dev": device, "frame": hex}``, with ``"late": true`` or not. Then a command
a line: ``send`` sends all jobs but the late ones once, ``late`` those, ``tell`` answers with one line of JSON,
``{"seen": {where: [id...]}, "answered": [id...], "lost": N}``.

``where`` is a device whose frames were seen, or ``delivered``: what a host's own firewall let through to its sockets (a
container has no firewall, so there the device says it all). ICMP that quotes a probe is not the probe. ``answered``: datagrams that came back from where they were
sent. ``lost``: frames that the kernel had no room for; any means that silence proves nothing.
"""

import contextlib
import json
import re
import selectors
import socket
import struct
import sys

PORT = 7000
ASKS, ANSWERS = b"meshprobe:", b"meshecho:"
TOKEN = re.compile(ASKS + rb"(\d{6})")
QUOTES = re.compile(
    rb"(?s).{12}(\x08\x00\x45.{8}\x01.{10}[\x03\x05\x0b]|\x86\xdd.{6}\x3a.{33}[\x01-\x04\x89])"
)
"""Frames with ICMP errors and redirects, which quote the packet that they are about."""
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_STATISTICS = 263, 6
ROOM_BYTES = 32 << 20  # beyond what all senders together send in a round
FRAME_MAX = 1 << 16
DELIVERED = "delivered"


def sniffers(config):
    """Return sockets by where they listen."""
    found = {}
    for device in config["sniff"]:
        found[device] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        found[device].bind((device, ETH_P_ALL))
    if config["host"]:
        for family in (socket.AF_INET, socket.AF_INET6):
            for protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP):
                # a raw socket is served after the input hook: net/ipv4/raw.c, raw_local_deliver
                found[DELIVERED, family, protocol] = socket.socket(family, socket.SOCK_RAW, protocol)
    for sock in found.values():
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM_BYTES)
        sock.setblocking(False)
    return found


class Prober:
    def __init__(self, config):
        self.jobs = config["jobs"]
        self.seen = {}
        self.answered = set()
        self.sniffers = sniffers(config)
        self.sockets = [
            socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)
        ]
        self.echo = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.echo.bind(("::", PORT))
        self.select = selectors.DefaultSelector()
        for where, sock in self.sniffers.items():
            self.select.register(sock, selectors.EVENT_READ, (self.sniffed, where))
        for sock in (*self.sockets, self.echo):
            sock.setblocking(False)
            self.select.register(sock, selectors.EVENT_READ, (self.heard, None))
        self.select.register(sys.stdin, selectors.EVENT_READ, (self.told, None))
        self.raw = {}

    def run(self):
        print("ready", flush=True)
        while True:
            for key, _ in self.select.select():
                action, where = key.data
                action(key.fileobj, where)

    def sniffed(self, sock, where):
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, source = sock.recvfrom(FRAME_MAX)
                if isinstance(where, str) and source[2] == socket.PACKET_OUTGOING:
                    continue
                if QUOTES.match(frame):
                    continue
                name = where if isinstance(where, str) else DELIVERED
                self.seen.setdefault(name, set()).update(map(int, TOKEN.findall(frame)))

    def heard(self, sock, _):
        with contextlib.suppress(OSError):
            while True:
                data, peer = sock.recvfrom(FRAME_MAX)
                if data.startswith(ANSWERS):
                    self.answered.add(int(data.removeprefix(ANSWERS)))
                elif sock is self.echo and data.startswith(ASKS):
                    sock.sendto(data.replace(ASKS, ANSWERS), peer)

    def told(self, stdin, _):
        line = stdin.readline()
        if not line:
            sys.exit()
        command = line.strip()
        if command == "tell":
            self.tell()
        else:
            self.send(late=command == "late")

    def send(self, late):
        for job in self.jobs:
            if job.get("late", False) != late:
                continue
            with contextlib.suppress(OSError):  # no route, no device: nothing goes, as is to be shown
                if "to" in job:
                    self.sockets[":" in job["to"]].sendto(ASKS + b"%06d" % job["id"], (job["to"], PORT))
                else:
                    self.out(job["dev"]).send(bytes.fromhex(job["frame"]))
        print("sent", flush=True)

    def out(self, device):
        if device not in self.raw:
            self.raw[device] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self.raw[device].bind((device, 0))
        return self.raw[device]

    def tell(self):
        lost = 0
        for where, sock in self.sniffers.items():
            self.sniffed(sock, where)
            if isinstance(where, str):
                lost += struct.unpack("II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        seen = {where: sorted(ids) for where, ids in self.seen.items()}
        print(json.dumps({"seen": seen, "answered": sorted(self.answered), "lost": lost}), flush=True)


if __name__ == "__main__":
    Prober(json.loads(sys.stdin.readline())).run()
