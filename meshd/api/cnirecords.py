"""How the CNI executable and the daemon talk (cli/meshcni/plugin.py is the other side): a request and an answer are a
few records, each a byte that says what it is, four bytes of length (big-endian) and the value. Not JSON, since the
executable has no time to load what writes it. Decides the layout; what a request means is api/cni.py's business.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Set

import msgspec

from meshd.errors import BadRequest
from meshd.kernel.inside import Step

PROTOCOL = b"1"
_HEAD = struct.Struct(">cI")
_STEP = struct.Struct(">HHH")  # where the interface's number goes, where the namespace's, length of the words
_KNOWN = b"VECTKLARS"


class CniCall(msgspec.Struct, frozen=True):
    """A request. ``environment``: CNI_* without CNI_PATH; ``config``: standard input. Only ADD and CHECK have the rest:
    ``turn``: 1, or 2 when asked to look again; ``cookie``: the namespace's; ``link`` (empty: there is no such
    interface), ``addresses`` and ``routes``: the kernel's answers inside. ``pid``: of the executable, which is in
    the namespace then; 0 where it has another view of processes than the daemon. ``looks``: it would say which of some
    sockets are the runtime's own for this container; ``sockets``: inodes of those that are, once it was asked."""

    environment: Mapping[str, str]
    config: bytes
    turn: int = 1
    cookie: int = 0
    link: bytes = b""
    addresses: bytes = b""
    routes: bytes = b""
    pid: int = 0
    looks: bool = False
    sockets: Set[int] = frozenset()


def _records(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(body):
        if len(body) - at < _HEAD.size:
            raise BadRequest("a record is cut off")
        tag, length = _HEAD.unpack_from(body, at)
        at += _HEAD.size
        if len(body) - at < length:
            raise BadRequest("a record is cut off")
        yield tag, body[at : at + length]
        at += length


def read(body: bytes) -> CniCall:
    """Read a request. Raises BadRequest."""
    found = dict(_records(body))
    if found.get(b"V") != PROTOCOL:
        raise BadRequest(
            "the CNI executable and the daemon are of different versions", "run meshctl cni install again"
        )
    if any(tag not in _KNOWN for tag in found):
        raise BadRequest("a record of an unknown kind")
    pairs = [
        pair.partition("=") for pair in found.get(b"E", b"").decode(errors="replace").split("\0") if pair
    ]
    return CniCall(
        environment={key: value for key, _, value in pairs},
        config=found.get(b"C", b""),
        turn=2 if found.get(b"T") == b"2" else 1,
        cookie=int.from_bytes(found.get(b"K", b"")[:8], "little" if _LITTLE else "big"),
        link=found.get(b"L", b""),
        addresses=found.get(b"A", b""),
        routes=found.get(b"R", b""),
        looks=found.get(b"S") == b"",
        sockets=frozenset(map(int, filter(bytes.isdigit, found.get(b"S", b"").split(b",")))),
    )


_LITTLE = struct.pack("=H", 1) == b"\1\0"


def _write(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(_HEAD.pack(tag, len(value)) + value for tag, value in [*records, (b".", b"")])


def done(output: bytes = b"", steps: Iterable[Step] = (), *, created: bool = True) -> bytes:
    """Answer with what goes to standard output once all ``steps`` are taken. ``created``: what fails then is the
    caller's to undo; else somebody else has made it."""
    return _write([*([] if created else [(b"n", b"")]), *(_step(step) for step in steps), (b"O", output)])


def refused(code: int, what: str, hint: str) -> bytes:
    """Answer with an error result."""
    return _write([(b"F", "\0".join((str(code), _line(what), _line(hint))).encode())])


def look_again() -> bytes:
    """Answer that what was seen in the namespace was on its way out."""
    return _write([(b"a", b"")])


def whose(inodes: Iterable[int]) -> bytes:
    """Answer that these sockets have ports that are to be published: which are the runtime's own?"""
    return _write([(b"s", b",".join(b"%d" % inode for inode in inodes))])


def _line(text: str) -> str:
    return " ".join(text.replace("\0", " ").split())


def _step(step: Step) -> tuple[bytes, bytes]:
    tag = b"h" if not step.inside else b"d" if not step.message else b"t" if step.optional else b"i"
    words = step.what.encode()
    return tag, _STEP.pack(step.index_at, step.namespace_at, len(words)) + words + step.message
