"""meshd installed by pip on a host booted by systemd: docs/install.md's lines, up, down and gone."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from booted import ROOT, BootedHost, BootedLan, wait_for
from bootedmesh import UNIT_S, ask, main_pid, wait_in_sync, wait_ready

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

WHEELS = "/root/wheels"
SECTION = "## By pip"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[BootedHost]:
    """A booted host with Debian's python3-venv, and in its root's home the wheels of meshd and what it needs."""
    wheels = tmp_path / "wheels"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "wheel", "--wheel-dir", str(wheels), str(ROOT)],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lan = BootedLan(1, ["python3-venv"])
    try:
        (only,) = lan.hosts
        only.sh(f"mkdir {WHEELS}")
        for wheel in wheels.iterdir():
            only.put(wheel, WHEELS)
        yield only
    finally:
        lan.remove()


def documented() -> list[str]:
    """Return docs/install.md's lines."""
    text = (ROOT / "docs" / "install.md").read_text()
    block = re.search(r"(?m)(^    .*\n)+", text[text.index(SECTION) :])
    assert block is not None
    return [re.sub(r" {2,}#.*", "", line.strip()) for line in block[0].splitlines()]


def test_what_pip_installs_is_a_host_of_systemds_and_goes_again(host: BootedHost) -> None:
    lines = documented()
    assert lines[-1] == "meshctl install"
    for line in lines:  # no registry is asked from there
        host.sh(f"export PIP_NO_INDEX=1 PIP_FIND_LINKS={WHEELS}; {line}")
    host.run("meshctl", "init")
    wait_ready(host)
    wait_in_sync(host)
    assert host.sh("systemctl is-enabled meshd.service meshd.socket").split() == ["enabled", "enabled"]
    assert host.sh("sysctl -n net.ipv4.ip_forward").strip() == "1"
    assert f"Uid:\t{host.sh('id -u meshd').strip()}\t" in host.sh(f"cat /proc/{main_pid(host)}/status")

    host.power_off()
    host.boot()
    wait_ready(host)

    said = host.run("meshctl", "uninstall").stdout
    assert "/etc/meshd, /var/lib/meshd and the user meshd stay" in said
    wait_for("the daemon to end", lambda: host.run("pgrep", "-u", "meshd", check=False).stdout == "", UNIT_S)
    assert host.sh("find /usr/local/lib /etc/systemd -name '*meshd*'") == ""
    assert host.run("systemctl", "cat", "meshd.service", check=False).returncode != 0
    assert ask(host, "status") is None

    host.sh("meshctl install; systemctl enable --now meshd")  # with the settings that stayed
    wait_ready(host)
