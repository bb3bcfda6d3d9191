"""Wrong command lines: one `error:` line, one `hint:` line, exit status 2, and nothing asked of the daemon."""

import re
from pathlib import Path

import click
import pytest

import meshctl as package
from meshctl.main import COMMANDS, cli

SUBNET = "network create --help"

WRONG = [
    ([], "missing command", "meshctl --help"),
    (["membrs"], "no such command: meshctl membrs", "did you mean meshctl members?"),
    (["xyzzy"], "no such command: meshctl xyzzy", "meshctl --help"),
    (["network"], "missing command", "meshctl network --help"),
    (["network", "lss"], "no such command: meshctl network lss", "did you mean meshctl network ls?"),
    (["-o", "xml", "members"], "--output: 'xml' is not one of 'table', 'json'", "meshctl --help"),
    (["members", "-o", "xml"], "--output: 'xml' is not one of 'table', 'json'", "meshctl members --help"),
    (["members", "-o"], "option '-o' requires an argument", "meshctl --help, or --help after the command"),
    ([""], "no such command: meshctl ''", "meshctl --help"),
    (["init", "--config-dir", ""], "--config-dir: must not be empty", "meshctl init --help"),
    (["join", "x", "--config-dir="], "--config-dir: must not be empty", "meshctl join --help"),
    (["lab", "up", "--dir="], "--dir: must not be empty", "meshctl lab up --help"),
    (["cni", "install", "--dir="], "--dir: must not be empty", "meshctl cni install --help"),
    (["docker", "create", "blue", "--host="], "--host: must not be empty", "meshctl docker create --help"),
    (["docker", "create", "blue", "--name="], "--name: must not be empty", "meshctl docker create --help"),
    (["network", "create", "blue", "--parent="], "--parent: must not be empty", f"meshctl {SUBNET}"),
    (["network", "create", "blue", "--mode="], "--mode: must not be empty", f"meshctl {SUBNET}"),
    (["forget", ""], "HOST: must not be empty", "meshctl forget --help"),
    (["members", "surplus"], "not expected here: surplus", "meshctl members --help"),
    (["events", "--folow"], "no such option: --folow", "did you mean --follow?"),
    (["events", "--zzz"], "no such option: --zzz", "meshctl events --help"),
    (["network", "create"], "missing argument: NAME", f"meshctl {SUBNET}"),
    (["network", "create", ""], "NAME: must not be empty", f"meshctl {SUBNET}"),
    (
        ["network", "create", "blue", "-d", "wifi"],
        "--driver: 'wifi' is not one of 'overlay', 'bridge', 'macvlan', 'ipvlan'",
        f"meshctl {SUBNET}",
    ),
    (
        ["network", "create", "blue", "--subnet", "10.1.0.0/33"],
        "--subnet: '10.1.0.0/33' is not ADDRESS/LENGTH, e.g. 10.1.0.0/20",
        f"meshctl {SUBNET}",
    ),
    (
        ["network", "create", "blue", "--subnet", "10.1.0.0"],
        "--subnet: '10.1.0.0' has no length, e.g. 10.1.0.0/20",
        f"meshctl {SUBNET}",
    ),
    (
        ["network", "create", "blue", "--subnet", "10.1.0.9/20"],
        "--subnet: '10.1.0.9/20' has host bits set; its network is 10.1.0.0/20",
        f"meshctl {SUBNET}",
    ),
    (
        ["network", "create", "blue", "--gateway", "10.1.0"],
        "--gateway: '10.1.0' is not an IPv4 or IPv6 address",
        f"meshctl {SUBNET}",
    ),
    (["network", "create", "blue", "--opt", "=x"], "--opt: '=x' is not KEY=VALUE", f"meshctl {SUBNET}"),
    (["network", "create", "blue", "--label", "=x"], "--label: '=x' is not KEY=VALUE", f"meshctl {SUBNET}"),
    (
        ["network", "create", "blue", "--vni", "16777216"],
        "--vni: 16777216 is not in the range 1<=x<=16777215",
        f"meshctl {SUBNET}",
    ),
    (["network", "create", "blue", "--mtu", "big"], "--mtu: 'big' is not a whole number", f"meshctl {SUBNET}"),
    (["network", "rm"], "missing argument: NAME", "meshctl network rm --help"),
    (["endpoint", "inspect"], "missing argument: ID", "meshctl endpoint inspect --help"),
    (["attach"], "missing option: --netns or --pid", "meshctl attach --help"),
    (
        ["attach", "blue", "--netns", "x", "--pid", "1"],
        "--netns and --pid exclude each other: give one",
        "meshctl attach --help",
    ),
    (
        ["attach", "blue", "--pid", "1", "--mac", "01:00:5e:00:00:01"],
        "--mac: '01:00:5e:00:00:01' is not an interface's address: it is a group's or all zero",
        "meshctl attach --help",
    ),
    (
        ["attach", "blue", "--pid", "1", "--mac", "02:00"],
        "--mac: '02:00' is not an Ethernet address, e.g. 02:42:0a:01:00:05",
        "meshctl attach --help",
    ),
    (
        ["attach", "blue", "--pid", "1", "--ifname", "a-name-too-long-"],
        "--ifname: 'a-name-too-long-' cannot be an interface's name: 1 to 15 bytes, no /, : or space",
        "meshctl attach --help",
    ),
    (
        ["attach", "blue", "--pid", "1", "--publish", "80"],
        "--publish: '80' is not [IP:]HOSTPORT:PORT[/tcp|udp|sctp], e.g. 8080:80 or [2001:db8::1]:53:53/udp",
        "meshctl attach --help",
    ),
    (["attach", "--pid", "0"], "--pid: 0 is not in the range x>=1", "meshctl attach --help"),
    (["detach"], "missing argument: NETWORK", "meshctl detach --help"),
    (["detach", "blue"], "missing option: --netns or --pid or --endpoint", "meshctl detach --help"),
    (["run"], "missing command: nothing follows --", "meshctl run [NETWORK] [OPTIONS] -- COMMAND..."),
    (["run", "blue", "true"], "missing command: nothing follows --", "meshctl run [NETWORK] [OPTIONS] -- COMMAND..."),
    (["run", "blue", "--"], "missing command: nothing follows --", "meshctl run [NETWORK] [OPTIONS] -- COMMAND..."),
    (["init", "--name", "a b"], "--name: 'a b' is not a host name: letters, digits, - and ., at most 63", "meshctl init --help"),
    (["init", "--bind", "eth0"], "--bind: 'eth0' is not an IPv4 or IPv6 address", "meshctl init --help"),
    (["init", "--port", "65536"], "--port: 65536 is not in the range 1<=x<=65535", "meshctl init --help"),
    (["join"], "missing argument: TOKEN", "meshctl join --help"),
    (["members", "a", "b"], "not expected here: a b", "meshctl members --help"),
    (["--socket", "", "members"], "--socket: must not be empty", "meshctl --help"),
    (["network", "create", "\udcff"], r"NAME: '\udcff' is not UTF-8 text", f"meshctl {SUBNET}"),
    (["network", "create", "a", "--label", "k=\udcff"], r"--label: '\udcff' is not UTF-8 text", f"meshctl {SUBNET}"),
    (
        ["attach", "blue", "--pid", "1", "--ip", "::ffff:10.1.0.9"],
        "--ip: '::ffff:10.1.0.9' is an IPv4 address in IPv6's form: write 10.1.0.9",
        "meshctl attach --help",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    "args, error, hint", WRONG, ids=[" ".join(args) or "nothing" for args, _, _ in WRONG]
)
def test_a_wrong_command_line_is_two_lines_and_status_2(daemon, meshctl, args, error, hint):
    result = meshctl(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [f"error: {error}", f"hint: {hint}"]
    assert daemon.asked() == []


@pytest.mark.parametrize("name", ["lo", "", ".", "..", "a/b", "a:b", "a b", "a\nb", "a%d"])
def test_what_the_kernel_would_not_take_as_an_interface_name_is_wrong_usage(meshctl, name):
    result = meshctl("attach", "--pid", "1", "--ifname", name)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    "command", [[], *([name] for name in COMMANDS if name != "lab"), ["network", "create"]]
)
def test_help_goes_to_standard_output_and_is_status_0(meshctl, command):
    result = meshctl(*command, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: {' '.join(['meshctl', *command])} ")


def test_help_names_the_variable_that_stands_for_socket(meshctl):
    assert "[env var: MESHD_SOCKET;" in meshctl("--help").stdout


def test_every_option_says_what_it_is_for():
    def walk(group, context):
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            yield command
            if isinstance(command, click.Group):
                yield from walk(command, context)

    mute = [
        f"{command.name} {param.opts[-1]}"
        for command in walk(cli, click.Context(cli))
        for param in command.params
        if isinstance(param, click.Option) and not param.help
    ]
    assert mute == []


def test_the_help_of_the_root_names_every_command(meshctl):
    listed = meshctl("--help").stdout.partition("Commands:\n")[2]
    assert [line.split()[0] for line in listed.splitlines()] == list(COMMANDS)


def test_there_are_no_flags_without_code_behind_them(meshctl):
    offered = meshctl("network", "create", "--help").stdout + meshctl("attach", "--help").stdout
    for absent in ("--dns", "--encrypted", "--filter"):
        assert absent not in offered


def test_the_version_is_the_distribution_s():
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.+)"$', text, re.MULTILINE)[1] == package.__version__
