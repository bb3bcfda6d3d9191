"""Log entries in the journal's own form, so that ``journalctl MESHD_EVENT=audit MESHD_VERB=attach`` finds them; the line
that people read has the same values. By the Native Journal Protocol (systemd.io, systemd-journald.service(8)).

Must not know what is logged.
"""

import contextlib
import os
import re
import socket
import sys
from collections.abc import Mapping
from typing import Any

SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "meshd"
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "exception": 3, "critical": 2}
"""Of a level, as syslog(3) counts."""


class Entry(bytes):
    """One datagram to the journal. ``line``: what it shows."""

    line: str


def connect(environment: Mapping[str, str]) -> socket.socket | None:
    """Return a socket to the journal where standard error leads there (systemd.exec(5), $JOURNAL_STREAM), or None."""
    if not environment.get("JOURNAL_STREAM"):
        return None
    status = os.fstat(sys.stderr.fileno())
    if environment["JOURNAL_STREAM"] != f"{status.st_dev}:{status.st_ino}":
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(SOCKET)
    except OSError:
        sock.close()
        return None
    return sock


def entry(event: Mapping[str, Any]) -> Entry:
    """Return an entry of structlog's ``event``, "event" and "level" being its name and weight. The time is the
    journal's."""
    values = {key: value for key, value in event.items() if key not in ("event", "level", "timestamp")}
    said = str(event.get("event", ""))
    line = " ".join(
        [said, *(f"{key}={_plain(value)}" for key, value in values.items() if value not in ("", None))]
    )
    fields = {
        "MESSAGE": line,
        "PRIORITY": str(PRIORITIES.get(str(event.get("level")), PRIORITIES["info"])),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "MESHD_EVENT": said,
        **{f"MESHD_{_name(key)}": str(value) for key, value in values.items()},
    }
    made = Entry(b"".join(_field(name, value.encode(errors="replace")) for name, value in fields.items()))
    made.line = line
    return made


def send(sock: socket.socket, made: Entry) -> None:
    """Send an entry; what the journal does not take (one too large for a datagram, or while its queue is full) goes to
    standard error as a line."""
    try:
        sock.send(made, socket.MSG_DONTWAIT)
    except OSError:
        with contextlib.suppress(OSError):
            print(made.line, file=sys.stderr, flush=True)


def _plain(value: object) -> str:
    text = str(value)
    return repr(text) if not text or re.search(r"\s", text) else text


def _name(key: str) -> str:
    return re.sub(r"[^A-Z0-9_]", "_", key.upper())


def _field(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return b"%s\n%s%s\n" % (name.encode(), len(value).to_bytes(8, "little"), value)
    return b"%s=%s\n" % (name.encode(), value)
