"""Reads and writes whole files, the operator's and those of state_dir, and says what can be done where that does
not work. Decides nothing about what is in them; journal.py appends to its file itself.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from meshd.errors import ConfigError, StateError

FULL = "free space on its file system, then start meshd again"
HINTS: dict[int, str] = {
    errno.EACCES: "give state_dir and all in it to the daemon's user, as the unit does",
    errno.EPERM: "give state_dir and all in it to the daemon's user, as the unit does",
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EROFS: "state_dir must be on a file system that can be written",
    errno.EISDIR: "a directory stands where meshd keeps a file: move it away",
    errno.EEXIST: "a file stands where state_dir should be: move it away, or set [host] state_dir",
    errno.ENOTDIR: "a file stands where state_dir should be: move it away, or set [host] state_dir",
    errno.EIO: "the disk does not give what it holds: see dmesg, and replace or repair it",
}
"""What to do, by errno."""


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn an OSError into a StateError: the file it names or else ``path``, the system's words, what to do."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename or path}: cannot be used: {error.strerror or error}; nothing was started"
        raise StateError(what, HINTS.get(error.errno or 0, "")) from None


def read(path: Path) -> bytes | None:
    """Return a file's content; None where there is none. Raises StateError."""
    with refusals(path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def read_operators(path: Path) -> str:
    """Return the text of a file that the operator wrote; a byte order mark is no part of it. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        what, hint = "no such file", "run: meshctl init (first host) or meshctl join TOKEN"
    except UnicodeDecodeError:
        what, hint = (
            "cannot be read: not UTF-8 text",
            "write it anew; an editor may have saved it as something else",
        )
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        hint = "" if isinstance(error, IsADirectoryError) else "the daemon's user must be able to read it"
    raise ConfigError(f"{path}: {what}", hint)


def write(path: Path, text: str) -> None:
    """Put ``text`` at ``path``, mode 0600: all of it, or what was there before. Raises StateError."""
    temporary = path.with_name(f"{path.name}.tmp")
    with refusals(path):
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
