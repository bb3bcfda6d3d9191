"""What was answered survives; what was cut short is dropped; what is damaged is not touched."""

import errno
import os
from contextlib import suppress
from functools import partial

import msgspec
import pytest
import trio
import trio.testing

from meshd.errors import StateError, Unavailable
from meshd.model import Attachment, Item, Key, Kind, MemberFacts, Opaque, Released, Version
from meshd.shell.journal import (
    JOURNAL_MAGIC,
    DiskWriter,
    Journal,
    _record_at,
    pack_entries,
    pack_record,
    unpack_entries,
)

FACTS = MemberFacts(name="h", address=bytes(4), port=7947, session=b"s" * 16)


def item(number):
    return Item(Kind.MEMBER, number.to_bytes(16, "big"), Version(number, 0, FACTS.session), FACTS)


def attachment():
    body = Attachment(
        boot_id="b", netns_cookie=1, netns_path="/p", ifname="eth0", host_if="mh1", peer_if="mp1"
    )
    return Item(Kind.ATTACHMENT, b"e" * 16, Version(0, 0, b"m" * 16), body)


def written(path, *batches):
    journal = Journal(path)
    journal.load()
    for batch in batches:
        journal.append(batch)
    journal.close()


def loaded(path):
    journal = Journal(path)
    try:
        return journal.load(), journal
    finally:
        journal.close()


def test_entries_of_all_sorts_come_back_as_they_were(tmp_path):
    entries = [item(1), attachment(), Key(Kind.ATTACHMENT, b"e" * 16)]
    assert [*unpack_entries(pack_entries(entries))] == entries
    written(tmp_path, entries, [item(2)])
    assert loaded(tmp_path)[0] == [*entries, item(2)]


def test_what_a_newer_version_wrote_is_kept_by_an_older_one_that_is_put_back(tmp_path):
    journal = Journal(tmp_path)
    journal.load()
    newer = [
        Item(kind, bytes([kind]) * 16, Version(0, 1, b"w"), Opaque(b"\x93\x01\x02\x03")) for kind in (9, 99)
    ]
    newer.append(msgspec.structs.replace(item(1), rest=("a field of the next version",)))
    journal.append(newer)
    journal.close()
    assert loaded(tmp_path)[0] == newer
    journal.load()
    journal.compact(newer)
    journal.close()
    assert loaded(tmp_path)[0] == newer


def test_a_record_cut_short_anywhere_is_dropped_whole_and_the_rest_stays(tmp_path):
    written(tmp_path, [item(1)], [item(2), item(3)])
    data = (tmp_path / "journal").read_bytes()
    first = len(JOURNAL_MAGIC) + len(pack_record(pack_entries([item(1)])))
    for end in range(first, len(data)):
        (tmp_path / "journal").write_bytes(data[:end])
        entries, journal = loaded(tmp_path)
        assert entries == [item(1)]
        assert bool(journal.notes) == (end > first)
        assert (tmp_path / "journal").read_bytes() == data[:first], "the torn tail is cut off"


def test_every_flipped_bit_before_the_last_record_is_damage_and_nothing_is_touched(tmp_path):
    written(tmp_path, [item(1)], [item(2)])
    data = (tmp_path / "journal").read_bytes()
    last = len(data) - len(pack_record(pack_entries([item(2)])))
    for position in range(last):
        for bit in (0x01, 0x80):
            damaged = bytearray(data)
            damaged[position] ^= bit
            (tmp_path / "journal").write_bytes(damaged)
            with pytest.raises(StateError, match=r"journal: .*; nothing was changed") as caught:
                loaded(tmp_path)
            assert caught.value.hint
            assert (tmp_path / "journal").read_bytes() == damaged


def test_a_tail_of_zeros_is_a_write_that_a_crash_cut_short(tmp_path):
    written(tmp_path, [item(1)])
    with (tmp_path / "journal").open("ab") as file:
        file.write(bytes(100))
    entries, journal = loaded(tmp_path)
    assert entries == [item(1)]
    assert journal.cut_short == 100


def test_a_snapshot_takes_the_journals_place(tmp_path):
    journal = Journal(tmp_path)
    journal.load()
    journal.append([item(1), item(2)])
    journal.compact([item(2)])
    journal.append([item(3)])
    journal.close()
    assert loaded(tmp_path)[0] == [item(2), item(3)]


def test_a_damaged_snapshot_falls_back_to_the_one_before_and_says_so(tmp_path):
    journal = Journal(tmp_path)
    journal.load()
    journal.append([item(1)])
    journal.compact([item(1)])
    journal.append([item(2)])
    journal.compact([item(1), item(2)])
    journal.append([item(3)])
    journal.close()
    path = tmp_path / "snapshot"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    entries, journal = loaded(tmp_path)
    assert entries == [item(1), item(2), item(3)]
    assert "checksum" in journal.notes[0]


