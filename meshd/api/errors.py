"""What an error looks like to a program at the socket: status by the error's code, body
``{"error","hint","code"}``. Knows no request and no cluster.
"""

import msgspec

from meshd.errors import MeshdError

STATUS: dict[str, int] = {
    "bad-request": 400,
    "forbidden": 403,
    "not-found": 404,
    "method": 405,
    "timeout": 408,
    "conflict": 409,
    "too-large": 413,
    "failed": 500,
    "kernel": 500,
    "unavailable": 503,
    "busy": 503,
}
"""HTTP status of an error's ``code``; codes that are not here are 500."""


class TooLarge(MeshdError):
    """The request is larger than config.API_BODY_MAX_BYTES. Nothing was changed."""

    code = "too-large"


class TimedOut(MeshdError):
    """The client did not send its request in time. Nothing was changed."""

    code = "timeout"


class WrongMethod(MeshdError):
    """The path exists, but not with this method. ``allowed``: those it has. Nothing was changed."""

    code = "method"

    def __init__(self, what: str, allowed: tuple[str, ...]) -> None:
        super().__init__(what, f"allowed: {', '.join(allowed)}")
        self.allowed = allowed


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON of every error answer. ``lines``: commands or lines of a file that the hint speaks of, if any."""

    error: str
    hint: str
    code: str
    lines: list[str] = []


def status_of(error: MeshdError) -> int:
    """Return the HTTP status of an error."""
    return STATUS.get(error.code, 500)


def body_of(error: MeshdError) -> bytes:
    """Return the JSON of an error, one line."""
    said = ErrorBody(_line(error.what), _line(error.hint), error.code, [_line(line) for line in error.lines])
    return msgspec.json.encode(said) + b"\n"


def _line(text: str) -> str:
    """Keep a message to one line, whatever words a kernel or a peer put into it."""
    return " ".join(text.split())
