"""run: real processes in real namespaces. The fake daemon makes the veth pair when it is asked, as meshd does."""

import json
import os
import secrets
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes network namespaces"),
]

CLI = Path(__file__).parents[3] / "cli"
ENDPOINT = "ab" * 16
MAC = "02:11:22:33:44:55"
GIVE_UP_S = 60  # only a child that never ends takes this long
ASKED = ["POST /v1/endpoints", f"DELETE /v1/endpoints/{ENDPOINT}"]


class Runner:
    """Starts `meshctl run` as a process; answers its attach with a fresh veth pair."""

    def __init__(self, daemon: Any) -> None:
        suffix = secrets.token_hex(4)
        self.daemon, self.host_end, self.link = daemon, f"mh{suffix}", f"mp{suffix}"
        daemon.answers["POST /v1/endpoints"] = self.attach
        daemon.answers[ASKED[1]] = (200, {"removed": True})

    def attach(self, _request: object) -> tuple[int, object]:
        pair = [
            "ip",
            "link",
            "add",
            self.host_end,
            "up",
            "type",
            "veth",
            "peer",
            "name",
            self.link,
            "address",
            MAC,
        ]
        subprocess.run(pair, check=True, capture_output=True)
        plumb = {"link": self.link, "ifname": "eth0", "mac": MAC, "mtu": 1400, "addresses": ["10.1.0.2/20"], "routes": [],
                 "ipv6": False, "existing": False}  # fmt: skip
        return 201, {"id": ENDPOINT, "network": "blue", "plumb": plumb}

    def start(self, *args: str, **kwargs: Any) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": str(CLI), "MESHD_SOCKET": str(self.daemon.path)}
        command = [sys.executable, "-m", "meshctl.main", *args]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(command, text=True, env=env, **{**pipes, **kwargs})

    def run(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        with self.start(*args) as process:
            out, err = process.communicate(stdin)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def remove(self) -> None:
        subprocess.run(["ip", "link", "del", self.host_end], capture_output=True, check=False)


@pytest.fixture
def runner(daemon):
    made = Runner(daemon)
    yield made
    made.remove()


def test_the_command_has_the_endpoint_and_nothing_else(runner):
    done = runner.run("run", "blue", "--", "ip", "-j", "address")
    assert (done.returncode, done.stderr) == (0, "")
    links = {link["ifname"]: link for link in json.loads(done.stdout)}
    assert set(links) - {"lo"} >= {"eth0"}
    assert [a["local"] for a in links["eth0"]["addr_info"]] == ["10.1.0.2"]
    assert "UP" in links["lo"]["flags"]
    assert runner.daemon.asked() == ASKED


def test_the_namespace_has_no_name_and_is_told_by_process(runner):
    done = runner.run("run", "blue", "--name", "web", "--", "ip", "netns", "identify")
    assert (done.returncode, done.stdout.strip()) == (0, "")
    body = runner.daemon.requests[0].body
    assert (body["network"], body["name"]) == ("blue", "web")
    assert body["netns"]["path"].startswith("/proc/")


@pytest.mark.parametrize("output", ["json", "table"])
def test_standard_input_and_output_are_the_command_s_alone(runner, output):
    done = runner.run("-o", output, "run", "--", "cat", stdin="as it is\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "as it is\n", "")
    assert runner.daemon.requests[0].body["network"] == "bridge"


STATUSES = [
    (["true"], 0, ""),
    (["sh", "-c", "exit 3"], 3, ""),
    (["sh", "-c", "exit 255"], 255, ""),
    (["sh", "-c", "kill -KILL $$"], 137, ""),
    (["sh", "-c", "kill -TERM $$"], 143, ""),
    (["no-such-command"], 127, "error: command not found: no-such-command\n"),
    (["/dev/null/x"], 127, "error: command not found: /dev/null/x\n"),
    (["/dev/null"], 126, "error: /dev/null cannot be executed: permission denied\n"),
    (["sh", "-c", 'exit "$#"', "sh", "-o", "json", "--", "--help"], 4, ""),
]


@pytest.mark.parametrize("command, status, said", STATUSES, ids=[" ".join(c) for c, _, _ in STATUSES])
def test_the_exit_status_is_the_command_s_and_the_endpoint_goes(runner, command, status, said):
    done = runner.run("run", "blue", "--", *command)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)
    assert runner.daemon.asked() == ASKED


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 41), (signal.SIGINT, 42), (signal.SIGHUP, 43)])
def test_signals_go_to_the_command_and_the_endpoint_still_goes(runner, number, status):
    script = "trap 'exit 41' TERM; trap 'exit 42' INT; trap 'exit 43' HUP; echo ready; while :; do sleep 0.05; done"
    with runner.start("run", "blue", "--", "bash", "-c", script, start_new_session=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        process.communicate()
    assert process.returncode == status
    assert runner.daemon.asked() == ASKED


SIGNALS = ("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")


def inherited():
    """What a command started from here has blocked and ignored: whoever runs the tests may ignore some."""
    lines = subprocess.run(SIGNALS, capture_output=True, text=True, check=True).stdout.splitlines()
    return [int(line.split()[1], 16) for line in lines]


def test_the_command_starts_with_no_signal_blocked_or_ignored_beyond_what_meshctl_was_started_with(runner):
    done = runner.run("run", "blue", "--", *SIGNALS)
    assert [int(line.split()[1], 16) for line in done.stdout.splitlines()] == inherited()


def test_what_nohup_has_ignored_stays_ignored(runner):
    with runner.start(
        "run", "blue", "--", "grep", "^SigIgn", "/proc/self/status",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    ) as process:  # fmt: skip
        out, _ = process.communicate()
    assert int(out.split()[1], 16) == inherited()[1] | 1 << (signal.SIGHUP - 1)


def test_on_none_there_is_a_loopback_that_is_up_and_nothing_else(runner):
    done = runner.run("run", "none", "--", "ip", "-j", "address")
    assert done.returncode == 0, done.stderr
    (only,) = json.loads(done.stdout)
    assert (only["ifname"], "UP" in only["flags"]) == ("lo", True)
    assert "127.0.0.1" in [address["local"] for address in only["addr_info"]]
    assert runner.daemon.asked() == [], "it takes no daemon"


def test_on_host_the_command_is_in_the_hosts_own_namespace(runner):
    here = os.readlink("/proc/self/ns/net")
    done = runner.run("run", "host", "--", "readlink", "/proc/self/ns/net")
    assert (done.returncode, done.stdout.strip()) == (0, here)
    assert runner.run("run", "host", "--", "sh", "-c", "exit 7").returncode == 7
    assert runner.daemon.asked() == []


@pytest.mark.parametrize(
    ("network", "flag", "why"),
    [
        ("host", ("--ip", "10.1.0.9"), "has this host's own interfaces, addresses and ports"),
        ("host", ("--name", "web"), "nothing stands between that could be published or named"),
        ("none", ("--mac", MAC), "has its loopback alone"),
    ],
)
def test_on_none_and_host_there_is_no_endpoint_to_say_anything_about(runner, tmp_path, network, flag, why):
    done = runner.run("run", network, *flag, "--", "touch", str(tmp_path / "ran"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {flag[0]} cannot be met: on network {network} a process ")
    assert why in done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_refused_attach_runs_nothing(runner, tmp_path):
    refusal = {"error": "network blue is being removed", "hint": "", "code": "conflict"}
    runner.daemon.answers["POST /v1/endpoints"] = (409, refusal)
    done = runner.run("run", "blue", "--", "touch", str(tmp_path / "ran"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: network blue is being removed\n"
    assert not (tmp_path / "ran").exists()


def test_without_a_daemon_it_is_status_3_and_nothing_runs(runner, tmp_path):
    done = runner.run("--socket", str(tmp_path / "none"), "run", "--", "touch", str(tmp_path / "ran"))
    assert done.returncode == 3
    assert not (tmp_path / "ran").exists()


def test_a_detach_that_fails_is_said_and_does_not_hide_the_status(runner):
    runner.daemon.answers[ASKED[1]] = (503, {"error": "the disk is full", "hint": "make room"})
    done = runner.run("run", "blue", "--", "sh", "-c", "exit 7")
    assert done.returncode == 7
    assert done.stderr.splitlines() == [
        f"error: endpoint {ENDPOINT} was not detached: the disk is full",
        "hint: make room",
    ]


def test_a_signal_while_attaching_undoes_it_and_runs_nothing(runner, tmp_path):
    """The signal is sent before the answer: meshctl must still read the answer to know what to remove."""
    process_id: list[int] = []
    started = tmp_path / "started"
    os.mkfifo(started)

    def attach_and_signal(request: object) -> tuple[int, object]:
        with started.open():  # the test writes its pid down first
            os.kill(process_id[0], signal.SIGTERM)
        return runner.attach(request)

    runner.daemon.answers["POST /v1/endpoints"] = attach_and_signal
    with runner.start("run", "blue", "--", "touch", str(tmp_path / "ran")) as process:
        process_id.append(process.pid)
        started.write_text("")
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert runner.daemon.asked() == ASKED
    assert not (tmp_path / "ran").exists()


def test_the_waiting_child_ends_with_its_parent(runner, tmp_path):
    """kill -9 of meshctl while it attaches: the child, not yet the command, sees the end of its pipe."""
    child: list[int] = []  # its pidfd
    started = tmp_path / "started"
    os.mkfifo(started)

    def attach_and_kill(request: Any) -> tuple[int, object]:
        child.append(os.pidfd_open(int(request.body["netns"]["path"].split("/")[2])))
        with started.open():
            os.kill(process.pid, signal.SIGKILL)
        return 503, {"error": "nobody reads this", "hint": ""}

    runner.daemon.answers["POST /v1/endpoints"] = attach_and_kill
    with runner.start("run", "blue", "--", "touch", str(tmp_path / "ran")) as process:
        started.write_text("")
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    ended, _, _ = select.select(child, [], [], GIVE_UP_S)
    os.close(child[0])
    assert ended == child
    assert not (tmp_path / "ran").exists()
