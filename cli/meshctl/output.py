"""What goes to standard output. With ``-o json`` that is one JSON document, or one a line for a stream, and
nothing else; with ``-o table`` lines for people. Knows no command.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal

from meshctl.errors import Failed, reason

Format = Literal["table", "json"]
FORMATS: tuple[Format, ...] = ("table", "json")


class Invocation:
    """What holds for the whole command line: ``socket`` (path of api.sock) and ``output``. It is click's
    ``ctx.obj``; ``-o`` after the subcommand changes ``output``.
    """

    def __init__(self, socket: str, output: Format = "table") -> None:
        self.socket = socket
        self.output = output

    def emit(self, document: Any, lines: Callable[[], Iterable[str]]) -> None:
        """Print ``document`` as JSON, or what ``lines()`` returns, and make sure that it got out.

        Raises Failed where standard output cannot take it, ReaderGone where nobody reads it any more.
        """
        text = json.dumps(document) if self.output == "json" else "\n".join(lines())
        if text:
            write(text + "\n")


class ReaderGone(Exception):  # not an error: `meshctl events | head` ends so
    """The other end of the pipe on standard output was closed."""


def write(text: str) -> None:
    """Write and flush. Raises as ``Invocation.emit``."""
    if sys.stdout is None:  # closed by the caller: `meshctl members >&-`
        raise Failed("standard output cannot be written: it is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_the_rest()
        raise ReaderGone from None
    except OSError as error:
        _discard_the_rest()
        raise Failed(f"standard output cannot be written: {reason(error)}") from None


def _discard_the_rest() -> None:
    """Keep the interpreter from flushing what is left to the broken descriptor once more at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
