"""How the daemon logs: structured, to standard error: console on a terminal, the journal's own fields where it leads
to the journal, JSON otherwise."""

import logging
import os
import socket
import sys

import structlog

from meshd import journald
from meshd.config import LogSettings

_LEVELS = logging.getLevelNamesMapping()


class _Output:
    """The last two processors of every line: what is below the level is dropped, the rest is written in the format.
    Both may change while loggers that were handed out go on being used."""

    def __init__(self) -> None:
        self.level = logging.INFO
        self.render: structlog.typing.Processor = structlog.processors.JSONRenderer()
        self.journal: socket.socket | None = None

    def use(self, settings: LogSettings) -> None:
        """Log as ``settings`` say from now on."""
        self.level = _LEVELS[settings.level.upper()]
        terminal = sys.stderr.isatty()
        if settings.format == "auto" and self.journal is None:
            self.journal = journald.connect(os.environ)
        console = settings.format == "console" or (settings.format == "auto" and terminal)
        if console:
            self.render = structlog.dev.ConsoleRenderer(colors=terminal)
        elif settings.format == "auto" and self.journal is not None:
            self.render = lambda _logger, _method, line: ((journald.entry(line),), {})
        else:
            self.render = structlog.processors.JSONRenderer()

    def drop(
        self, logger: structlog.typing.WrappedLogger, method: str, line: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        """Let a line pass that the level lets pass."""
        if _LEVELS.get(method.upper(), logging.CRITICAL) < self.level:
            raise structlog.DropEvent
        return line

    def write(
        self, logger: structlog.typing.WrappedLogger, method: str, line: structlog.typing.EventDict
    ) -> structlog.typing.ProcessorReturnValue:
        """Give a line its form."""
        return self.render(logger, method, line)

    def msg(self, made: str | journald.Entry) -> None:
        """Put out what ``write`` returned: this object is the logger below all others."""
        if isinstance(made, journald.Entry) and self.journal is not None:
            journald.send(self.journal, made)
        else:
            print(made, file=sys.stderr, flush=True)

    debug = info = warning = error = exception = critical = msg


_output = _Output()


def configure(settings: LogSettings) -> None:
    """Set structlog up for this process, or, called again, have it follow changed settings."""
    _output.use(settings)
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            _output.drop,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _output.write,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=lambda *_: _output,
        cache_logger_on_first_use=True,
    )
