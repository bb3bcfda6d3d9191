"""What all tests share: marks by folder, seeds of simulations, hypothesis profiles, what needs root."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

SOAK = os.environ.get("MESHD_SOAK") == "1"
SEEDS = 5
SOAK_SEEDS = 200
SOAK_EXAMPLES = 2000

ROOT_FOLDERS = {"lab": "lab", "kernel": "kernel"}
"""Folder of tests that need root -> their mark."""

# No deadline: a busy machine is no failure. The same examples every run: a red test stays red.
settings.register_profile(
    "meshd", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "soak", parent=settings.get_profile("meshd"), derandomize=False, max_examples=SOAK_EXAMPLES
)
settings.load_profile("soak" if SOAK else "meshd")


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
    for item in items:
        folder = item.path.relative_to(here).parts[0]
        if folder in ROOT_FOLDERS:
            item.add_marker(ROOT_FOLDERS[folder])
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root: it makes network namespaces"))
