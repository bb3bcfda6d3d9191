"""Turns any failure of a command into ``error: WHAT``, ``hint: WHAT TO DO`` and an exit status.

click's own words differ between its versions and take three lines; these are the same everywhere.
"""

import re
import sys

import click

from meshctl.errors import EXIT_FAILED, EXIT_USAGE, CommandError, reason
from meshctl.output import ReaderGone
from meshctl.table import escaped

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_READER_GONE = 141  # 128 + SIGPIPE


def report(error: BaseException) -> int:
    """Write the lines for ``error`` to standard error; return the exit status. Re-raises what is a bug."""
    if isinstance(error, ReaderGone):
        return EXIT_READER_GONE
    if (
        isinstance(error, SystemExit) and error.code == 1
    ):  # click's, which prints help itself; no command ends so
        return EXIT_READER_GONE
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return EXIT_INTERRUPTED
    if isinstance(error, CommandError):
        say(error.what, error.hint)
        return error.exit_status
    if isinstance(error, click.UsageError):
        say(_what(error), _hint(error))
        return EXIT_USAGE
    if isinstance(error, click.ClickException):
        say(error.format_message())
        return EXIT_FAILED
    if isinstance(error, OSError):  # what no command foresaw: the system's words, and what they are about
        say(f"{error.filename}: {reason(error)}" if error.filename else reason(error))
        return EXIT_FAILED
    raise error


def say(what: str, hint: str = "") -> None:
    """Write an error, and its hint where there is one, to standard error: one line each. Lines to be put in a file
    are a hint each."""
    lines = [f"error: {_one_line(what)}", *(f"hint: {escaped(line)}" for line in hint.split("\n") if hint)]
    _write(lines)


def warn(what: str) -> None:
    """Write what went well but is not as good as it may seem to standard error: one line."""
    _write([f"warning: {_one_line(what)}"])


def _write(lines: list[str]) -> None:
    if sys.stderr is None:  # closed by the caller, who gets the exit status all the same
        return
    sys.stderr.writelines(f"{line}\n" for line in lines)
    sys.stderr.flush()


def near(word: str, known: list[str]) -> str:
    """Return the one of ``known`` that ``word`` was probably meant to be, or ""."""
    from difflib import get_close_matches  # only a mistake pays for this import

    return next(iter(get_close_matches(word, known, n=1)), "")


def _what(error: click.UsageError) -> str:
    if isinstance(error, click.NoSuchOption):
        return f"no such option: {error.option_name}"
    if isinstance(error, click.MissingParameter):
        kind = "option" if isinstance(error.param, click.Option) else "argument"
        return f"missing {kind}: {_name(error.param)}" if error.param else f"missing {kind}"
    words = error.message.strip().rstrip(".") or "no command given"
    if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and later; its message is the help text
        words = "missing command"
    words = words.replace("is not a valid integer range", "is not a whole number")
    words = re.sub(
        r"got unexpected extra arguments? \((.*)\)", r"not expected here: \1", words, flags=re.I | re.S
    )
    if isinstance(error, click.BadParameter) and error.param:
        return f"{_name(error.param)}: {words}"
    return words[:1].lower() + words[1:]


def _hint(error: click.UsageError) -> str:
    if error.ctx is None:  # click's parser does not say in which command an option lacks its value
        return "meshctl --help, or --help after the command"
    if isinstance(error, click.NoSuchOption):
        known = [name for param in error.ctx.command.get_params(error.ctx) for name in param.opts]
        if meant := near(error.option_name, known):
            return f"did you mean {meant}?"
    return f"{error.ctx.command_path} --help"


def _name(param: click.Parameter) -> str:
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return (param.metavar or param.name or "argument").upper()


def _one_line(text: str) -> str:
    return escaped(" ".join(text.split("\n")))
