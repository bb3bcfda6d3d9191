"""What the wire tests build on: hosts with seeded entropy, and strategies for every message and item."""

import random
from typing import Any

import msgspec
from hypothesis import strategies as st

from meshd.messages import MESSAGE_TYPES, BlockAnswer, News
from meshd.model import DEAD_BODY, FIRST_LOCAL_KIND, LIVE_BODY, Address, Item, Kind, Version
from meshd.wire.keys import Keyring, RingKey
from meshd.wire.seal import Sealer

SOURCE = Address("192.0.2.1", 7947)
KEY = RingKey(0x1234, bytes(range(32)))
OLD_KEY = RingKey(0x0042, bytes(range(32, 64)))
RING = Keyring((KEY,))


class Host:
    """A host that can restart: the same id, a new session, everything in memory forgotten."""

    def __init__(self, name: str, ring: Keyring = RING, incarnation: int = 1000) -> None:
        self.rng = random.Random(name)
        self.id = self.rng.randbytes(16)
        self.ring = ring
        self.known: dict[bytes, int] = {}
        self.incarnation = incarnation - 1
        self.restart()

    def restart(self) -> None:
        self.session = self.rng.randbytes(16)
        self.incarnation += 1
        self.sealer = Sealer(
            self.id,
            self.session,
            self.ring,
            self.rng.randbytes,
            lambda: self.incarnation,
            lambda host: self.known.get(host, 0),
        )

    def open(self, datagram: bytes, now: float = 0.0) -> Any:
        return self.sealer.open(datagram, SOURCE, now)


def acquainted(*hosts: Host) -> None:
    """Let each learn every other's session, as from its member record."""
    for one in hosts:
        for other in hosts:
            if one is not other:
                assert one.sealer.learn(other.id, other.session)


# --- strategies ---------------------------------------------------------------------------------------------
_TEXT = st.characters(exclude_categories=["Cs"])
IDS = st.binary(min_size=16, max_size=16)
U64 = st.integers(0, 2**63 - 1)
VERSIONS = st.builds(Version, U64, U64, st.binary(max_size=16))


def of(shape: Any) -> st.SearchStrategy[Any]:
    """Make a strategy from an annotated type, by what msgspec itself says of it."""
    return _of(msgspec.inspect.type_info(shape))


def _of(info: Any) -> st.SearchStrategy[Any]:
    match info:
        case msgspec.inspect.IntType():
            return st.integers(
                -(2**63) if info.ge is None else info.ge, 2**63 - 1 if info.le is None else info.le
            )
        case msgspec.inspect.BytesType(min_length=4, max_length=16):  # PackedIp
            return st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))
        case msgspec.inspect.BytesType():
            return st.binary(min_size=info.min_length or 0, max_size=min(info.max_length or 64, 64))
        case msgspec.inspect.StrType():
            return st.text(_TEXT, min_size=info.min_length or 0, max_size=min(info.max_length or 64, 64))
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.VarTupleType():
            return st.lists(_of(info.item_type), max_size=min(info.max_length or 4, 4)).map(tuple)
        case msgspec.inspect.TupleType():
            return st.tuples(*map(_of, info.item_types))
        case msgspec.inspect.DictType():
            return st.dictionaries(_of(info.key_type), _of(info.value_type), max_size=3)
        case msgspec.inspect.NamedTupleType(cls=cls) if cls is Version:
            return VERSIONS
        case msgspec.inspect.StructType():
            return st.builds(info.cls, **{field.name: _of(field.type) for field in info.fields})
    raise NotImplementedError(info)


def _item(kind: int, dead: bool) -> st.SearchStrategy[Item]:
    shape = (DEAD_BODY if dead else LIVE_BODY).get(kind)
    body = st.none() if shape is None else of(shape)
    return st.builds(Item, st.just(int(kind)), IDS, VERSIONS, body, st.just(dead), IDS, U64)


LOCAL_KINDS = tuple(kind for kind in LIVE_BODY if kind >= FIRST_LOCAL_KIND)
NEVER_DEAD = (Kind.LOCAL_BRIDGE, Kind.DOCKER_NETWORK, Kind.CONFIRMED)
GOSSIPED_ITEMS = st.one_of(
    [_item(kind, False) for kind in LIVE_BODY if kind not in LOCAL_KINDS]
    + [_item(kind, True) for kind in DEAD_BODY if kind not in LOCAL_KINDS]
)
LOCAL_ITEMS = st.one_of(
    [
        _item(kind, dead)
        for kind in LOCAL_KINDS
        for dead in (False, True)
        if not dead or kind not in NEVER_DEAD
    ]
)

_SPECIAL = {
    News: st.builds(News, st.lists(GOSSIPED_ITEMS, max_size=3).map(tuple)),
    BlockAnswer: st.builds(
        BlockAnswer, U64, st.lists(GOSSIPED_ITEMS, max_size=3).map(tuple), st.text(_TEXT, max_size=200)
    ),
}
MESSAGES_OF = {shape: _SPECIAL[shape] if shape in _SPECIAL else of(shape) for shape in MESSAGE_TYPES}
MESSAGES = st.one_of(list(MESSAGES_OF.values()))
