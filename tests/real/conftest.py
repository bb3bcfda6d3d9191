"""Real runtimes on labs, each with its own state folders in namespaces of its own, and the table of what each client
did. `make test` runs what is not ``long``; `make test-real` all."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from bootedmesh import NEXT, VERSION, build
from realdocker import Engine
from realtools import Image

from meshctl.labcluster import Lab
from meshctl.labdaemon import tail

ALL = os.environ.get("MESHD_REAL") == "1"
VERDICTS = {"skipped": "skipped", "passed": "ok", "failed": "FAILED", "error": "FAILED"}
"""How pytest calls an outcome -> what the table says; of several the last one here counts."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note what ``@pytest.mark.conforms(CLIENT, OPERATION, ...)`` is about; where it failed show each daemon's log."""
    report = yield
    for mark in reversed(list(item.iter_markers("conforms"))):
        client, *operations = mark.args
        report.user_properties += [("conforms", (client, operation)) for operation in operations]
    for lab in {
        id(lab): lab for lab in getattr(item, "funcargs", {}).values() if isinstance(lab, Lab)
    }.values():
        if report.failed:
            for host in lab.hosts:
                report.sections.append((f"log of {host.name}", tail(host.log, 40)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table: operations by clients."""
    found: dict[tuple[str, str], str] = {}
    for outcome, verdict in VERDICTS.items():
        for report in terminalreporter.stats.get(outcome, []):
            for key, value in getattr(report, "user_properties", ()):
                if key == "conforms":
                    found[value[0], value[1]] = verdict
    if not found or not ALL:
        return
    clients, operations = (list(dict.fromkeys(key[place] for key in found)) for place in (0, 1))
    widths = [max(len(client), len("skipped")) for client in clients]
    first = max(map(len, operations))
    terminalreporter.section("conformance")
    head = "  ".join(client.ljust(width) for client, width in zip(clients, widths, strict=True))
    terminalreporter.write_line(f"{'':{first}}  {head}".rstrip())
    for operation in operations:
        cells = [
            found.get((client, operation), "").ljust(w) for client, w in zip(clients, widths, strict=True)
        ]
        terminalreporter.write_line(f"{operation:{first}}  {'  '.join(cells)}".rstrip())


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """busybox, made here: no registry is asked."""
    return Image.make(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts, one cluster."""
    made = Lab.up(2, tmp_path_factory.mktemp("real") / "lab")
    yield made
    made.down()


@pytest.fixture(scope="module")
def real_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three hosts, one cluster."""
    lab = Lab.up(3, tmp_path_factory.mktemp("real") / "lab")
    yield lab
    lab.down()


@pytest.fixture(scope="module")
def engines(real_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Engine]]:
    """A Docker engine on each host."""
    folder: Path = tmp_path_factory.mktemp("docker")
    made = [Engine(host, folder / host.name) for host in real_lab.hosts]
    try:
        for engine in made:
            engine.up()
        yield made
    finally:
        for engine in made:
            engine.down()


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The Debian package of this checkout, as two versions."""
    folder = tmp_path_factory.mktemp("deb")
    return {version: build(version, folder) for version in (VERSION, NEXT)}
