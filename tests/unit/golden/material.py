"""One example of everything that meshd writes to a disk or to the network, with fixed values: what the golden vectors
in the folders beside this file hold.

An example that a folder holds never changes again: a host of that version wrote it, and must be understood for as long
as such hosts may run. What is new is added under a name of its own, and `python -m tests.unit.golden.make` writes the
vector for it.
"""

import itertools

from meshd.messages import (
    Ack,
    Announce,
    BlockAnswer,
    BlockAsk,
    Buckets,
    Done,
    Held,
    Hold,
    IndirectAck,
    Message,
    MtuAck,
    MtuProbe,
    Nack,
    News,
    Ping,
    PingReq,
    Restarting,
    Stamp,
    Stamps,
    StreamPing,
    StreamPong,
    SubnetAsk,
    Suspect,
    SyncOpen,
    View,
    Want,
)
from meshd.model import (
    NO_PARENT,
    Attachment,
    Bridge,
    BridgePort,
    Confirmed,
    Deed,
    DockerNetwork,
    Endpoint,
    Forgotten,
    HostFacts,
    Item,
    Key,
    Kind,
    MemberFacts,
    Network,
    Rank,
    Released,
    Removed,
    Subnet,
    Version,
)
from meshd.wire.keys import Keyring, RingKey
from meshd.wire.seal import Sealer

A, B, NET, END, SESSION = (bytes([n]) * 16 for n in (0xA0, 0xB0, 0xC0, 0xD0, 0xE0))
DIGEST = bytes(range(16))
V4, V6, MAC = bytes((10, 128, 0, 5)), bytes.fromhex("fd00000000000000000000000000a005"), b"\x02\0\0\0\0\5"

FACTS = MemberFacts("host1", bytes((192, 0, 2, 1)), 7947, SESSION, "0.1.0")
NETWORK = Network(
    "blue", "overlay", (Subnet("10.128.0.0/20", "10.128.0.1"), Subnet("fd00::/64", "fd00::1")), 4097, 1450, True, A,
    1_790_000_000_000, ("10.128.1.0/24",), ("10.128.1.9",), {"default-route": "no"}, {"team": "x"}, False, True, True,
)  # fmt: skip
ENDPOINT = Endpoint(
    NET, A, "web", 5, (V4, V6), MAC, "eth0", ("www",), ("192.0.2.1:8080:80/tcp",), 1_790_000_000_001
)
DEED = Deed(NET, 2048, 1024, B, A, b"\xf0" * 16)

ITEMS: dict[str, Item] = {
    "member": Item(Kind.MEMBER, A, Version(1_790_000_000_000, Rank.ALIVE, SESSION), FACTS),
    "member-left": Item(Kind.MEMBER, B, Version(1_790_000_000_000, Rank.LEFT, SESSION), FACTS),
    "host": Item(
        Kind.HOST, A, Version(0, 1_790_000_000_002, A),
        HostFacts("host1", bytes((192, 0, 2, 1)), 4789, 1500, 17, ("192.0.2.0/24",)),
    ),
    "network": Item(Kind.NETWORK, NET, Version(0, 3, A), NETWORK),
    "network-removed": Item(Kind.NETWORK, B, Version(0, 4, A), Removed("green"), dead=True),
    "endpoint": Item(Kind.ENDPOINT, END, Version(1_790_000_000_001, 1, A), ENDPOINT, origin=A, seq=18),
    "endpoint-released": Item(
        Kind.ENDPOINT, B, Version(1_790_000_000_001, 2, A), Released(NET, 6), dead=True, origin=A, seq=19
    ),
    "deed": Item(Kind.DEED, b"\xf1" * 16, Version(0, 0, bytes(16)), DEED),
    "deed-genesis": Item(
        Kind.DEED, b"\xf0" * 16, Version(0, 0, bytes(16)), Deed(NET, 0, 4096, A, A, NO_PARENT, (B, SESSION))
    ),
    "forgotten": Item(Kind.FORGOTTEN, B, Version(0, 1_790_000_000_003, A), Forgotten("host2", "host1", 1_790_000_000_003)),
    "deed-opening": Item(
        Kind.DEED, b"\xf2" * 16, Version(0, 0, bytes(16)),
        Deed(NET, 1 << 40, 256, A, A, b"\xf0" * 16, (), (Subnet("10.200.0.0/24", "10.200.0.1", 1 << 40),)),
    ),
}  # fmt: skip

