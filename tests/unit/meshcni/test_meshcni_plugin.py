"""The CNI executable as a process, where no daemon answers or one says nonsense; and that it starts fast because it
imports nothing. What it does with a daemon: tests/lab/test_lab_cni.py."""

import contextlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from meshcni import plugin
from meshctl.cni import build, put, source
from meshd.api import cnirecords
from meshd.api.cniconfig import VERSIONS
from meshd.shell.runtimes import QUEUE

SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture
def executable(tmp_path):
    return put(build(source()), tmp_path / "bin")


@pytest.fixture
def run(executable, tmp_path):
    """``run(command, config, **environment)``: (exit status, document on standard output, standard error)."""

    def run_one(command, config=None, *, raw=None, **environment):
        told = {
            "cniVersion": "1.0.0",
            "name": "blue",
            "type": "meshd",
            "socket": str(tmp_path / "run" / "cni.sock"),
        }
        text = json.dumps({**told, **(config or {})}).encode() if raw is None else raw
        said = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/x",
            **environment,
        }
        done = subprocess.run(
            [executable], input=text, env=said, capture_output=True, timeout=60, check=False
        )
        return done.returncode, json.loads(done.stdout or "null"), done.stderr.decode()

    return run_one


def test_it_is_installed_whole_and_executable_and_again(tmp_path):
    for _ in range(2):
        path = put(build(source()), tmp_path / "a" / "bin")
        assert path.read_bytes() == build(source())
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert [p.name for p in path.parent.iterdir()] == ["meshd"]
    assert path.read_bytes().startswith(b"#!/usr/bin/python3 -IS")


def test_every_kernel_takes_its_first_line():
    assert build(source()).index(b"\n") <= 127  # BINPRM_BUF_SIZE was 128 before 5.1


def test_it_imports_only_what_is_written_in_c():
    script = (
        "import sys; before = set(sys.modules); sys.path = [p for p in sys.path if p.endswith('lib-dynload')];"
        f"code = compile(open({str(source())!r}).read(), 'meshd', 'exec'); exec(code, {{'__name__': 'x'}});"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([SYSTEM_PYTHON, "-IS", "-c", script], capture_output=True, text=True, check=True)
    imported = set(done.stdout.strip("[]\n").replace("'", "").split(", "))
    assert imported <= {"_json", "_socket", "fcntl", "posix"}


def test_both_sides_know_the_same_constants():
    assert plugin.VERSIONS == VERSIONS
    assert plugin.PROTOCOL == cnirecords.PROTOCOL
    assert plugin.QUEUE == QUEUE


def test_version_needs_no_daemon_and_no_namespace(run):
    for asked in ("0.3.1", "1.1.0", "0.1.0"):
        status, told, _ = run(
            "VERSION", {"cniVersion": asked}, CNI_NETNS="dummy", CNI_CONTAINERID="", CNI_IFNAME=""
        )
        assert (status, told) == (0, {"cniVersion": asked, "supportedVersions": list(VERSIONS)})
    assert run("VERSION", raw=b'{"cniVersion":1}')[1]["code"] == 6


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 200_000, b'{"a":1} x'])
@pytest.mark.parametrize("command", ["ADD", "DEL", "VERSION", "GC"])
def test_what_is_no_json_object_cannot_be_decoded(run, command, raw):
    status, told, _ = run(command, raw=raw)
    assert (status, told["code"]) == (1, 6)
    assert told["cniVersion"] == "1.1.0"


def test_input_without_end_is_an_error(run):
    status, told, _ = run("ADD", raw=b" " * (plugin.INPUT_MAX_BYTES + 1))
    assert (status, told["code"]) == (1, 5)


@pytest.mark.parametrize("command", ["", "add", "FOO"])
def test_an_unknown_operation_names_the_known_ones(run, command):
    status, told, _ = run(command)
    assert (status, told["code"]) == (1, 4)
    assert "VERSION" in told["msg"]


@pytest.mark.parametrize(
    ("netns", "code"),
    [(None, 4), ("", 4), ("/nowhere", 3), ("/proc/999999999/ns/net", 3), ("/etc/passwd", 4), ("/", 4),
     ("/dev/null", 4), ("/proc/self/ns/net", 4)],
)  # fmt: skip
@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_a_namespace_that_is_none_has_the_specifications_code(run, command, netns, code):
    said = {} if netns is None else {"CNI_NETNS": netns}
    status, told, _ = run(command, **said)
    assert (status, told["code"]) == (1, code), told
    assert told["cniVersion"] == "1.0.0"


@pytest.mark.parametrize("path", ["cni.sock", 7, "/a\0b"])
def test_a_socket_that_is_no_path_is_a_wrong_configuration(run, path):
    assert run("GC", {"socket": path})[1]["code"] == 7


@pytest.mark.parametrize(("command", "code"), [("GC", 11), ("STATUS", 51)])
def test_without_a_daemon_it_says_so(run, command, code):
    status, told, _ = run(command)
    assert (status, told["code"]) == (1, code)
    assert "meshd is not reachable" in told["msg"]
    assert "systemctl start meshd" in told["details"]


def queue_of(tmp_path):
    return sorted((tmp_path / "run" / QUEUE).iterdir())


