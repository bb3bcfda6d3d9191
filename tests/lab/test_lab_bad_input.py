"""What cannot be done is refused in one line that says what is wrong, with the exit status of the contract, and
changes nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from labtools import Attach, NewNetwork

from meshctl.labcluster import Lab
from meshctl.labdaemon import LAB_UID
from meshctl.labhost import Host, wait_for
from meshctl.setup import toml

FAILED, USAGE, UNREACHABLE = 1, 2, 3
NOBODY = 65534

REFUSED: dict[str, tuple[str, int, str]] = {
    "a network's name that is taken": ("network create taken", FAILED, "network taken exists"),
    "a name that always exists": ("network create host", FAILED, "network name host is reserved: it always exists"),
    "a subnet that overlaps another network's": (
        "network create new --subnet 10.66.0.128/25", FAILED,
        r"subnet 10\.66\.0\.128/25 overlaps network taken \(10\.66\.0\.0/24\)",
    ),
    "a subnet that a host has a route to": (
        "network create new --subnet 192.0.2.0/25", FAILED,
        r"subnet 192\.0\.2\.0/25 overlaps .*192\.0\.2\.0/24.*",
    ),
    "a subnet with host bits": (
        "network create new --subnet 10.66.1.5/24", USAGE,
        r"--subnet: '10\.66\.1\.5/24' has host bits set; its network is 10\.66\.1\.0/24",
    ),
    "a gateway outside the subnet": (
        "network create new --subnet 10.66.1.0/24 --gateway 10.66.2.1", FAILED,
        r"gateway 10\.66\.2\.1 is outside the subnets \(10\.66\.1\.0/24\)",
    ),
    "an MTU above the underlay's": ("network create new --mtu 1500", FAILED, "mtu 1500 does not fit: .*"),
    "encryption, until it exists": ("network create new --opt encrypted", FAILED, "option encrypted is refused: .*"),
    "a driver that does not exist": ("network create new -d token-ring", USAGE, ".*token-ring.*"),
    "a subnet too small": (
        "network create new --subnet 10.66.1.0/31", FAILED, r"subnet 10\.66\.1\.0/31 has no room for a gateway and an endpoint",
    ),
    "a subnet too large": ("network create new --subnet 10.0.0.0/7", FAILED, "subnet 10.0.0.0/7 is too large: .*"),
    "a subnet of mapped addresses": (
        "network create new --subnet ::ffff:10.66.1.0/120", FAILED, "subnet .* cannot be used: ::/8 is .*IPv4-mapped.*",
    ),
    "a name of capitals": ("network create Blue", FAILED, "network name 'Blue' is not allowed"),
    "removing what always exists": (
        "network rm bridge", FAILED, "network bridge cannot be removed: it always exists"
    ),
    "a host that nobody knows": ("endpoint ls --host host9", FAILED, "no host 'host9'"),
    "a name that DNS could not carry": (
        "attach taken --netns {ns} --name -web", FAILED, "name: not 1 to 63 of A-Z, .*"
    ),
    "a mapped address": (
        "attach taken --netns {ns} --ip ::ffff:10.66.0.9", USAGE, r"--ip: .*: write 10\.66\.0\.9"
    ),
    "a number that is none": ("attach taken --pid one", USAGE, "--pid: 'one' is not a whole number"),
    "one word too many": ("members please", USAGE, "not expected here: please"),
    "a socket that is a file": ("--socket /etc/passwd members", UNREACHABLE, ".* /etc/passwd: it is not a socket"),
    "removing what does not exist": ("network rm nowhere", FAILED, "no network 'nowhere'"),
    "an address outside the subnet": (
        "attach taken --netns {ns} --ip 10.99.0.1", FAILED,
        r"10\.99\.0\.1 is in no subnet of network taken \(10\.66\.0\.0/24\)",
    ),
    "the gateway's address": ("attach taken --netns {ns} --ip 10.66.0.1", FAILED, r"10\.66\.0\.1 .*gateway.*"),
    "an address that is no address": ("attach taken --netns {ns} --ip 10.66.0.300", USAGE, r".*10\.66\.0\.300.*"),
    "attaching to a network that does not exist": (
        "attach nowhere --netns {ns}", FAILED, "no network 'nowhere'"
    ),
    "attaching a namespace that does not exist": (
        "attach taken --netns /run/netns/nowhere", FAILED, "no such network namespace: /run/netns/nowhere"
    ),
    "attaching a file that is no namespace": (
        "attach taken --netns /etc/passwd", FAILED, "/etc/passwd is not a network namespace"
    ),
    "attaching the host's own namespace": (
        "attach taken --netns /proc/self/ns/net", FAILED, "/proc/self/ns/net is this host's own namespace; .*"
    ),
    "attaching a process that does not exist": (
        "attach taken --pid 4194304", FAILED, "no process has the id 4194304"
    ),
    "attaching nothing": ("attach taken", USAGE, "missing option: .*"),
    "a command that does not exist": ("atach taken", USAGE, "no such command: meshctl atach"),
    "a token that is none": ("join hello --config-dir {new}", USAGE, r"that is not a meshd token.*"),
    "a token with one letter changed": ("join {mangled} --config-dir {new}", USAGE, "the token is damaged: .*"),
    "a token cut short": ("join {short} --config-dir {new}", USAGE, "the token is damaged: .*"),
    "joining where a configuration is": ("join {token} --config-dir {etc}", FAILED, ".*(exist|is there).*"),
    "an address of another host": (
        "init --bind 192.0.2.99 --config-dir {new}", FAILED,
        r"--bind 192\.0\.2\.99 is not an address of this host; nothing was changed",
    ),
    "a socket where no daemon is": ("--socket {new} members", UNREACHABLE, "meshd is not reachable at .*"),
}  # fmt: skip
"""What is wrong -> command, exit status, the whole first line after "error: " as a pattern."""


@pytest.fixture(scope="module")
def words(lab3: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the table's commands are filled in with."""
    first = lab3.hosts[0]
    first.json("network", "create", "taken", "--subnet", "10.66.0.0/24")
    wait_for(
        "all have the same state", 10, lambda: len({host.status()["digest"] for host in lab3.hosts}) == 1
    )
    token = first.json("token")["token"]
    middle = len(token) // 2
    return {
        "ns": f"/run/netns/{lab3.container('bad')}",
        "new": str(tmp_path_factory.mktemp("bad") / "new"),
        "etc": str(first.dir / "etc"),
        "token": token,
        "mangled": token[:middle] + ("A" if token[middle] != "A" else "B") + token[middle + 1 :],
        "short": token[:-4],
    }


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_refused_in_one_line_and_changes_nothing(
    lab3: Lab, words: dict[str, str], what: str
) -> None:
    command, status, line = REFUSED[what]
    host = lab3.hosts[0]
    before = host.status()["digest"], host.json("network", "ls"), host.json("endpoint", "ls")
    done = host.meshctl(*command.format(**words).split())
    said = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert re.fullmatch(f"error: {line}", said[0]), said[0]
    assert all(more.startswith("hint: ") for more in said[1:])
    assert len(said) <= 2
    assert (host.status()["digest"], host.json("network", "ls"), host.json("endpoint", "ls")) == before
    assert not Path(words["new"]).exists()


