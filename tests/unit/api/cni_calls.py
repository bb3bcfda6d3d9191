"""What the CNI executable would send and say, for tests of the daemon's side: records by the executable's own packer,
and the kernel's answers as it would have copied them."""

import contextlib
import json
import struct

from meshcni import plugin
from meshd.api.cni import Cni
from meshd.api.exchange import Request
from meshd.api.peers import Peer
from meshd.kernel import frames

ROOT = Peer(0, 0, 1, (0,))
NETNS = "/run/netns/c1"


def link_answer(mac, index=4, up=True):
    """RTM_NEWLINK, as the kernel answers a question about one link."""
    body = struct.pack("=BxHiII", 0, 1, index, 1 if up else 0, 0) + frames.attribute(1, mac)
    return frames.HEADER.pack(16 + len(body), 16, 0, 1, 7) + body


def address_dump(*addresses, index=4):
    """RTM_NEWADDR of each (packed, prefix length)."""
    dump = b""
    for ip, prefix in addresses:
        body = struct.pack("=BBBBi", 2 if len(ip) == 4 else 10, prefix, 0, 0, index) + frames.attribute(1, ip)
        dump += frames.HEADER.pack(16 + len(body), 20, 2, 1, 7) + body
    return dump


def default_dump(*defaults):
    """RTM_NEWROUTE of each default route (packed gateway, interface's number, metric)."""
    dump = b""
    for via, index, metric in defaults:
        body = struct.pack("=BBBBBBBBI", 2 if len(via) == 4 else 10, 0, 0, 0, 254, 3, 0, 1, 0)
        body += frames.attribute(5, via) + frames.attribute(4, struct.pack("=I", index))
        body += frames.attribute(6, struct.pack("=I", metric)) if metric else b""
        dump += frames.HEADER.pack(16 + len(body), 24, 2, 1, 7) + body
    return dump


class Runtime:
    """Calls a daemon's CNI side as a runtime does through the executable; nothing is plumbed. ``link``, ``addresses``,
    ``routes``: what the executable sees in the namespace."""

    def __init__(self, cluster, run_dir):
        self.cni = Cni(cluster, run_dir)
        self.link, self.addresses, self.routes = b"", b"", b""
        self.cookie, self.turn, self.pid = 7, 1, 0
        self.own_sockets = b""  # whose sockets are the container's own: not asked yet

    async def raw(self, command, config, *, container="c1", ifname="eth0", args="", netns=NETNS):
        said = {
            "CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": ifname, "CNI_ARGS": args,
            "CNI_NETNS": netns,
        }  # fmt: skip
        environment = "\0".join(f"{key}={value}" for key, value in said.items()).encode()
        records = [(b"V", plugin.PROTOCOL), (b"E", environment), (b"C", config)]
        if command in ("ADD", "CHECK"):
            records += [(b"T", b"%d" % self.turn), (b"K", struct.pack("=Q", self.cookie)), (b"L", self.link)]
            records += [(b"A", self.addresses), (b"R", self.routes), (b"S", self.own_sockets)]
        answer = await self.cni.handle(
            Request(ROOT._replace(pid=self.pid), "POST", "/cni", {}, plugin.pack(records))
        )
        return plugin.unpack(answer.body)

    async def call(self, command, config=None, *, version="1.1.0", **where):
        """Return what would be on standard output, as a document; raises plugin.Fail."""
        told = {"cniVersion": version, "name": "blue", "type": "meshd", **(config or {})}
        output = plugin.output_of(await self.raw(command, json.dumps(told).encode(), **where))
        return json.loads(output) if output else None

    async def code(self, command, config=None, **where):
        """Return (code, message and details) of an error, (0, "") of a success."""
        with contextlib.suppress(StopIteration):
            try:
                await self.call(command, config, **where)
            except plugin.Fail as error:
                return error.code, f"{error.msg} ({error.details})"
        return 0, ""
