"""meshd: the daemon's command line. Exit codes: 0 stopped as asked, 1 failed, 2 the configuration is wrong, 10 this
host left the cluster, or was forgotten (systemd does not start it again then)."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from meshd import __version__, config
from meshd.errors import ConfigError, Expelled, MeshdError
from meshd.shell import disk

DEFAULT_CONFIG = "/etc/meshd/meshd.toml"
EXIT_LEFT = 10  # RestartPreventExitStatus= in systemd/meshd.service


class Parser(argparse.ArgumentParser):
    """argparse, whose complaints are two lines like all of ours."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line and end."""
        sys.exit(_say(ConfigError(message, "meshd --help"), 2))


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, read the configuration, run the daemon."""
    parser = Parser(prog="meshd", description="container network daemon; see meshctl for the rest")
    parser.add_argument("--config", default=DEFAULT_CONFIG, metavar="FILE", help=f"default: {DEFAULT_CONFIG}")
    parser.add_argument("--check", action="store_true", help="check the configuration and stop")
    parser.add_argument("--version", action="version", version=f"meshd {__version__}")
    options = parser.parse_args(argv)
    try:
        settings = config.parse(disk.read_operators(Path(options.config)), options.config)
        if options.check:
            print(f"{options.config}: ok")
            return 0
        from meshd import daemon  # a check of the configuration needs none of it

        if daemon.main(settings, Path(options.config)):
            return EXIT_LEFT
    except ConfigError as error:
        return _say(error, 2)
    except Expelled as error:
        return _say(error, EXIT_LEFT)
    except MeshdError as error:
        return _say(error, 1)
    return 0


def _say(error: MeshdError, code: int) -> int:
    what = error.what.replace("\n", "\\n")  # a key in the operator's file may hold one
    print(f"error: {what}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
