"""``meshctl cni``: puts the CNI executable where runtimes look for it. Knows nothing of what it does (meshcni/plugin.py)."""

import importlib.util
import os
import secrets
from pathlib import Path

import click

from meshctl.errors import Failed, reason
from meshctl.group import Group
from meshctl.output import Invocation

DIRECTORY = "/opt/cni/bin"
NAME = "meshd"


@click.group(cls=Group)
def cni() -> None:
    """The plugin for container runtimes that speak CNI."""


@cni.command()
@click.option(
    "--dir", "directory", default=DIRECTORY, show_default=True, help="Where the runtime looks for plugins."
)
@click.pass_obj
def install(invocation: Invocation, directory: str) -> None:
    """Install the CNI executable meshd, in place of an older one."""
    path = put(source(), Path(directory))
    invocation.emit({"installed": str(path)}, lambda: [f"installed {path}"])


def source() -> Path:
    """Return the executable as it came with this package. Raises Failed."""
    found = importlib.util.find_spec("meshcni.plugin")
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise Failed("the CNI executable is not installed beside meshctl", "install the whole package meshd")
    return Path(found.origin)


def put(executable: Path, directory: Path) -> Path:
    """Copy it, whole or not at all; a runtime that starts it meanwhile gets the old one. Raises Failed."""
    path, draft = directory / NAME, directory / f".{NAME}.{secrets.token_hex(4)}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as stream:
                stream.write(executable.read_bytes())
                stream.flush()
                os.fchmod(descriptor, 0o755)
                os.fsync(descriptor)
            draft.rename(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        hint = (
            "run as root, or name a directory of yours with --dir"
            if isinstance(error, PermissionError)
            else ""
        )
        raise Failed(f"{path} cannot be written: {reason(error)}; nothing was changed", hint) from None
    return path
