"""Writes the files under /etc/meshd: both or neither, complete or not at all, never over existing ones.

Each is written beside its place and linked there; link(2), unlike rename(2), refuses to replace. Knows nothing
of what is in them.
"""

import contextlib
import os
import pwd
import secrets
from pathlib import Path
from typing import NamedTuple

from meshctl.errors import Failed, reason

USER = "meshd"  # whom the files belong to where the package has made that user
DIRECTORY_MODE = 0o750


class NewFile(NamedTuple):
    """A file to be: name within its directory, permission bits, content."""

    name: str
    mode: int
    text: str


def write_new(directory: Path, files: list[NewFile]) -> None:
    """Write all ``files`` into ``directory``, which is made where it is missing; on any failure, none is left.

    Raises Failed: what could not be written and why, nothing changed.
    """
    made = False
    placed: list[Path] = []
    try:
        made = not directory.exists()
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        if made:
            _give_away(directory)
        for file in files:
            _place(directory, file)
            placed.append(directory / file.name)
        _sync(directory)
    except OSError as error:
        for path in placed:
            path.unlink(missing_ok=True)
        if made:
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise _explain(error, directory) from None


def _place(directory: Path, file: NewFile) -> None:
    draft = directory / f".{file.name}.{secrets.token_hex(4)}"
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(file.text)
            stream.flush()
            os.fchmod(descriptor, file.mode)
            os.fsync(descriptor)
        _give_away(draft)
        os.link(draft, directory / file.name)
    finally:
        draft.unlink(missing_ok=True)


def _give_away(path: Path) -> None:
    """Make ``path`` the daemon's, where there is such a user and we may."""
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        return
    if os.geteuid() == 0:
        os.chown(path, user.pw_uid, user.pw_gid)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: OSError, directory: Path) -> Failed:
    if isinstance(error, FileExistsError) and (path := error.filename2):  # only link(2) has two names
        return Failed(f"{path} exists already; nothing was changed", EXISTS_HINT)
    hint = (
        "run as root, or name a directory of yours with --config-dir"
        if isinstance(error, PermissionError)
        else ""
    )
    return Failed(f"{directory} cannot be written: {reason(error)}; nothing was changed", hint)


EXISTS_HINT = (
    "this host is set up already; to begin anew, stop meshd and remove its meshd.toml and keyring first"
)
