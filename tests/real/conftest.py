"""Real runtimes on labs, and the table of what each did: client x operation, printed at the end of a run."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from realdocker import Engine

from meshctl.labcluster import Lab
from meshctl.labdaemon import tail

_conformance: dict[tuple[str, str], str] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note what ``@pytest.mark.conforms(CLIENT, OPERATION, ...)`` came to; where it failed show each daemon's log."""
    report = yield
    for mark in item.iter_markers("conforms"):
        client, *operations = mark.args
        for operation in operations:
            if report.failed:
                _conformance[client, operation] = "FAILED"
            elif report.when == "call":
                _conformance.setdefault((client, operation), "ok" if report.passed else "skipped")
    lab = getattr(item, "funcargs", {}).get("real_lab")
    if report.failed and isinstance(lab, Lab):
        for host in lab.hosts:
            report.sections.append((f"log of {host.name}", tail(host.log, 40)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if not _conformance:
        return
    terminalreporter.section("conformance")
    width = max(len(operation) for _, operation in _conformance)
    for client in sorted({client for client, _ in _conformance}):
        for (of, operation), verdict in _conformance.items():
            if of == client:
                terminalreporter.write_line(f"{client:12} {operation:{width}} {verdict}")


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