def test_an_error_in_json_leaves_standard_output_empty(lab3: Lab) -> None:
    done = lab3.hosts[0].meshctl("-o", "json", "network", "inspect", "nowhere")
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert done.stderr.startswith("error: no network 'nowhere'\n")


# --- who may do what -------------------------------------------------------------------------------------


def curl(host: Host, group: int, *args: str) -> tuple[str, str]:
    """Call the API as uid nobody; return status and body. The socket's folder comes as a descriptor, since its
    parents may be closed to that user."""
    folder = os.open(host.dir / "run", os.O_PATH)
    try:
        done = subprocess.run(
            ["setpriv", f"--reuid={NOBODY}", f"--regid={group}", "--clear-groups", "curl", "-sS", "--max-time", "10",
             "--unix-socket", f"/proc/self/fd/{folder}/api.sock", "-w", "\n%{http_code}", *args],
            pass_fds=(folder,), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        os.close(folder)
    body, _, status = done.stdout.rpartition("\n")
    return status, body or done.stderr


def test_a_member_of_the_daemons_group_reads_and_changes_nothing(lab3: Lab) -> None:
    host = lab3.hosts[0]
    assert curl(host, LAB_UID, "http://localhost/v1/members")[0] == "200"
    status, body = curl(
        host,
        LAB_UID,
        "-H",
        "Content-Type: application/json",
        "-d",
        '{"name":"mine"}',
        "http://localhost/v1/networks",
    )
    assert (status, '"forbidden"' in body) == ("403", True)
    assert curl(host, LAB_UID, "http://localhost/v1/token")[0] == "403"
    assert host.meshctl("network", "inspect", "mine").returncode == FAILED


def test_anybody_else_does_not_even_read(lab3: Lab) -> None:
    status, said = curl(lab3.hosts[0], NOBODY, "http://localhost/v1/members")
    assert status in ("000", "403")
    assert said


def test_meshctl_without_root_says_what_is_missing(lab3: Lab, opened: Any) -> None:
    become = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    done = lab3.hosts[0].run(*opened.argv(become, "-m", "meshctl.main", "members"))
    assert done.returncode == UNREACHABLE
    assert done.stderr.splitlines()[1:] == ["hint: run as root or as a member of the group meshd"]


# --- the daemon itself -------------------------------------------------------------------------------------


def python(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def config(tmp_path: Path, host: Host, **gossip: object) -> Path:
    """Write a configuration for a second daemon on ``host``."""
    tables = {
        "host": {
            "state_dir": str(tmp_path / "state"),
            "run_dir": str(tmp_path / "run"),
            "docker_plugin_socket": "",
        },
        "gossip": {"bind": host.address, "keyring": str(host.dir / "etc" / "keyring"), **gossip},
    }
    path = tmp_path / "meshd.toml"
    path.write_text("\n".join(toml(tables)) + "\n")
    return path


def foreground(host: Host, path: Path) -> tuple[int, list[str]]:
    done = host.run(*python("meshd"), "--config", str(path), timeout=30)
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def test_a_port_that_is_in_use(lab3: Lab, tmp_path: Path) -> None:
    host = lab3.hosts[0]
    status, said = foreground(host, config(tmp_path, host))
    assert status == USAGE
    assert said == [
        f"error: gossip.port: UDP {host.address}:7947 is in use by another program; nothing was started",
        "hint: stop that program (ss -lpn 'sport = :7947' shows it) or set another [gossip] port",
    ]


def test_an_address_that_the_host_does_not_have(lab3: Lab, tmp_path: Path) -> None:
    host = lab3.hosts[0]
    status, said = foreground(host, config(tmp_path, host, bind="192.0.2.99"))
    assert status == USAGE
    assert said[0].startswith("error: gossip.bind: ")
    assert "192.0.2.99" in said[0]


def test_a_state_dir_that_another_daemon_uses(lab3: Lab, tmp_path: Path) -> None:
    host = lab3.hosts[0]
    (tmp_path / "state").symlink_to(host.dir / "state")
    status, said = foreground(host, config(tmp_path, host, port=7999))
    assert status == FAILED
    assert (
        said[0]
        == f"error: {tmp_path / 'state'}: another meshd runs on this state_dir; this one changed nothing"
    )


def test_a_keyring_that_is_not_there(lab3: Lab, tmp_path: Path) -> None:
    host = lab3.hosts[0]
    status, said = foreground(host, config(tmp_path, host, port=7999, keyring=str(tmp_path / "keyring")))
    assert status == USAGE
    assert said == [
        f"error: {tmp_path / 'keyring'}: no such file",
        "hint: run: meshctl init (first host) or meshctl join TOKEN",
    ]


MADE_UNUSABLE = {
    "a full disk": ("mount -t tmpfs -o size=8k tmpfs {0}; head -c 8k /dev/zero >{0}/full", "No space left on device"),
    "a read-only disk": ("mount -t tmpfs -o ro tmpfs {0}", "Read-only file system"),
    "a directory in the journal's place": ("cp -a {1}/. {0}; rm {0}/journal; mkdir {0}/journal", "Is a directory"),
    "an identity that is gone": ("cp -a {1}/. {0}; rm {0}/identity", "missing, but journal is there"),
}  # fmt: skip
"""What is wrong with state_dir ({0}; {1} is a good one) -> how it came to be, and the words that say so."""


@pytest.mark.parametrize("what", MADE_UNUSABLE)
def test_a_state_dir_that_cannot_be_used(lab3: Lab, tmp_path: Path, what: str) -> None:
    make, words = MADE_UNUSABLE[what]
    host = lab3.hosts[0]
    path = config(tmp_path, host, port=7999)
    (tmp_path / "state").mkdir()
    shell = f'set -e; {make.format(tmp_path / "state", host.dir / "state")}; exec "$@"'
    done = host.run("sh", "-c", shell, "sh", *python("meshd"), "--config", str(path), timeout=30)
    error, hint = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert re.fullmatch(
        f"error: {tmp_path}/state(/[a-z]+)?: .*{words}; nothing was (started|changed)", error
    ), error
    assert hint.startswith("hint: ")
    assert not (tmp_path / "run").exists()


def test_a_pool_without_a_free_prefix_leaves_all_but_the_default_bridge(tmp_path: Path) -> None:
    lab = Lab.up(1, tmp_path / "lab")
    try:
        (host,) = lab.hosts
        host.kill()
        for file in (host.dir / "state").iterdir():
            file.unlink()
        host.configure(pools={"v4": ["192.0.2.0/24"]})
        host.start()
        assert [net["name"] for net in host.json("network", "ls")] == ["none", "host"]
        (alarm,) = host.status()["health"]
        assert re.fullmatch(
            r"there is no network bridge on this host: no subnet is free: .*pools\.v4 \(192\.0\.2\.0/24\).*",
            alarm,
        )
        host.json("network", "create", "own", "--subnet", "10.67.0.0/24")
    finally:
        lab.down()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[gossip]\nprot = 1\n", "gossip.prot: unknown key (allowed here: bind, port, seeds, keyring, failed_rows_age_h)"),
        ("[gossip]\nport = 'x'\n", "gossip.port: expected `int`, got `str`"),
        ("[gossip]\nport = 70000\n", "gossip.port: expected `int` <= 65535"),
        ("[gossip]\nbind = 'host1'\n", "gossip.bind: 'host1' is not an IPv4 or IPv6 address"),
        ("[gossip]\nseeds = ['192.0.2.1']\n", "gossip.seeds: '192.0.2.1' is not ADDRESS:PORT, e.g. 192.0.2.2:7947"),
        ("[pools]\nv4 = ['fd00::/48']\n", "pools.v4: fd00::/48 is not an IPv4 prefix"),
        ("[log]\nlevel = 'loud'\n", "log.level: invalid enum value 'loud' (allowed: debug, info, warning, error)"),
        ("gossip", "not TOML: Expected '=' after a key in a key/value pair (at end of document)"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_configuration_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "meshd.toml"
    path.write_text(text)
    for arguments in (["--check"], []):
        done = subprocess.run(
            [*python("meshd"), "--config", str(path), *arguments], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (USAGE, "", f"error: {path}: {line}\n")


def test_a_damaged_journal_stops_the_daemon_and_is_left_as_it_is(
    lab3: Lab, new_network: NewNetwork, attach: Attach
) -> None:
    host = lab3.hosts[2]
    attach(host, new_network())
    host.kill()
    journal = host.dir / "state" / "journal"
    good = journal.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 0xFF
    journal.write_bytes(bad)
    try:
        host.begin()
        process = host._process
        assert process is not None
        assert process.wait(timeout=30) == FAILED
        said = host.log.read_text().splitlines()[-2:]
        assert any(re.match(r"error: .*/state/journal: damaged at byte \d+ of \d+", line) for line in said), (
            said
        )
        assert journal.read_bytes() == bad
    finally:
        journal.write_bytes(good)
        host.start()
        host.wait_alive(3)
