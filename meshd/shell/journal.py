"""What is on disk and when it is safe: an append-only journal and a snapshot (design.md, section 6, "Disk").

state_dir/journal   magic, then records: length (4, big endian), crc32 of the body (4), crc32 of these 8 bytes (4),
                    body
state_dir/snapshot  magic, format (2), length of the body (8), sha256 of the body (32), body
A body is a row of entries: length (4), then one byte saying what: an item that now stands, or a key forgotten.
One record is one commit: after a crash all of it is there or none.

state_dir/reserve   nothing, allocated: what a full disk leaves for releases
A record that stops at the end of the file, or a tail of zeros, is a write that a crash cut short: it was never
answered, and is cut off. Damage before the end is not: the daemon refuses to start and leaves the file as it is.
The header has a checksum of its own, so that a rotten length is not taken for a cut that would drop all that
follows. crc32 (zlib) finds torn and rotten records; nothing here defends against who can write to the disk.
"""

import contextlib
import errno
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import structlog
import trio

from meshd.config import JOURNAL_MAX_BYTES, RESERVE_BYTES
from meshd.errors import StateError, Unavailable
from meshd.model import Item, Key
from meshd.wire.codec import decode_item, encode_item
from meshd.wire.errors import WireError

log = structlog.get_logger()

JOURNAL_MAGIC = b"meshdjn1"
SNAPSHOT_MAGIC = b"meshdsn1"
_RECORD = struct.Struct(">III")
_SNAPSHOT = struct.Struct(">8sHQ32s")
_FORMAT = 1
_ENTRY = struct.Struct(">IB")
_KEY = struct.Struct(">B16s")
_ITEM, _FORGOTTEN = 1, 2

Entry = Item | Key
"""An item that now stands, or the key of one that is forgotten."""


def pack_entries(entries: Iterable[Entry]) -> bytes:
    """Encode entries as one body."""
    parts = []
    for entry in entries:
        if isinstance(entry, Item):
            body, what = encode_item(entry), _ITEM
        else:
            body, what = _KEY.pack(entry.kind, entry.id), _FORGOTTEN
        parts.append(_ENTRY.pack(len(body), what) + body)
    return b"".join(parts)


def unpack_entries(body: bytes) -> Iterator[Entry]:
    """Decode one body. Raises ValueError for anything that pack_entries did not write."""
    offset = 0
    while offset < len(body):
        if offset + _ENTRY.size > len(body):
            raise ValueError("entry header cut short")
        length, what = _ENTRY.unpack_from(body, offset)
        offset += _ENTRY.size
        part = body[offset : offset + length]
        offset += length
        if len(part) != length:
            raise ValueError("entry cut short")
        if what == _ITEM:
            try:
                yield decode_item(part, local=True)
            except WireError as error:
                raise ValueError(f"item: {error.reason}") from None
        elif what == _FORGOTTEN and length == _KEY.size:
            yield Key(*_KEY.unpack(part))
        else:
            raise ValueError(f"entry of unknown sort {what}")


def pack_record(body: bytes) -> bytes:
    """Frame one body as a journal record."""
    head = _RECORD.pack(len(body), zlib.crc32(body), 0)[:8]
    return head + zlib.crc32(head).to_bytes(4, "big") + body


def _record_at(data: bytes, offset: int) -> bytes | None:
    """Return the body of the record at ``offset``; None where a crash cut it short. Raises ValueError on damage."""
    start = offset + _RECORD.size
    if start > len(data) or (not any(data[offset:start]) and not any(data[start:])):
        return None
    length, crc, head_crc = _RECORD.unpack_from(data, offset)
    if zlib.crc32(data[offset : offset + 8]) != head_crc or length == 0:
        raise ValueError(f"damaged at byte {offset} of {len(data)}")
    body = data[start : start + length]
    if len(body) < length or (zlib.crc32(body) != crc and start + length == len(data)):
        return None
    if zlib.crc32(body) != crc:
        raise ValueError(f"damaged at byte {offset} of {len(data)}")
    return body