AT_LEAST = ("member", "host", "network", "endpoint", "deed")
"""What every folder's journal and snapshot hold, and the digest among the vectors covers."""

IN_NEWS = (
    "member", "member-left", "host", "network", "network-removed", "endpoint", "endpoint-released", "deed",
    "deed-genesis", "deed-opening",
)  # fmt: skip

LOCAL_ITEMS: dict[str, Item] = {
    "local-network": Item(Kind.LOCAL_NETWORK, NET, Version(0, 1, A), NETWORK),
    "local-network-removed": Item(Kind.LOCAL_NETWORK, B, Version(0, 2, A), Removed("red"), dead=True),
    "local-endpoint": Item(Kind.LOCAL_ENDPOINT, END, Version(1, 1, A), ENDPOINT),
    "local-endpoint-released": Item(Kind.LOCAL_ENDPOINT, B, Version(1, 2, A), Released(NET, 7), dead=True),
    "local-bridge": Item(
        Kind.LOCAL_BRIDGE, NET, Version(0, 1, A),
        Bridge("br0", MAC, 1_790_000_000_000, (BridgePort("eth1", MAC, "boot", 3, 4, 60_000, 50_000, b"\1\2", b"\3"),)),
    ),
    "docker-network": Item(
        Kind.DOCKER_NETWORK, NET, Version(0, 0, A),
        DockerNetwork("c0ffee" * 10, b"", "c0ffeec0ffee", (Subnet("10.9.0.0/24", "10.9.0.1"),), "{}", (5,), False),
    ),
    "confirmed": Item(Kind.CONFIRMED, b"\xf1" * 16, Version(0, 0, A), Confirmed(NET)),
    "attachment": Item(
        Kind.ATTACHMENT, END, Version(1, 1, A),
        Attachment("boot", 77, "/run/netns/web", "eth0", "mhd0d0d0d0", "mpd0d0d0d0", "{}"),
    ),
}  # fmt: skip

FORGOTTEN = Key(Kind.ATTACHMENT, B)
"""What a journal says of a local item that is no more."""

MESSAGES: dict[str, Message] = {
    "ping": Ping(7, DIGEST, View(1_790_000_000_000, 1)),
    "ack": Ack(7, DIGEST, View(1_790_000_000_000, 2)),
    "ping-req": PingReq(8, B),
    "nack": Nack(8),
    "indirect-ack": IndirectAck(8),
    "suspect": Suspect(B, 1_790_000_000_000, A, FACTS),
    "restarting": Restarting(A, 1_790_000_000_000, 60_000),
    "news": News(tuple(ITEMS[name] for name in IN_NEWS)),
    "announce": Announce((Stamp(Kind.NETWORK, NET, Version(0, 3, A)),)),
    "buckets": Buckets(2, 0, bytes(range(16))),
    "stamps": Stamps(2, (1,), (Stamp(Kind.HOST, A, Version(0, 5, A)),)),
    "want": Want(((Kind.HOST, A), (Kind.NETWORK, NET))),
    "block-ask": BlockAsk(9, NET, 64, True, 128),
    "block-answer": BlockAnswer(9, (ITEMS["deed"],), "no space"),
    "sync-open": SyncOpen(64, DIGEST),
    "stream-ping": StreamPing(10),
    "stream-pong": StreamPong(10),
    "done": Done(),
    "mtu-probe": MtuProbe(11, bytes(256)),
    "mtu-ack": MtuAck(11),
    "subnet-ask": SubnetAsk(12, NET, ("10.200.0.0/24", "fd01::/64"), ("10.200.0.1",)),
    "hold": Hold((b"\xf1" * 16, b"\xf2" * 16)),
    "held": Held((b"\xf1" * 16,)),
}

KEY = RingKey(0x3F2A, bytes(range(32)))
PLAINTEXT = b"what is sealed in the golden datagrams"


def sealer(host: bytes, session: bytes) -> Sealer:
    """Make a host's end whose randomness is known; it knows the other's session."""
    drawn = itertools.count()
    made = Sealer(
        host,
        session,
        Keyring((KEY,)),
        lambda n: bytes([next(drawn) % 256]) * n,
        lambda: 1_790_000_000_000,
        lambda _: 0,
    )
    other = (B, B[::-1]) if host == A else (A, SESSION)
    made.learn(*other)
    return made
