"""meshd: the daemon's command line. Exit codes: 0 stopped as asked, 1 failed, 2 the configuration is wrong, 10 this
host left the cluster (systemd does not start it again then)."""

import argparse
import sys
from pathlib import Path

from meshd import __version__, config
from meshd.errors import ConfigError, MeshdError

DEFAULT_CONFIG = "/etc/meshd/meshd.toml"
EXIT_LEFT = 10  # RestartPreventExitStatus= in systemd/meshd.service


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, read the configuration, run the daemon."""
    parser = argparse.ArgumentParser(
        prog="meshd", description="container network daemon; see meshctl for the rest"
    )
    parser.add_argument("--config", default=DEFAULT_CONFIG, metavar="FILE", help=f"default: {DEFAULT_CONFIG}")
    parser.add_argument("--check", action="store_true", help="check the configuration and stop")
    parser.add_argument("--version", action="version", version=f"meshd {__version__}")
    options = parser.parse_args(argv)
    try:
        settings = read(Path(options.config))
        if options.check:
            print(f"{options.config}: ok")
            return 0
        from meshd import daemon  # a check of the configuration needs none of it

        if daemon.main(settings, Path(options.config)):
            return EXIT_LEFT
    except ConfigError as error:
        return _say(error, 2)
    except MeshdError as error:
        return _say(error, 1)
    return 0


def read(path: Path) -> config.Settings:
    """Read and check the file. Raises ConfigError."""
    try:
        return config.parse(path.read_text(), str(path))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file", "run: meshctl init (first host) or meshctl join TOKEN"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(
            f"{path}: cannot be read: {reason}", "the daemon's user must be able to read it"
        ) from None


def _say(error: MeshdError, code: int) -> int:
    print(f"error: {error.what}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
