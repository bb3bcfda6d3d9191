"""How a command can fail, and with which exit status. Knows neither click nor HTTP: report.py turns any failure
into lines, client.py turns the daemon's answers into these.

Exit statuses are the contract's: 0 done, 1 refused or failed, 2 wrong usage, 3 daemon not reachable.
"""

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3


class CommandError(Exception):
    """Base of every failure that meshctl reports on purpose.

    ``what``: one line, lower case, without a trailing stop: what is wrong and what was left unchanged.
    ``hint``: one line, what to do next, or "".
    """

    exit_status = EXIT_FAILED

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


class Failed(CommandError):
    """It was refused, by the daemon, the kernel or this host's files, or it did not work.

    ``code`` and ``status`` are the daemon's (``"not-found"``, 404) where the daemon refused, else "" and 0.
    """

    def __init__(self, what: str, hint: str = "", *, code: str = "", status: int = 0) -> None:
        super().__init__(what, hint)
        self.code = code
        self.status = status


class WrongUsage(CommandError):
    """The command line itself cannot be meant. Nothing was tried."""

    exit_status = EXIT_USAGE


class Unreachable(CommandError):
    """The daemon does not answer on its socket."""

    exit_status = EXIT_UNREACHABLE


def reason(error: OSError) -> str:
    """Return the system's own words for ``error``, as they fit into one of our lines."""
    words = error.strerror or str(error) or type(error).__name__
    return words if words[1:2].isupper() else words[:1].lower() + words[1:]