class Journal:
    """The files of one state_dir. All methods block; ``DiskWriter`` calls them in a worker thread."""

    def __init__(self, state_dir: Path) -> None:
        self.directory = state_dir
        self._path = state_dir / "journal"
        self._snapshot = state_dir / "snapshot"
        self._reserve = state_dir / "reserve"
        self._fd = -1
        self.size = 0
        self.cut_short = 0
        self.notes: list[str] = []
        self.found = False
        """Whether ``load`` found anything at all, empty or not."""

    def load(self) -> list[Entry]:
        """Read everything, oldest first, and open the journal for appending. Raises StateError where a file is
        damaged; nothing on disk is changed then."""
        entries: list[Entry] = []
        self.found = self._path.exists() or self._snapshot.exists()
        try:
            entries += self._read_snapshot(self._snapshot)
        except ValueError as error:
            previous = self._snapshot.with_suffix(".prev")
            if not previous.exists():
                raise _damaged(self._snapshot, str(error)) from None
            self.notes.append(f"{self._snapshot}: {error}; used {previous.name} and the journals since")
            try:
                entries = [
                    *self._read_snapshot(previous),
                    *self._read_journal(self._path.with_suffix(".prev"))[0],
                ]
            except ValueError as again:
                raise _damaged(previous, str(again)) from None
        try:
            found, good = self._read_journal(self._path)
        except ValueError as error:
            raise _damaged(self._path, str(error)) from None
        self._open(good)
        return entries + found

    def _read_snapshot(self, path: Path) -> list[Entry]:
        if not path.exists():
            if path == self._snapshot and path.with_suffix(".prev").exists():
                raise ValueError("missing, though the one before it is there")
            return []
        data = path.read_bytes()
        if len(data) < _SNAPSHOT.size:
            raise ValueError("shorter than its header")
        magic, version, length, digest = _SNAPSHOT.unpack_from(data)
        body = data[_SNAPSHOT.size :]
        if magic != SNAPSHOT_MAGIC:
            raise ValueError("not a meshd snapshot")
        if version != _FORMAT:
            raise ValueError(f"written in format {version}, this version reads {_FORMAT}")
        if len(body) != length or hashlib.sha256(body).digest() != digest:
            raise ValueError("checksum does not match")
        return list(unpack_entries(body))

    def _read_journal(self, path: Path) -> tuple[list[Entry], int]:
        """Return the entries and how many bytes of the file are good."""
        if not path.exists():
            return [], 0
        data = path.read_bytes()
        if not JOURNAL_MAGIC.startswith(data[: len(JOURNAL_MAGIC)]):
            raise ValueError("not a meshd journal")
        if len(data) < len(JOURNAL_MAGIC):
            return [], 0
        entries: list[Entry] = []
        offset = len(JOURNAL_MAGIC)
        while offset < len(data):
            body = _record_at(data, offset)
            if body is None:
                self.cut_short = len(data) - offset
                self.notes.append(f"{path}: last {self.cut_short} bytes were cut short by a crash; dropped")
                break
            try:
                entries += unpack_entries(body)
            except ValueError as error:
                raise ValueError(f"damaged at byte {offset}: {error}") from None
            offset += _RECORD.size + len(body)
        return entries, offset

    def _open(self, good: int) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if good < len(JOURNAL_MAGIC):
            os.ftruncate(self._fd, 0)
            os.write(self._fd, JOURNAL_MAGIC)
            good = len(JOURNAL_MAGIC)
        os.ftruncate(self._fd, good)
        os.lseek(self._fd, good, os.SEEK_SET)
        os.fsync(self._fd)
        _sync_dir(self.directory)
        self.size = good

    def append(self, entries: Iterable[Entry]) -> None:
        """Write one record and make it durable (fdatasync). Raises OSError; the file is then as it was."""
        body = pack_entries(entries)
        record = pack_record(body)
        try:
            written = 0
            while written < len(record):
                written += os.write(self._fd, record[written:])
            os.fdatasync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
                os.lseek(self._fd, self.size, os.SEEK_SET)
            raise
        self.size += len(record)

    def compact(self, items: Iterable[Item]) -> None:
        """Write a snapshot of ``items`` and start the journal anew; the files before are kept as ``.prev``.

        After a crash between any two steps ``load`` finds all of it: a name is never without its file, and the
        old journal stands until the snapshot that replaces it is durable. Raises OSError; appending to the old
        journal goes on then.
        """
        body = pack_entries(items)
        head = _SNAPSHOT.pack(SNAPSHOT_MAGIC, _FORMAT, len(body), hashlib.sha256(body).digest())
        os.close(_write_new(self._snapshot.with_suffix(".tmp"), head + body))
        fd = _write_new(self._path.with_suffix(".tmp"), JOURNAL_MAGIC)
        try:
            _keep_as_prev(self._snapshot)
            self._snapshot.with_suffix(".tmp").replace(self._snapshot)
            _sync_dir(self.directory)
            _keep_as_prev(self._path)
            self._path.with_suffix(".tmp").replace(self._path)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd, self.size = fd, len(JOURNAL_MAGIC)
        _sync_dir(self.directory)

    def keep_reserve(self) -> None:
        """Have RESERVE_BYTES of the disk kept for releases. Raises OSError where there are not so many, or the disk
        refuses to be written at all."""
        fd = os.open(self._reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, RESERVE_BYTES)
            os.fsync(fd)
        except OSError:
            self.spend_reserve()
            raise
        finally:
            os.close(fd)

    def spend_reserve(self) -> None:
        """Give the reserve back to the disk, for what is to be written now."""
        self._reserve.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; what was appended is already durable."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class DiskWriter:
    """Commits from many tasks, written together: one fdatasync serves all that waited for it.

    A full disk refuses what takes an address or makes anything; what gives something up is written into the reserve
    (Journal.keep_reserve), until that can be kept again. ``trouble``: why the disk refuses now, "" where it does not.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.trouble = ""
        self._notes: dict[Key, Entry] = {}
        self._waiters: list[_Waiter] = []
        self._wake = trio.Event()
        self._compact_above = JOURNAL_MAX_BYTES

    @property
    def bytes(self) -> int:
        """How long the journal is, without the snapshot."""
        return self._journal.size

    async def commit(self, entries: Iterable[Entry], then: Callable[[], None] = lambda: None) -> None:
        """Return when ``entries`` are on disk and ``then`` was called. Raises Unavailable when the disk refuses;
        they are not, then.

        ``then`` is called as soon as they are, in the order of the file, before anything else is written: what
        memory holds is never behind or beside what a restart would read. It must not fail.
        """
        waiter = _Waiter(list(entries), then)
        self._waiters.append(waiter)
        self._wake.set()
        await waiter.done.wait()
        if waiter.error is not None:
            raise Unavailable(
                f"the state could not be written to disk: {waiter.error.strerror}; nothing was changed",
                f"free space on, or repair, the file system of {self._journal.directory}",
            ) from waiter.error

    def note(self, entry: Entry) -> None:
        """Write ``entry`` with the next commit or soon: what peers said can be learnt from them again. Of one key
        only the last is kept, so that a disk that refuses for hours costs no more than the store does."""
        key = entry.key if isinstance(entry, Item) else entry
        self._notes.pop(key, None)
        self._notes[key] = entry
        self._wake.set()

    def keep_reserve(self) -> None:
        """Keep the reserve from the start on; where there is no room for it the disk counts as full. Blocks."""
        try:
            self._journal.keep_reserve()
        except OSError as error:
            self.trouble = error.strerror or str(error)

    def look_again(self) -> None:
        """Have a disk that refused tried again, where nobody else has anything to write."""
        if self.trouble:
            self._wake.set()

    async def run(self, everything: Callable[[], Iterable[Item]]) -> None:
        """Write what comes, for ever. ``everything`` gives all items when the journal has grown too long."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await self._write()
            if self._journal.size > self._compact_above:
                await self._compact(list(everything()))

    async def _compact(self, items: list[Item]) -> None:
        try:
            await trio.to_thread.run_sync(self._journal.compact, items)
            self._compact_above = JOURNAL_MAX_BYTES
        except OSError as refused:  # the journal goes on growing, and nothing is lost
            self._compact_above = self._journal.size + JOURNAL_MAX_BYTES // 8
            log.warning("the journal could not be compacted", error=refused.strerror)

    async def _write(self) -> None:
        waiters, self._waiters = self._waiters, []
        noted, self._notes = self._notes, {}
        batch = [entry for waiter in waiters for entry in waiter.entries]
        error: OSError | None = None
        try:
            if self.trouble:
                await trio.to_thread.run_sync(self._journal.keep_reserve)
            if noted or batch:
                await trio.to_thread.run_sync(self._journal.append, [*noted.values(), *batch])
            self.trouble = ""
        except OSError as refused:
            error = refused
            self.trouble = refused.strerror or str(refused)
            self._notes = noted | self._notes
        written = waiters if error is None else await self._write_releases(waiters, error)
        for waiter in waiters:
            waiter.error = None if waiter in written else error
            if waiter.error is None:
                waiter.then()
            waiter.done.set()

    async def _write_releases(self, waiters: list["_Waiter"], error: OSError) -> list["_Waiter"]:
        """Write what gives something up where the disk is full, and return whose that is."""
        releases = [waiter for waiter in waiters if waiter.gives_up]
        if not releases or error.errno not in _FULL:
            return []
        entries = [entry for waiter in releases for entry in waiter.entries]
        try:
            await trio.to_thread.run_sync(self._journal.spend_reserve)
            await trio.to_thread.run_sync(self._journal.append, entries)
        except OSError:
            return []
        return releases

    async def flush(self) -> None:
        """Return when what is noted is on disk, or was refused: the daemon is stopping. ``run`` does the writing:
        two writers would write into each other."""
        with contextlib.suppress(Unavailable):
            await self.commit(())


_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Waiter:
    """``gives_up``: all that it writes is that something is no more."""

    def __init__(self, entries: list[Entry], then: Callable[[], None]) -> None:
        self.gives_up = bool(entries) and all(isinstance(each, Key) or each.dead for each in entries)
        self.entries = entries
        self.then = then
        self.done = trio.Event()
        self.error: OSError | None = None


def _write_new(path: Path, data: bytes) -> int:
    """Write a file durably and return its descriptor, at its end. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    except BaseException:
        os.close(fd)
        path.unlink(missing_ok=True)  # on a full disk half of it would be what is missing elsewhere
        raise
    return fd


def _keep_as_prev(path: Path) -> None:
    """Keep the file as ``.prev`` too, in place of an older one; it stays under its own name."""
    if path.exists():
        second = path.with_suffix(".link")
        second.unlink(missing_ok=True)
        os.link(path, second)
        second.replace(path.with_suffix(".prev"))


def _damaged(path: Path, what: str) -> StateError:
    return StateError(
        f"{path}: {what}; nothing was changed",
        "restore the file from a backup, or move it aside: the host then learns from its peers what it gave away",
    )


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
