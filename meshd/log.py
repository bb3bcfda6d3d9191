"""How the daemon logs: structured, to standard error; console on a terminal, JSON otherwise."""

import logging
import sys

import structlog

from meshd.config import LogSettings

_LEVELS = logging.getLevelNamesMapping()


class _Output:
    """The last two processors of every line: what is below the level is dropped, the rest is written in the format.
    Both may change while loggers that were handed out go on being used."""

    def __init__(self) -> None:
        self.level = logging.INFO
        self.render: structlog.typing.Processor = structlog.processors.JSONRenderer()

    def use(self, settings: LogSettings) -> None:
        """Log as ``settings`` say from now on."""
        self.level = _LEVELS[settings.level.upper()]
        terminal = sys.stderr.isatty()
        console = settings.format == "console" or (settings.format == "auto" and terminal)
        self.render = (
            structlog.dev.ConsoleRenderer(colors=terminal) if console else structlog.processors.JSONRenderer()
        )

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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
