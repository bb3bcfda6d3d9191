"""`meshctl lab` from the outside, as a person types it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MESHCTL = str(Path(sys.executable).parent / "meshctl")


def meshctl(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MESHCTL, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120,
        umask=0o077,  # as careful operators have it: the daemons' user must be able to read a lab all the same
    )  # fmt: skip


def rows(*args: str) -> Any:
    done = meshctl("-o", "json", "lab", *args)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def namespaces(start: str) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.startswith(start)]


@pytest.fixture
def lab_dir(tmp_path: Path) -> Any:
    yield tmp_path / "lab"
    meshctl("lab", "down", "--dir", str(tmp_path / "lab"))


def test_a_lab_comes_up_is_used_loses_a_daemon_gets_it_back_and_goes_down(lab_dir: Path) -> None:
    where = ("--dir", str(lab_dir))
    up = rows("up", "--hosts", "1", *where)
    assert [(row["host"], row["address"], row["alive"]) for row in up] == [("host1", "192.0.2.1", True)]
    assert rows("status", *where) == up

    members = meshctl("lab", "exec", *where, "host1", "--", "meshctl", "-o", "json", "members")
    assert [m["name"] for m in json.loads(members.stdout)] == ["host1"]
    assert meshctl("lab", "exec", *where, "host1", "--", "sh", "-c", "exit 9").returncode == 9
    nowhere = meshctl("lab", "exec", *where, "host1", "--", "no-such-command")
    assert (nowhere.returncode, nowhere.stderr) == (127, "error: command not found: no-such-command\n")
    nobody = meshctl("lab", "exec", *where, "host9", "--", "true")
    assert (nobody.returncode, nobody.stderr) == (
        1, "error: no host host9 in this lab\nhint: there are host1\n",
    )  # fmt: skip

    again = meshctl("lab", "up", *where)
    assert (again.returncode, again.stderr) == (
        1,
        f"error: a lab is up in {lab_dir} already; nothing was made\nhint: meshctl lab down, or another --dir\n",
    )

    assert meshctl("lab", "kill", *where, "host1").returncode == 0
    assert [row["alive"] for row in rows("status", *where)] == [False]
    assert meshctl("lab", "kill", *where, "host1").returncode == 1
    assert meshctl("lab", "exec", *where, "host1", "--", "meshctl", "members").returncode == 3
    assert meshctl("lab", "start", *where, "host1").returncode == 0
    assert [row["alive"] for row in rows("status", *where)] == [True]

    lab_id = json.loads((lab_dir / "lab.json").read_text())["id"]
    assert namespaces(lab_id) != []
    for _ in range(2):
        down = meshctl("lab", "down", *where)
        assert (down.returncode, down.stderr) == (0, "")
    assert namespaces(lab_id) == []
    assert not lab_dir.exists()


def test_a_pid_that_another_process_has_now_is_left_alone(lab_dir: Path) -> None:
    rows("up", "--hosts", "1", "--dir", str(lab_dir))
    said = json.loads((lab_dir / "lab.json").read_text())
    os.kill(said["hosts"][0]["pid"], signal.SIGKILL)
    bystander = subprocess.Popen(["sleep", "100"])
    try:
        said["hosts"][0]["pid"] = bystander.pid
        (lab_dir / "lab.json").write_text(json.dumps(said))
        assert [row["alive"] for row in rows("status", "--dir", str(lab_dir))] == [False]
        assert meshctl("lab", "down", "--dir", str(lab_dir)).returncode == 0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_folder_with_something_else_in_it_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    done = meshctl("lab", "up", "--dir", str(tmp_path))
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {tmp_path} is not empty; nothing was made\nhint: --dir names a folder for the lab alone\n",
    )
    assert (tmp_path / "precious").read_text() == "x"


def test_status_of_no_lab_says_so(tmp_path: Path) -> None:
    done = meshctl("lab", "status", "--dir", str(tmp_path))
    assert (done.returncode, done.stderr) == (1, f"error: no lab is up in {tmp_path}\nhint: meshctl lab up\n")
