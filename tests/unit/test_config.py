"""Every wrong line of the configuration is one clear sentence: file, key, what is wrong, what is allowed."""

import pytest

from meshd.__main__ import main
from meshd.config import Settings, parse
from meshd.errors import ConfigError

BAD = [
    (
        "[gossip]\nprot = 1",
        "f: gossip.prot: unknown key (allowed here: bind, port, seeds, keyring, failed_rows_age_h)",
    ),
    ("[hots]", "f: hots: unknown key (allowed here: host, gossip, vxlan, pools, firewall, dns, docker, log)"),
    ('[gossip]\nport = "7947"', "f: gossip.port: expected `int`, got `str`"),
    ("[gossip]\nport = 70000", "f: gossip.port: expected `int` <= 65535"),
    ("[gossip]\nport = 0", "f: gossip.port: expected `int` >= 1"),
    ("[firewall]\nopen_forward = 1", "f: firewall.open_forward: expected `bool`, got `int`"),
    ('[gossip]\nbind = "eth0"', "f: gossip.bind: 'eth0' is not an IPv4 or IPv6 address"),
    ('[gossip]\nseeds = ["host2"]', "f: gossip.seeds: 'host2' is not ADDRESS:PORT, e.g. 192.0.2.2:7947"),
    ('[gossip]\nseeds = ["host2:1"]', "f: gossip.seeds: 'host2' is not an IPv4 or IPv6 address"),
    ('[pools]\nv4 = ["fd00::/48"]', "f: pools.v4: fd00::/48 is not an IPv4 prefix"),
    ('[pools]\nv4 = ["10.0.0.1/8"]', "f: pools.v4: 10.0.0.1/8 has host bits set"),
    (
        '[log]\nlevel = "loud"',
        "f: log.level: invalid enum value 'loud' (allowed: debug, info, warning, error)",
    ),
    ('[log]\nformat = "xml"', "f: log.format: invalid enum value 'xml' (allowed: auto, console, json)"),
    ('[host]\nname = "a b"', "f: host.name: 'a b' is not a host name"),
    ('[host]\nname = ""', "f: host.name: '' is not a host name"),
    (f'[host]\nname = "{"n" * 64}"', f"f: host.name: '{'n' * 63}' is not a host name"),
    ('[host]\nname = "a\\n"', "f: host.name: 'a\\n' is not a host name"),
    ('[host]\nstate_dir = ""', "f: host.state_dir: '' is not an absolute path"),
    ('[host]\nrun_dir = "run"', "f: host.run_dir: 'run' is not an absolute path"),
    ('[gossip]\nkeyring = "keyring"', "f: gossip.keyring: 'keyring' is not an absolute path"),
    (
        '[gossip]\nbind = "0.0.0.0"',
        "f: gossip.bind: 0.0.0.0 is no address that other hosts reach this one at",
    ),
    (
        '[gossip]\nbind = "ff02::1"',
        "f: gossip.bind: ff02::1 is no address that other hosts reach this one at",
    ),
    ("[gossip]\nport = 4789", "f: vxlan.port: 4789 is gossip.port too; both are UDP ports of this host"),
    (
        '[gossip]\nseeds = ["192.0.2.2:\u0667"]',
        "f: gossip.seeds: '192.0.2.2:\u0667' is not ADDRESS:PORT, e.g. 192.0.2.2:7947",
    ),
    (
        '[gossip]\nseeds = ["2001:db8::2:7947"]',
        "f: gossip.seeds: '2001:db8::2:7947' has no brackets around its address, e.g. [2001:db8::2]:7947",
    ),
    (
        '[gossip]\nbind = "fe80::1"',
        "f: gossip.bind: fe80::1 is link-local: it means nothing without an interface",
    ),
    (
        f'[host]\nrun_dir = "/{"r" * 89}"',
        f"f: host.run_dir: /{'r' * 89}/api.sock is too long: a socket's path has at most 98 bytes",
    ),
    (
        f'[host]\ndocker_plugin_socket = "/{"s" * 98}"',
        f"f: host.docker_plugin_socket: /{'s' * 98} is too long: a socket's path has at most 98 bytes",
    ),
    (
        '[pools]\nv4 = ["10.0.0.0/25"]',
        "f: pools.v4: 10.0.0.0/25 has no room for any network: the smallest takes a /24",
    ),
    (
        '[pools]\nv6 = ["fd00::/65"]',
        "f: pools.v6: fd00::/65 has no room for any network: the smallest takes a /64",
    ),
    ("[host]\nname = 1", "f: host.name: expected `str`, got `int`"),
    ("host = 1", "f: host: expected a table, got `int`"),
    ('[gossip]\nseeds = "192.0.2.2:7947"', "f: gossip.seeds: expected an array, got `str`"),
    ('[dns]\nupstream = ["resolver"]', "f: dns.upstream: 'resolver' is not an IPv4 or IPv6 address"),
]


@pytest.mark.parametrize(("text", "line"), BAD)
def test_a_wrong_setting_is_named_with_its_key_and_what_is_allowed(text, line):
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    assert caught.value.what == line


@pytest.mark.parametrize(
    ("text", "words"), [("x =", "not TOML"), ("[log]\n[log]", "not TOML"), ('host = "x"', "f: host: ")]
)
def test_other_mistakes_are_named_too(text, words):
    with pytest.raises(ConfigError, match=words):
        parse(text, "f")


def test_what_just_fits_is_no_mistake():
    settings = parse(
        f'[host]\nrun_dir = "/{"r" * 88}"\n[pools]\nv4 = ["10.0.0.0/24"]\nv6 = ["fd00::/64"]', "f"
    )
    assert (len(settings.host.run_dir), settings.pools.v6) == (89, ("fd00::/64",))


def test_a_key_of_two_lines_is_told_in_one(tmp_path, capsys):
    file = tmp_path / "meshd.toml"
    file.write_text('"a\\nb" = 1')
    assert main(["--config", str(file), "--check"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "a\\nb: unknown key" in line


def test_an_empty_file_is_a_valid_one():
    assert parse("", "f") == Settings()


def test_v6_seeds_are_written_in_brackets():
    assert parse('[gossip]\nseeds = ["[2001:db8::1]:7947"]', "f").gossip.seeds == ("[2001:db8::1]:7947",)
