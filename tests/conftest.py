"""What all tests share: marks by folder, seeds of simulations, hypothesis profiles, what needs root."""

import os
import secrets
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from meshctl.labdaemon import View

SOAK = os.environ.get("MESHD_SOAK") == "1"
REAL = os.environ.get("MESHD_REAL") == "1"
SEEDS = 5
SOAK_SEEDS = 200
SOAK_EXAMPLES = 2000

ROOT_FOLDERS = {"lab": "lab", "kernel": "kernel", "real": "real"}
"""Folder of tests that need root -> their mark."""

# No deadline: a busy machine is no failure. The same examples every run: a red test stays red.
settings.register_profile(
    "meshd", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "soak", parent=settings.get_profile("meshd"), derandomize=False, max_examples=SOAK_EXAMPLES
)
settings.load_profile("soak" if SOAK else "meshd")

os.umask(0o022)  # the lab's daemons have a user of their own, whatever who runs the tests keeps to himself

# Who runs the tests under nohup, or in a script's background, has these ignored, and so would every process started
# here: a shell cannot trap what it was started to ignore, and a container that is interrupted would go on.
for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(ignored) == signal.SIG_IGN:
        signal.signal(ignored, signal.default_int_handler if ignored == signal.SIGINT else signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seeds",
        default=f"1-{SOAK_SEEDS if SOAK else SEEDS}",
        help="what tests with a `seed` argument run with: N, or FIRST-LAST (MESHD_SOAK=1 takes many)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    own = any("seed" in str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize"))
    if "seed" in metafunc.fixturenames and not own:
        first, _, last = metafunc.config.getoption("--seeds").partition("-")
        metafunc.parametrize("seed", range(int(first), int(last or first) + 1))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    if not (REAL or SOAK):  # minutes each, or packages that `make setup` does not install
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    for item in items:
        folder = item.path.relative_to(here).parts[0]
        if folder in ROOT_FOLDERS:
            item.add_marker(ROOT_FOLDERS[folder])
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root: it makes network namespaces"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the isolation matrix, whatever came of it (lab/isolation.py)."""
    for reports in list(terminalreporter.stats.values()):
        for report in reports:
            for name, lines in getattr(report, "user_properties", ()):
                if name == "isolation" and report.when == "call":
                    terminalreporter.section(
                        "isolation matrix: who reaches whom, on one host and across hosts"
                    )
                    terminalreporter.write("\n".join(lines) + "\n")


class Opened:
    """This checkout and its Python as another user can use them, also where that user cannot reach it (a clone made
    under umask 077): by bind mounts in a mount namespace of the command's own."""

    ROOT = Path(__file__).resolve().parent.parent
    TREES = (".venv", "meshd", "cli", "tests")
    BIND = ('while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done; shift; exec "$@"',)

    def __init__(self, view: View) -> None:
        seen = {self.ROOT / tree: view.of(self.ROOT / tree, tree) for tree in self.TREES}
        self.mounts = [str(path) for pair in seen.items() if pair[0] != pair[1] for path in pair]
        self.path = seen[self.ROOT / "meshd"].parent

    def argv(self, become: Sequence[str], *args: str) -> list[str]:
        """Return the command that runs our Python with ``args`` after ``become`` (setpriv and its flags)."""
        python = self.path / Path(sys.executable).relative_to(self.ROOT)
        modules = f"PYTHONPATH={self.path}:{self.path}/cli"
        command = [*become, "env", modules, "PYTHONDONTWRITEBYTECODE=1", str(python), *args]
        if not self.mounts:
            return command
        script = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", *self.BIND, "sh"]
        return [*script, *self.mounts, "--", *command]


@pytest.fixture(scope="session")
def opened() -> Iterator[Opened]:
    view = View(f"tests-{secrets.token_hex(3)}")
    yield Opened(view)
    view.remove()