def test_a_del_without_a_daemon_is_left_for_it_whole_and_only_for_it(run, tmp_path):
    for _ in range(2):
        assert run("DEL", CNI_NETNS="") == (0, None, "")
    first, second = queue_of(tmp_path)
    assert first.name < second.name
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    call = cnirecords.read(first.read_bytes())
    assert call.environment["CNI_COMMAND"] == "DEL"
    assert call.environment["CNI_CONTAINERID"] == "c1"
    assert "CNI_PATH" not in call.environment
    assert json.loads(call.config)["name"] == "blue"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a file is given away")
def test_what_is_left_belongs_to_the_folders_owner(run, tmp_path):
    folder = tmp_path / "run" / QUEUE
    folder.mkdir(parents=True)
    os.chown(folder, 12345, 12345)
    run("DEL")
    assert queue_of(tmp_path)[0].stat().st_uid == 12345


def test_nothing_is_written_through_a_link(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / QUEUE).symlink_to(tmp_path / "elsewhere")
    status, told, _ = run("DEL")
    assert (status, told["code"]) == (1, 5)
    assert told["msg"].startswith(f"{tmp_path / 'run' / QUEUE}: ")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@contextlib.contextmanager
def served(path: Path, answer: bytes):
    """A daemon that takes whole requests and says ``answer``; yields what it was asked."""
    path.parent.mkdir(exist_ok=True)
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(0.05)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = listening.accept()
                    with connection:
                        connection.settimeout(30)
                        data = b""
                        while b"\r\n\r\n" not in data:
                            data += connection.recv(65536)
                        head, _, body = data.partition(b"\r\n\r\n")
                        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
                        while len(body) < length:
                            body += connection.recv(65536)
                        asked.append(body)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield asked
        over.set()
        thread.join()


GOOD = b"HTTP/1.1 200 \r\n\r\n" + cnirecords.done()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 503 \r\n\r\n{}", GOOD[:-1], GOOD[:-6], b"HTTP/1.1 200 \r\n\r\n", b"\0" * 9]
)
def test_a_del_that_gets_no_whole_answer_is_left_too(run, tmp_path, answer):
    with served(tmp_path / "run" / "cni.sock", answer):
        assert run("DEL") == (0, None, "")
    assert len(queue_of(tmp_path)) == 1


def test_an_error_of_the_daemon_is_told_as_it_is(run, tmp_path):
    refused = b"HTTP/1.1 200 \r\n\r\n" + cnirecords.refused(7, 'no network "blüe"\nhere', "create it")
    with served(tmp_path / "run" / "cni.sock", refused):
        status, told, _ = run("DEL")
    assert status == 1
    assert told == {"cniVersion": "1.0.0", "code": 7, "msg": 'no network "blüe" here', "details": "create it"}
    assert not (tmp_path / "run" / QUEUE).exists()


def test_a_large_list_for_gc_passes(run, tmp_path):
    kept = [{"containerID": f"{number:064x}", "ifname": "eth0"} for number in range(10_000)]
    with served(tmp_path / "run" / "cni.sock", GOOD) as asked:
        assert run("GC", {"cni.dev/valid-attachments": kept})[0] == 0
    assert len(json.loads(cnirecords.read(asked[0]).config)["cni.dev/valid-attachments"]) == 10_000


def test_a_socket_is_the_containers_own_where_a_process_with_its_id_holds_it(monkeypatch):
    monkeypatch.setenv("CNI_CONTAINERID", "c-own-sockets")
    with socket.create_server(("127.0.0.1", 0)) as held, socket.create_server(("127.0.0.1", 0)) as not_held:
        inodes = [str(os.fstat(one.fileno()).st_ino).encode() for one in (held, not_held)]
        monitor = subprocess.Popen(
            ["sh", "-c", "echo; read x", "monitor", "-c", "c-own-sockets"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[held.fileno()],
        )
        assert monitor.stdout.readline() == b"\n"
        assert plugin.own_sockets(b",".join(inodes)) == inodes[0]
        assert plugin.own_sockets(inodes[1]) == b"-"
        monkeypatch.setenv("CNI_CONTAINERID", "another")
        assert plugin.own_sockets(b",".join(inodes)) == b"-"
        monitor.communicate()


def test_another_python_runs_the_text(executable, tmp_path):
    other = tmp_path / "other"
    changed = re.sub(rb"MAGIC_NUMBER == b'.*?'", b"MAGIC_NUMBER == b'other'", executable.read_bytes())
    head = changed.index(b"\n", changed.index(b"\n") + 1) + 1
    other.write_bytes(changed[:head] + b"broken" + changed[head + 6 :])
    other.chmod(0o755)
    done = subprocess.run(
        [other], input=b"{}", env={"CNI_COMMAND": "VERSION"}, capture_output=True, check=False
    )
    assert json.loads(done.stdout)["supportedVersions"] == list(VERSIONS)


def test_this_python_can_run_it_too(executable):
    argument = executable.read_text(errors="replace").partition("\n")[0].partition(" ")[2]
    done = subprocess.run(
        [sys.executable, argument, executable],
        input=b"{}",
        env={"CNI_COMMAND": "VERSION"},
        capture_output=True,
        check=False,
    )
    assert json.loads(done.stdout)["supportedVersions"] == list(VERSIONS)
