"""What is said to the service manager arrives, and one that does not read holds nothing up."""

import socket

import pytest
import trio

from meshd.shell.notify import notify, notify_surely


@pytest.fixture
def manager(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        yield sock


def fill():
    count = 0
    while notify("STATUS=x"):
        count += 1
    return count


def test_lines_arrive_as_one_message(manager):
    assert notify("READY=1", "STATUS=well")
    assert manager.recv(100) == b"READY=1\nSTATUS=well"


def test_a_name_in_the_abstract_namespace_works(monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0meshd-test-notify")
        monkeypatch.setenv("NOTIFY_SOCKET", "@meshd-test-notify")
        assert notify("READY=1")
        assert sock.recv(100) == b"READY=1"


def test_a_manager_that_is_gone_or_never_was_is_nobody_to_tell(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert notify("READY=1")


async def test_a_manager_that_does_not_read_delays_ready_and_nothing_else(manager, autojump_clock, nursery):
    waiting = fill()
    nursery.start_soon(notify_surely, "READY=1")
    await trio.sleep(60)
    for _ in range(waiting):
        assert manager.recv(100) == b"STATUS=x"
    await trio.sleep(60)
    assert manager.recv(100) == b"READY=1"
