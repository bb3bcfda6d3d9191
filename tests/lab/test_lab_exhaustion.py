"""A daemon that is stopped, out of descriptors or besieged by clients: traffic goes on, and so does it afterwards."""

import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from labtools import Attached, undisturbed

from meshctl.labcluster import Lab
from meshctl.labdaemon import LAB_UID
from meshctl.labhost import Host, wait_for

CLIENTS = 1000
STRANGER = 64748  # in the group that may read, and nobody else


def state(host: Host, name: str) -> str:
    return next(str(m["state"]) for m in host.json("members") if m["name"] == name)


def test_a_daemon_that_stands_still_is_failed_alone_cuts_no_traffic_and_accuses_nobody_when_it_goes_on(
    lab3: Lab, trio_of_endpoints: list[Attached]
) -> None:
    """Ten minutes in the issue; here until the verdict and some rounds more, since rows age by hours, not minutes."""
    first, second, third = lab3.hosts
    wrong = failures(first) + failures(third)
    with undisturbed(lab3.hosts, *trio_of_endpoints):
        os.kill(second.pid, signal.SIGSTOP)
        try:
            for host in (first, third):
                wait_for(f"{host.name} sees it", 20, lambda h=host: state(h, "host2") == "failed")
            first.json("network", "create", "made-meanwhile")
        finally:
            os.kill(second.pid, signal.SIGCONT)
        second.wait_network("made-meanwhile")
        for host in lab3.hosts:
            host.wait_alive(3)
            host.wait_in_sync()
    assert failures(second) == []
    told = [*failures(first), *failures(third)]
    assert {event["host"] for event in told[len(wrong) :]} == {"host2"}
    assert "this host was paused" in second.log.read_text()
    first.json("network", "rm", "made-meanwhile")
    wait_for("all agree", 20, lambda: len({host.status()["digest"] for host in lab3.hosts}) == 1)


def failures(host: Host) -> list[dict[str, object]]:
    return [event for event in host.events() if event["kind"] == "member-failed"]


@contextmanager
def no_more_descriptors(host: Host) -> Iterator[None]:
    """Leave the running daemon not one descriptor more than it has."""
    fds = [int(name) for name in os.listdir(f"/proc/{host.pid}/fd")]
    with open(f"/proc/{host.pid}/limits") as file:
        words = next(line for line in file if line.startswith("Max open files")).split()
    limit(host, max(fds) + 1, words[4])
    taken = [host.socket] * (max(fds) + 1 - len(fds))  # numbers that are free below the limit
    with ExitStack() as stack:
        for path in taken:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.connect(str(path))
        try:
            yield
        finally:
            limit(host, int(words[3]), words[4])


def limit(host: Host, soft: int, hard: str) -> None:
    """Set the running daemon's limit of descriptors, as its own user: others need a capability for that."""
    subprocess.run(
        ["setpriv", f"--reuid={LAB_UID}", f"--regid={LAB_UID}", "--clear-groups",
         "prlimit", f"--pid={host.pid}", f"--nofile={soft}:{hard}"],
        check=True,
    )  # fmt: skip


def test_a_daemon_out_of_descriptors_goes_on_and_answers_again_when_there_are_some(
    lab3: Lab, trio_of_endpoints: list[Attached]
) -> None:
    first, second, _ = lab3.hosts
    pid = second.pid
    with undisturbed((first,), *trio_of_endpoints):
        with no_more_descriptors(second), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waiting:
            waiting.connect(str(second.socket))
            waiting.settimeout(30)
            waiting.sendall(b"GET /v1/version HTTP/1.1\r\nHost: m\r\n\r\n")
            wait_for("the log says so", 20, lambda: "api cannot accept" in second.log.read_text())
            second.run("nft", "delete", "table", "bridge", "meshd")  # whose repair runs a program
            first.json("network", "create", "made-meanwhile")
            assert state(first, "host2") == "alive"
        assert second.status()["ready"]
        second.wait_network("made-meanwhile")
        second.run("nft", "delete", "table", "inet", "meshd")  # else the repair is tried again in up to 30 s
        for host in lab3.hosts:
            host.wait_alive(3)
            host.wait_in_sync()
    assert second.pid == pid
    assert second.alive
    first.json("network", "rm", "made-meanwhile")


@pytest.mark.parametrize("uid", [STRANGER, 0])
def test_a_thousand_clients_that_say_nothing_keep_nobody_else_from_being_served(lab3: Lab, uid: int) -> None:
    """Half of a stranger's begin a request, and end by that; root's just stay, and have every place at first."""
    host = lab3.hosts[0]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    memory = rss_kib(host)
    script = (
        "import contextlib, socket, sys\n"
        "kept = []\n"
        f"for _ in range({CLIENTS}):\n"
        "    sock = socket.socket(socket.AF_UNIX)\n"
        "    sock.connect(f'/proc/self/fd/{sys.argv[1]}/api.sock')\n"
        "    with contextlib.suppress(OSError):\n"  # turned away: more than a user may have
        f"        sock.send(b'GET /v1/status HT') if {uid} and len(kept) % 2 else None\n"
        "    kept.append(sock)\n"
        "print('there', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [
        "prlimit", f"--nofile={max(soft, CLIENTS + 100)}:{hard}", "setpriv", f"--reuid={uid}", f"--regid={LAB_UID}",
        "--clear-groups", "/usr/bin/python3", "-c", script,
    ]  # fmt: skip
    folder = os.open(host.dir / "run", os.O_PATH)  # whose parents may be closed to that user
    with subprocess.Popen(
        [*command, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=(folder,),
    ) as besieging:
        os.close(folder)
        assert besieging.stdout is not None
        assert besieging.stdin is not None
        try:
            assert besieging.stdout.readline() == "there\n"
            if uid == 0:
                wait_for("the first of them to give way", 20, lambda: host.meshctl("status").returncode == 0)
            for _ in range(20):
                assert host.status()["ready"]
            host.json("network", "create", "made-meanwhile")
            host.json("network", "rm", "made-meanwhile")
        finally:
            besieging.stdin.close()
    assert rss_kib(host) < memory + 10 * 1024
    for other in lab3.hosts:
        other.wait_alive(3)


def rss_kib(host: Host) -> int:
    with open(f"/proc/{host.pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))
