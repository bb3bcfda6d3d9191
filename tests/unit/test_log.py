"""What the daemon's log looks like to the journal: read back by a socket in the journal's place."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from meshd import journald

ROOT = Path(__file__).parents[2]


def fields(datagram: bytes) -> dict[str, str]:
    """Read a datagram as the journal does (Native Journal Protocol)."""
    found: dict[str, str] = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
        found[name.decode()] = value.decode()
        datagram = rest
    return found


def test_an_entry_has_the_values_as_fields_and_in_its_line() -> None:
    made = journald.entry(
        {"event": "audit", "level": "warning", "timestamp": "t", "verb": "attach", "error": "", "what-now": "a b"}
    )  # fmt: skip
    assert made.line == "audit verb=attach what-now='a b'"
    assert fields(made) == {
        "MESSAGE": made.line, "PRIORITY": "4", "SYSLOG_IDENTIFIER": "meshd", "MESHD_EVENT": "audit", "MESHD_VERB": "attach",
        "MESHD_ERROR": "", "MESHD_WHAT_NOW": "a b",
    }  # fmt: skip


def test_a_value_of_many_lines_stays_one_value() -> None:
    made = journald.entry({"event": "e", "exception": "one\nPRIORITY=0\n", "level": "error"})
    assert fields(made)["MESHD_EXCEPTION"] == "one\nPRIORITY=0\n"
    assert fields(made)["PRIORITY"] == "3"


PROGRAM = """
import os, sys
from meshd import config, journald, log
status = os.fstat(2)
os.environ["JOURNAL_STREAM"] = sys.argv[2] or f"{status.st_dev}:{status.st_ino}"
journald.SOCKET = sys.argv[1]
log.configure(config.LogSettings())
import structlog
structlog.get_logger("meshd").info("hello", who="world")
structlog.get_logger("meshd").info("big", what="x" * 1_000_000)
"""


@pytest.mark.parametrize("stream, at_journal", [("", True), ("1:2", False)])
def test_only_where_standard_error_is_the_journal_do_entries_go_there(
    tmp_path: Path, stream: str, at_journal: bool
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as journal:
        journal.bind(str(tmp_path / "socket"))
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "socket"), stream], cwd=ROOT, capture_output=True, text=True, check=True
        )  # fmt: skip
        if at_journal:
            assert fields(journal.recv(10_000))["MESHD_WHO"] == "world"
            assert done.stderr.startswith("big what=xxx")  # not lost, though it fits no datagram
        else:
            assert '"who": "world"' in done.stderr
            with pytest.raises(BlockingIOError):
                journal.recv(1)