class Crash(BaseException):
    pass


def test_a_crash_between_any_two_steps_of_a_compaction_loses_nothing(tmp_path, monkeypatch):
    for compactions in (0, 1):  # the first has no snapshot before it
        for survived in range(16):
            path = tmp_path / f"{compactions}-{survived}"
            path.mkdir()
            journal = Journal(path)
            journal.load()
            journal.append([item(1)])
            for _ in range(compactions):
                journal.compact([item(1)])
            journal.append([item(2)])
            left = [survived]

            def step(call, *args, left=left, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    raise Crash
                return call(*args, **kwargs)

            with monkeypatch.context() as patched:
                for module, name in (
                    (os, "open"),
                    (os, "link"),
                    (os, "replace"),
                    (os, "rename"),
                    (os, "unlink"),
                ):
                    patched.setattr(module, name, partial(step, getattr(module, name)))
                with suppress(Crash):
                    journal.compact([item(1), item(2)])
            journal.close()
            assert {i.id[-1] for i in loaded(path)[0]} == {1, 2}, f"{survived} steps, after {compactions}"


def test_a_snapshot_that_is_missing_is_not_taken_for_a_first_start(tmp_path):
    journal = Journal(tmp_path)
    journal.load()
    journal.append([item(1)])
    journal.compact([item(1)])
    journal.compact([item(1)])
    journal.close()
    (tmp_path / "snapshot").unlink()
    entries, journal = loaded(tmp_path)
    assert {i.id[-1] for i in entries} == {1}
    assert "missing" in journal.notes[0]


def test_a_compaction_that_the_disk_refuses_leaves_a_journal_that_goes_on(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.load()
    journal.append([item(1)])

    def full(path, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", full)
        with pytest.raises(OSError, match="No space"):
            journal.compact([item(1)])
    journal.append([item(2)])
    journal.close()
    assert {i.id[-1] for i in loaded(tmp_path)[0]} == {1, 2}


async def test_a_snapshot_holds_what_was_committed_just_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr("meshd.shell.journal.JOURNAL_MAX_BYTES", 1)
    journal = Journal(tmp_path)
    journal.load()
    writer = DiskWriter(journal)
    held = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run, lambda: held)
        for number in range(1, 6):  # each is followed by a compaction at once
            await writer.commit([item(number)], partial(held.append, item(number)))
        await writer.flush()
        nursery.cancel_scope.cancel()
    journal.close()
    assert {i.id[-1] for i in loaded(tmp_path)[0]} == {1, 2, 3, 4, 5}


async def test_memory_follows_the_order_of_the_file(tmp_path):
    journal = Journal(tmp_path)
    journal.load()
    writer = DiskWriter(journal)
    order = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run, list)
        async with trio.open_nursery() as commits:
            for number in range(1, 30):
                commits.start_soon(writer.commit, [item(number)], partial(order.append, number))
        nursery.cancel_scope.cancel()
    journal.close()
    assert order == [i.id[-1] for i in loaded(tmp_path)[0]]


async def test_a_disk_that_refuses_for_long_keeps_one_note_a_key(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.load()
    writer = DiskWriter(journal)
    for number in range(100):
        writer.note(Item(Kind.MEMBER, b"h" * 16, Version(number, 0, FACTS.session), FACTS))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run, list)
        await writer.flush()
        nursery.cancel_scope.cancel()
    journal.close()
    assert [i.version.incarnation for i in loaded(tmp_path)[0]] == [99]


def test_a_damaged_snapshot_without_another_is_refused(tmp_path):
    written(tmp_path, [item(1)])
    (tmp_path / "snapshot").write_bytes(b"meshdsn1 and then nothing sensible at all, for long enough")
    with pytest.raises(StateError, match="snapshot"):
        loaded(tmp_path)


async def test_commits_wait_for_the_disk_and_notes_ride_along(tmp_path):
    journal = Journal(tmp_path)
    journal.load()
    writer = DiskWriter(journal)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run, list)
        writer.note(item(7))
        async with trio.open_nursery() as commits:
            for number in (1, 2, 3):
                commits.start_soon(writer.commit, [item(number)])
        assert {i.id[-1] for i in loaded(tmp_path)[0]} == {7, 1, 2, 3}
        nursery.cancel_scope.cancel()
    journal.close()


async def test_a_full_disk_refuses_the_commit_and_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.load()
    journal.append([item(1)])
    before = (tmp_path / "journal").read_bytes()
    writer = DiskWriter(journal)
    real = os.write

    def full(fd, data):  # the disk itself cannot be filled here without harming the machine
        real(fd, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run, list)
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(Unavailable, match="No space left on device") as caught:
            await writer.commit([item(2)])
        assert "nothing was changed" in caught.value.what
        assert (tmp_path / "journal").read_bytes() == before
        monkeypatch.setattr(os, "write", real)
        await writer.commit([item(3)])
        nursery.cancel_scope.cancel()
    journal.close()
    assert loaded(tmp_path)[0] == [item(1), item(3)]


