"""Real daemons for tests: one lab a module, endpoints that go again, and an empty diff after each test."""

import itertools
import shutil
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from labtools import Attach, Attached, NewNetwork

from meshctl.labcluster import Lab
from meshctl.labdaemon import tail
from meshctl.labhost import Host

TOOLS = ("ip", "bridge", "nft", "ping", "tcpdump", "setpriv")


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    if missing:
        pytest.fail(f"not installed: {', '.join(missing)}; make setup installs them")


@pytest.fixture(scope="module")
def lab3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three hosts, one cluster. Its folder is closed to other users, as a clone in somebody's home is."""
    lab = Lab.up(3, tmp_path_factory.mktemp("lab3") / "lab")
    yield lab
    lab.down()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where a test of a lab fails, show the end of each daemon's log."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab3")
    if report.failed and isinstance(lab, Lab):
        for host in lab.hosts:
            report.sections.append((f"log of {host.name}", tail(host.log, 40)))
    return report


@pytest.fixture(autouse=True)
def _every_kernel_is_as_desired_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "lab3" in request.fixturenames:
        for host in request.getfixturevalue("lab3").hosts:
            if host.alive:
                host.wait_in_sync()


_numbers = itertools.count(1)


@pytest.fixture
def attach(lab3: Lab) -> Iterator[Attach]:
    """Attach a fresh namespace: ``attach(host, network, *flags)``; detached again after the test."""
    made: list[tuple[str, Attached]] = []

    def attach_one(host: Host, network: str, *flags: str) -> Attached:
        name = f"e{next(_numbers)}"
        ns = lab3.container(name)
        naming = () if "--name" in flags else ("--name", name)
        endpoint = host.json("attach", network, "--netns", f"/run/netns/{ns}", *naming, *flags)
        attached = Attached(host, ns, endpoint)
        made.append((network, attached))
        return attached

    yield attach_one
    for host in lab3.hosts:
        if host.alive:
            host.wait_in_sync()

    def detach(network: str, attached: Attached) -> None:
        if attached.host.alive:
            attached.host.json("detach", network, "--netns", attached.path)

    with ThreadPoolExecutor() as pool:
        list(pool.map(detach, *zip(*made, strict=True)) if made else ())


@pytest.fixture
def new_network(lab3: Lab) -> Iterator[NewNetwork]:
    """Create a network on a host, wait until all live hosts know it; removed after the test.

    ``new_network(*flags, host=..., name=...)`` returns its name.
    """
    made: list[tuple[Host, str]] = []

    def create(*flags: str, host: Host | None = None, name: str = "") -> str:
        creator = host or lab3.hosts[0]
        name = name or f"net{next(_numbers)}"
        creator.json("network", "create", name, *flags)
        made.append((creator, name))
        everywhere = lab3.hosts if "bridge" not in flags else [creator]
        for other in everywhere:
            if other.alive:
                other.wait_network(name)
        return name

    yield create
    for creator, name in made:
        if creator.alive:
            creator.meshctl("network", "rm", name)


@pytest.fixture
def overlay(new_network: NewNetwork) -> str:
    """A dual-stack overlay."""
    return new_network("--ipv6")


@pytest.fixture
def trio_of_endpoints(lab3: Lab, overlay: str, attach: Attach) -> list[Attached]:
    """One endpoint on each host of one overlay, whose rows all hosts have."""
    with ThreadPoolExecutor() as pool:
        attached = list(pool.map(lambda host: attach(host, overlay), lab3.hosts))
    for host in lab3.hosts:
        host.wait_rows(*(one.mac for one in attached))
    return attached
