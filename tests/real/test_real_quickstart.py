"""README's quickstart as it stands there, typed on two booted hosts that have nothing of meshd yet."""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from booted import ROOT, BootedHost, BootedLan, wait_for
from bootedmesh import UNIT_S, VERSION

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

SECTION = "## Two real hosts"
TYPED = re.compile(r"^    host(?P<host>\d)# (?P<command>.*?)(?: {2,}# .*)?$", re.MULTILINE)
LOOKS = ("meshctl members", "meshctl endpoint ls")  # what somebody looks at, and nothing needs
TRAFFIC = "curl"  # the command that only works once packets pass between the hosts
COMMANDS_MAX = 5


def quickstart() -> list[tuple[int, str]]:
    """Return README's lines: on which host, what."""
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index(SECTION) :]
    section = section[: section.index("\n## ")]
    return [(int(found["host"]), found["command"]) for found in TYPED.finditer(section)]


@pytest.fixture
def hosts(packages: dict[str, Path]) -> Iterator[list[BootedHost]]:
    """Two booted hosts with the package's file in root's home."""
    lan = BootedLan(2)
    try:
        for host in lan.hosts:
            host.put(packages[VERSION], "/root/")
        yield lan.hosts
    finally:
        lan.remove()


class Terminal:
    """Types lines as root in its home, with the words in capitals replaced by what earlier answers said."""

    def __init__(self, host: BootedHost) -> None:
        self.host = host
        self.left_running: list[subprocess.Popen[bytes]] = []

    def type(self, line: str, words: dict[str, str]) -> str:
        for name, value in words.items():
            line = re.sub(rf"\b{name}\b", value, line)
        if not line.endswith("&"):
            return self.host.sh(f"cd /root; {line}")
        argv = self.host.argv("bash", "-euc", f"cd /root; exec {line.removesuffix('&')}")
        nowhere = subprocess.DEVNULL
        self.left_running.append(subprocess.Popen(argv, stdin=nowhere, stdout=nowhere, stderr=nowhere))
        return ""


def test_the_readme_as_it_stands(hosts: list[BootedHost]) -> None:
    """Also counts what it takes from the package to the first packet between two hosts."""
    lines = quickstart()
    assert {host for host, _ in lines} == {1, 2}
    terminals = [Terminal(host) for host in hosts]
    words: dict[str, str] = {}
    needed: list[tuple[int, str]] = []
    begun = time.monotonic()
    until_traffic = 0.0
    for number, line in lines:
        if "PID" in line and "PID" not in words:
            words["PID"] = sleeper(hosts[number - 1])
        if not until_traffic and not line.startswith(LOOKS):
            needed.append((number, " ".join(line.split()[: 3 if "network" in line else 2])))
        said = terminals[number - 1].type(line, words)
        if line.startswith("meshctl init"):
            words["TOKEN"] = re.findall(r"meshctl join (\S+)", said)[0]
        if line.startswith("meshctl members"):
            assert [row.split()[0] for row in said.splitlines()[1:]] == ["host1", "host2"]
        if line.startswith("meshctl endpoint ls"):
            words["ADDRESS"] = re.findall(r" web +(\d+\.\d+\.\d+\.\d+)/", said)[0]
        if "--name web" in line:
            wait_for("web to serve", lambda: knows(hosts[1], "web") and serves(hosts[0]), UNIT_S)
        if TRAFFIC in line:
            assert "Directory listing for /" in said
            until_traffic = time.monotonic() - begun
        if "--name db" in line:
            assert knows(hosts[0], "db")
    wait_for("db to be detached everywhere", lambda: not knows(hosts[0], "db"), UNIT_S)
    for terminal in terminals:
        for process in terminal.left_running:
            process.kill()
            process.wait()
    assert until_traffic
    for host in (1, 2):
        assert len([1 for number, _ in needed if number == host]) <= COMMANDS_MAX
    assert len({command for _, command in needed}) <= COMMANDS_MAX
    print(f"from the package to the first answer: {len(needed)} commands, {until_traffic:.1f} s")


def knows(host: BootedHost, name: str) -> bool:
    return re.search(rf" {name} ", host.sh("meshctl endpoint ls")) is not None


def serves(host: BootedHost) -> bool:
    """Say whether the process called python3, which is in a namespace of its own, listens."""
    return ":8000" in host.sh("nsenter -t $(pgrep -f '^python3 -m http.server') --net ss -Hltn", check=False)


def sleeper(host: BootedHost) -> str:
    """Start a process in a namespace of its own, as a container's would be; return its process id."""
    return host.sh("setsid unshare --net sleep infinity >/dev/null 2>&1 & echo $!").strip()
