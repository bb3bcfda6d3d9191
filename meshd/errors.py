"""Whose fault an error is.

Every error that can reach a person says four things: what is wrong, whose fault it is, what was left
unchanged and what to do next. The class says whose fault; ``what`` says what is wrong and what was left
unchanged; ``hint`` says what to do. No class here knows HTTP or exit codes: ``api/errors.py`` maps ``code``.
"""

from collections.abc import Sequence


class MeshdError(Exception):
    """Base of every error that meshd itself raises on purpose.

    ``what``: one line for a person, without a trailing full stop.
    ``hint``: what to do next, or ``""``; ``lines``: commands or lines of a file that it speaks of.
    ``code``: a stable word for programs, kebab-case.
    """

    code = "failed"

    def __init__(
        self, what: str, hint: str = "", *, code: str | None = None, lines: Sequence[str] = ()
    ) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.lines = lines
        if code is not None:
            self.code = code


class BadRequest(MeshdError):
    """The caller asked for something impossible or malformed. Nothing was changed."""

    code = "bad-request"


class NotFound(MeshdError):
    """The caller named something that does not exist. Nothing was changed."""

    code = "not-found"


class Conflict(MeshdError):
    """The request contradicts what already exists. Nothing was changed."""

    code = "conflict"


class Unavailable(MeshdError):
    """The request is sound but cannot be met now (space, peers, disk). Nothing was changed; retry later."""

    code = "unavailable"


class Forbidden(MeshdError):
    """The caller may not do this. Nothing was changed."""

    code = "forbidden"


class ConfigError(MeshdError):
    """The operator's file is wrong: file, key, what is wrong, what is allowed. Exit code 2."""

    code = "config"


class Expelled(MeshdError):
    """The cluster has forgotten this host. Nothing was started."""

    code = "forgotten"


class PeerError(MeshdError):
    """A peer sent something that cannot be right. The message is dropped and counted, never obeyed."""

    code = "peer"


class StateError(MeshdError):
    """What is on disk cannot be read as it should be. The file is kept for inspection, never overwritten."""

    code = "state"


class KernelError(MeshdError):
    """The kernel refused, in its own words.

    ``errno``: positive errno. ``words``: the kernel's extended acknowledgement or strerror.
    """

    code = "kernel"

    def __init__(self, what: str, hint: str = "", *, errno: int = 0, words: str = "") -> None:
        super().__init__(f"{what}: {words}" if words else what, hint)
        self.errno = errno
        self.words = words
