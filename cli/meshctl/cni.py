"""``meshctl cni``: puts the CNI executable where runtimes look for it. Knows nothing of what it does (meshcni/plugin.py)."""

import importlib.util
import os
import secrets
import subprocess
from pathlib import Path

import click

from meshctl.errors import Failed, reason
from meshctl.group import Group
from meshctl.output import Invocation
from meshctl.params import Folder

DIRECTORY = "/opt/cni/bin"
NAME = "meshd"
PYTHON = "/usr/bin/python3"  # that of the executable's first line
BUILD = """
import marshal, sys, _frozen_importlib_external as python
text = sys.stdin.buffer.read()
code = marshal.dumps(compile(text, "meshd", "exec", optimize=2))
sys.stdout.buffer.write(FILE.format(magic=python.MAGIC_NUMBER, size=len(code)).encode() + code + text)
"""
FILE = """#!/usr/bin/python3 -IScimport sys;f=open(sys.argv[1],"rb");f.readline();exec(f.readline())
import marshal, _frozen_importlib_external as python; code = f.read({size}); \
exec(marshal.loads(code) if python.MAGIC_NUMBER == {magic!r} else compile(f.read(), "meshd", "exec")) \
# Made by meshctl cni install from cli/meshcni/plugin.py: here compiled, then its text for another Python than this one.
"""
"""The executable's head. Python reads and parses a file to its end before it runs a line of it, which is a millisecond
here, so what it is given to run is an argument: the first line's, which takes the rest as it needs it. The kernel takes
127 characters of a first line (256 from 5.1 on), and passes what follows the interpreter as one argument."""


@click.group(cls=Group)
def cni() -> None:
    """The plugin for container runtimes that speak CNI."""


@cni.command()
@click.option(
    "--dir",
    "directory",
    type=Folder(path_type=Path),
    default=DIRECTORY,
    show_default=True,
    help="Where the runtime looks for plugins.",
)
@click.pass_obj
def install(invocation: Invocation, directory: Path) -> None:
    """Install the CNI executable meshd, in place of an older one."""
    path = put(build(source()), directory)
    invocation.emit({"installed": str(path)}, lambda: [f"installed {path}"])


def source() -> Path:
    """Return the executable as it came with this package. Raises Failed."""
    found = importlib.util.find_spec("meshcni.plugin")
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise Failed("the CNI executable is not installed beside meshctl", "install the whole package meshd")
    return Path(found.origin)


def build(text: Path) -> bytes:
    """Make the executable for this machine's Python. Raises Failed."""
    script = f"FILE = {FILE!r}\n{BUILD}"
    try:
        done = subprocess.run(
            [PYTHON, "-IS", "-c", script], input=text.read_bytes(), capture_output=True, check=True
        )
    except FileNotFoundError:
        raise Failed(
            f"there is no {PYTHON}, which runs the CNI executable", "install Python 3.11 or later"
        ) from None
    except subprocess.CalledProcessError as error:
        raise Failed(
            f"{PYTHON} cannot run the CNI executable: {error.stderr.decode(errors='replace')[-200:]}"
        ) from None
    return done.stdout


def put(executable: bytes, directory: Path) -> Path:
    """Write it, whole or not at all; a runtime that starts it meanwhile gets the old one. Raises Failed."""
    path, draft = directory / NAME, directory / f".{NAME}.{secrets.token_hex(4)}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as stream:
                stream.write(executable)
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