class Weighed(bytes):
    """Bytes that count how many are copied out of them."""

    copied = 0

    def __getitem__(self, index):
        found = super().__getitem__(index)
        if isinstance(index, slice):
            self.copied += len(found)
        return found


def test_a_long_journal_is_read_once_and_not_its_rest_again_for_every_record():
    records = [pack_record(pack_entries([item(number)])) for number in range(300)]
    data, offset = Weighed(b"".join(records)), 0
    while offset < len(data):
        assert _record_at(data, offset) is not None
        offset += len(records.pop(0))
    assert data.copied < 2 * len(data)


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A disk of so many bytes, in Journal's eyes: one that is really full is in tests/lab/test_lab_disk.py."""
    disk = {"bytes": 4000}
    write = os.write

    def room():
        return disk["bytes"] - sum(path.stat().st_size for path in tmp_path.iterdir())

    def full(fd, data):
        if room() <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[: room()])

    def fallocate(fd, offset, length):
        if max(0, length - os.fstat(fd).st_size) > max(0, room()):
            raise OSError(errno.ENOSPC, "No space left on device")
        os.truncate(fd, max(length, os.fstat(fd).st_size))

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    monkeypatch.setattr("meshd.shell.journal.RESERVE_BYTES", 1000)
    return disk


def released(number):
    return msgspec.structs.replace(
        item(number),
        kind=Kind.ENDPOINT,
        body=Released(b"n" * 16, number),
        dead=True,
        version=Version(number, 1, b""),
    )


async def until_full(writer, make):
    """Commit one item after the other until the disk is full; return those that were taken."""
    done = []
    for number in range(1000):
        try:
            await writer.commit([make(number)])
        except Unavailable:
            assert writer.trouble == "No space left on device"
            return done
        done.append(make(number))
    raise AssertionError("it never was")


async def test_a_full_disk_takes_releases_and_nothing_else_until_there_is_room_again(tmp_path, small_disk):
    journal = Journal(tmp_path)
    journal.load()
    writer = DiskWriter(journal)
    writer.keep_reserve()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run, list)
        done = await until_full(writer, item)
        assert 10 < len(done) < 50
        assert writer.trouble == "No space left on device"
        for number in range(200, 205):  # into the reserve, which is of no use to anybody else
            await writer.commit([released(number), Key(Kind.ATTACHMENT, b"e" * 16)])
            done += [released(number), Key(Kind.ATTACHMENT, b"e" * 16)]
            with pytest.raises(Unavailable):
                await writer.commit([item(number)])
        writer.note(item(300))
        writer.look_again()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert loaded(tmp_path)[0] == done
        assert writer.trouble

        small_disk["bytes"] = 10_000
        writer.look_again()
        await writer.flush()
        assert writer.trouble == ""
        assert loaded(tmp_path)[0] == [*done, item(300)]
        await writer.commit([item(1)])
        assert (tmp_path / "reserve").stat().st_size == 1000
        nursery.cancel_scope.cancel()
    journal.close()
    small_disk["bytes"] = 0
    started = DiskWriter(journal)
    started.keep_reserve()
    assert started.trouble == "", "it is there from before"
    journal.spend_reserve()
    started.keep_reserve()
    assert started.trouble == "No space left on device"


async def test_releases_are_refused_too_where_the_disk_is_broken_or_the_reserve_used_up(
    tmp_path, small_disk, monkeypatch
):
    journal = Journal(tmp_path)
    journal.load()
    journal.keep_reserve()
    writer = DiskWriter(journal)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run, list)
        await until_full(writer, released)
        assert not (tmp_path / "reserve").exists()
        good = loaded(tmp_path)[0]
        assert len(good) > 30

        def broken(*_):
            raise OSError(errno.EIO, "Input/output error")

        small_disk["bytes"] = 100_000
        monkeypatch.setattr(os, "fdatasync", broken)
        with pytest.raises(Unavailable, match="Input/output error"):
            await writer.commit([released(2000)])
        monkeypatch.undo()
        await writer.commit([released(2001)])
        nursery.cancel_scope.cancel()
    journal.close()
    assert loaded(tmp_path)[0] == [*good, released(2001)]


def test_a_snapshot_that_does_not_fit_leaves_nothing_on_the_full_disk(tmp_path, small_disk):
    journal = Journal(tmp_path)
    journal.load()
    journal.append([item(1)])
    with pytest.raises(OSError, match="No space"):
        journal.compact([item(number) for number in range(200)])
    assert {path.name for path in tmp_path.iterdir()} == {"journal"}
    journal.append([item(2)])
    journal.close()
    assert loaded(tmp_path)[0] == [item(1), item(2)]
