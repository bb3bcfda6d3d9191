"""What a command costs before it does anything: which modules it imports. A list, not a time."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CLI = Path(__file__).parents[3] / "cli"
COSTLY = {
    "asyncio", "concurrent.futures", "ctypes", "dataclasses", "difflib", "importlib.metadata", "logging", "meshctl.attach",
    "meshctl.lab", "meshctl.netlink", "meshctl.netns", "meshctl.network", "meshctl.process", "meshctl.run",
    "meshctl.setup", "meshd", "msgspec", "pathlib", "rich", "subprocess", "tempfile", "trio", "unittest",
}  # fmt: skip


PROGRAM = """
import sys
before = set(sys.modules)
from meshctl.main import main
try:
    main()
finally:
    print(*(set(sys.modules) - before), file=sys.stderr)
"""


def imported(*args: str) -> set[str]:
    """Return the modules that a command line loads, beyond what the bare interpreter has."""
    done = run([sys.executable, "-c", PROGRAM, *args])
    return set(done.stderr.splitlines()[-1].split())


def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": {"PYTHONPATH": str(CLI)}, **kwargs}
    return subprocess.run(command, text=True, check=False, **kwargs)


@pytest.mark.parametrize("command", ["members", "status"])
def test_a_question_imports_nothing_but_click_the_client_and_itself(command):
    found = imported("--socket", "/nonexistent/api.sock", command)
    assert {"click", "http.client", "meshctl.cluster"} <= found
    assert found & COSTLY == set()


def test_help_imports_no_command():
    found = {name for name in imported("--help") if name.startswith("meshctl")}
    assert found == {
        f"meshctl.{name}" for name in ("errors", "group", "main", "output", "report", "table")
    } | {"meshctl"}


def test_help_does_not_need_the_network_s_modules():
    assert imported("--help") & {"http.client", "socket", "ssl"} == set()


VERSION = [sys.executable, "-m", "meshctl.main", "-o", "json", "version"]


def test_the_command_runs_where_the_daemon_is_not_installed():
    program = "import sys; sys.modules['meshd'] = None; from meshctl.main import main; main()"
    done = run([sys.executable, "-c", program, *VERSION[3:]])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", [VERSION, [*VERSION[:3], "--help"]])
def test_a_reader_that_went_away_ends_the_command_without_a_word(command):
    read, write = os.pipe()
    os.close(read)
    try:
        done = run(command, stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_under_standard_output_is_an_error():
    with open("/dev/full", "w") as full:
        done = run(VERSION, stdout=full)
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written: no space left on device\n"


def test_closed_standard_output_is_an_error_and_closed_standard_error_keeps_the_status():
    done = run(["sh", "-c", 'exec "$@" >&-', "sh", *VERSION])
    assert (done.returncode, done.stderr) == (1, "error: standard output cannot be written: it is closed\n")
    done = run(["sh", "-c", 'exec "$@" 2>&-', "sh", *VERSION, "surplus"])
    assert (done.returncode, done.stdout) == (2, "")
