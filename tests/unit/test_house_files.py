"""The files an operator meets first: configuration, unit, sysctl, Makefile, README."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from meshctl.main import COMMANDS
from meshd.__main__ import EXIT_LEFT
from meshd.config import Settings, parse

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "meshd.toml"
UNIT = ROOT / "systemd" / "meshd.service"
SOCKETS = {  # unit: FileDescriptorName=, path, mode, group (contract)
    "meshd.socket": ("api", "/run/meshd/api.sock", "0660", "meshd"),
    "meshd-cni.socket": ("cni", "/run/meshd/cni.sock", "0600", "root"),
    "meshd-docker.socket": ("docker", Settings().host.docker_plugin_socket, "0600", "root"),
}
EXPOSURE_TENTHS = "18"


def keys(text: str) -> set[str]:
    return {f"{table}.{key}" for table, said in tomllib.loads(text).items() for key in said}


def test_the_documented_configuration_is_the_default_one() -> None:
    assert parse(CONFIG.read_text(), "meshd.toml") == Settings()


def test_every_key_is_documented_and_every_documented_key_exists() -> None:
    documented = re.sub(r"(?m)^#(?=[a-z_]+ = )", "", CONFIG.read_text())
    known = {
        f"{table.name}.{key.name}"
        for table in msgspec.structs.fields(Settings)
        for key in msgspec.structs.fields(table.type)
    }
    assert keys(documented) == known
    parse(documented, "meshd.toml")


def test_the_daemon_accepts_the_documented_configuration() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "meshd", "--config", str(CONFIG), "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as `make install` would install it, with programs that exist on this machine."""
    text, replaced = re.subn(r"(?m)^Exec(Start|Reload)=\S+", rf"Exec\1={sys.executable}", UNIT.read_text())
    assert replaced == 2
    for name in SOCKETS:
        shutil.copy(UNIT.with_name(name), tmp_path)
    installed = tmp_path / "meshd.service"
    installed.write_text(text)
    return installed


def analyze(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *args], capture_output=True, text=True, check=False)


def test_systemd_finds_nothing_wrong_with_the_units(unit: Path) -> None:
    done = analyze("verify", str(unit), *(str(unit.with_name(name)) for name in SOCKETS))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SOCKETS)
def test_a_sockets_name_place_mode_and_owner_are_the_contracts(name: str) -> None:
    lines = UNIT.with_name(name).read_text().splitlines()
    descriptor, path, mode, group = SOCKETS[name]
    assert {
        f"FileDescriptorName={descriptor}",
        f"ListenStream={path}",
        f"SocketMode={mode}",
        "SocketUser=root",
        f"SocketGroup={group}",
    } <= set(lines)
    assert name == "meshd.socket" or "Service=meshd.service" in lines


def test_no_client_starts_a_daemon_that_has_left() -> None:
    lines = UNIT.read_text().splitlines()
    assert f"RestartPreventExitStatus={EXIT_LEFT}" in lines
    stop = next(line for line in lines if line.startswith("ExecStopPost="))
    assert f"!= {EXIT_LEFT} ]" in stop
    assert all(name in stop for name in SOCKETS)


def test_systemd_would_find_a_mistake_in_the_unit(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("Restart=always", "Restart=allways"))
    assert "allways" in analyze("verify", str(unit)).stderr


def test_the_units_exposure_is_low(unit: Path) -> None:
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE_TENTHS}", str(unit))
    assert done.returncode == 0, done.stdout


def test_the_unit_gives_one_capability() -> None:
    lines = UNIT.read_text().splitlines()
    assert "CapabilityBoundingSet=CAP_NET_ADMIN" in lines
    assert "AmbientCapabilities=CAP_NET_ADMIN" in lines


RUNS_PROGRAMS = re.compile(
    r"\bsubprocess\b|\bpty\b|\bos\.(system|popen|fork|forkpty|posix_spawnp?|exec\w+|spawn\w+)\b|\b(run|open)_process\b"
)


def test_the_daemon_runs_no_program_but_nft() -> None:
    running = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "meshd").rglob("*.py")
        if RUNS_PROGRAMS.search(path.read_text())
    }
    assert running == {"meshd/kernel/nfttool.py"}


def test_what_the_makefile_calls_is_there_and_executable() -> None:
    for script in (".ci/setup", ".ci/run", "systemd/install", "systemd/deb/build"):
        assert (ROOT / script).stat().st_mode & 0o111
        assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0


def test_the_makefile_helps() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert {"demo", "test", "check", "setup"} <= {
        line.split()[1] for line in done.stdout.splitlines() if line
    }


DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_links_to_exists(document: str) -> None:
    here = (ROOT / document).parent
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text())
    assert [link for link in links if not (here / link).exists()] == []


@pytest.mark.parametrize(
    "document", [one for one in DOCUMENTS if one not in ("ARCHITECTURE.md", "CHANGELOG.md")]
)
def test_every_command_that_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    named = set(re.findall(r"meshctl(?: -o json)? ([a-z]+)", text))
    assert named <= set(COMMANDS)
    targets = set(re.findall(r"`?make ([a-z-]+)", text))
    assert targets <= set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))


def test_every_file_that_the_architecture_names_exists() -> None:
    rows = re.findall(r"(?m)^\| [^|]+ \| ([^|]*\.py[^|]*) \|$", (ROOT / "ARCHITECTURE.md").read_text())
    assert len(rows) > 40
    for row in rows:
        folder = ROOT
        for name in re.findall(r"`([^`]+\.py)`", row):
            path = ROOT / name if "/" in name else folder / name
            assert path.is_file(), f"{name} in: {row}"
            folder = path.parent


@pytest.mark.parametrize("name", ["90-meshd.conf"])
def test_every_sysctl_exists_in_this_kernel(name: str) -> None:
    for line in (ROOT / "systemd" / name).read_text().splitlines():
        key, equals, value = line.partition(" = ")
        if equals and not line.startswith("#"):
            assert Path("/proc/sys", key.replace(".", "/")).exists(), key
            assert value.isdigit()
